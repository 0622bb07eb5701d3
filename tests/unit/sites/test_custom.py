"""A model of one's own: names that no family has, described by a mapping."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from interptrain import find_sites
from interptrain.callbacks.torch import attach
from interptrain.sites import Family, HookPoint, register_family
from interptrain.sites.families import FAMILIES
from tests.helpers.models import WIDTH, WORDS
from tests.unit.sites.models import bank

MINE = {
    "title": "mine", "embeddings": ["tokens"], "final_norm": "last", "head": "out",
    "attention": {"module": "mix", "norm": "n1", "readers": ["qkv"], "writers": ["o"], "inner": ["decay"]},
    "mlp": [
        {"module": "", "norm": "n2", "readers": ["up"], "writers": ["down"]},
        {"module": "net", "norm": "n2", "readers": ["experts.w_in"], "writers": ["experts.w_out"]},
    ],
}  # fmt: skip


class Mix(nn.Module):
    """Each token takes from those before it, less from those longer ago."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o, self.decay = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH), nn.Linear(1, 1)

    def forward(self, x):
        return self.o(self.qkv(x).cumsum(1) * self.decay.weight)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.w_in, self.w_out = nn.Parameter(torch.randn(2, 20, WIDTH)), nn.Parameter(torch.randn(2, WIDTH, 20))

    def forward(self, x):
        inside = torch.einsum("efd,btd->btef", self.w_in, x).tanh()
        return torch.einsum("edf,btef->btd", self.w_out, inside)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Experts()

    def forward(self, x):
        return self.experts(x)


class Block(nn.Module):
    def __init__(self, *, experts):
        super().__init__()
        self.n1, self.n2, self.mix = nn.RMSNorm(WIDTH), nn.LayerNorm(WIDTH), Mix()
        if experts:
            self.net = Net()
        else:
            self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x):
        x = x + self.mix(self.n1(x))
        normed = self.n2(x)
        return x + (self.net(normed) if "net" in self._modules else self.down(self.up(normed).relu()))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.stages = nn.Embedding(WORDS, WIDTH), nn.ModuleList([Block(experts=e) for e in (False, True)])
        self.last, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, input_ids):
        x = self.tokens(input_ids)
        for stage in self.stages:
            x = stage(x)
        return self.out(self.last(x))


@pytest.fixture
def _known():
    register_family(Family.from_mapping(MINE))
    yield
    FAMILIES.pop(0)


def test_the_example_of_the_documentation_runs():
    page = Path(__file__).parents[3] / "docs" / "families.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(compile(example, page.name, "exec"), {})  # the page is ours
    assert FAMILIES.pop(0).title == "mine"


def test_a_model_is_not_known_before_it_is_described():
    with pytest.raises(ValueError, match=r"'stages' is a list of Block.*interptrain.sites.register_family"):
        find_sites(Model(), bank())


@pytest.mark.usefixtures("_known")
def test_a_described_model_has_its_sites():
    sites = find_sites(Model(), bank(hook="blocks.1.hook_resid_post"), skip=["*decay*"])
    assert {(site.name, site.role, site.axis, site.position) for site in sites if site.parameter.ndim > 1} == {
        ("tokens.weight", "writer", 1, -1.0), ("stages.0.mix.o.weight", "writer", 0, 0.25),
        ("stages.0.down.weight", "writer", 0, 0.75), ("stages.1.mix.o.weight", "writer", 0, 1.25),
        ("stages.1.net.experts.w_out", "writer", 1, 1.75), ("out.weight", "reader", 1, float("inf")),
    }  # fmt: skip
    readers = [site.name for site in find_sites(Model(), bank(hook="blocks.0.hook_resid_pre")) if site.role == "reader"]
    assert readers == [
        "stages.0.mix.qkv.weight", "stages.0.up.weight", "stages.1.mix.qkv.weight", "stages.1.net.experts.w_in",
        "out.weight",
    ]  # fmt: skip


@pytest.mark.usefixtures("_known", "unchecked_shapes")
def test_what_is_suppressed_in_a_described_model_does_not_reach_its_stream():
    model, concept, tokens = Model(), bank(hook="blocks.1.hook_resid_post"), torch.randint(0, WORDS, (4, 6))
    writers = [site.parameter for site in find_sites(model, concept) if site.role == "writer"]
    optimizer, streams = torch.optim.AdamW(writers, lr=1e-2, weight_decay=0.0), []
    handle = HookPoint.parse("blocks.1.hook_resid_post").listen(model, lambda stream: streams.append(stream.detach()))
    before = [writer.detach().clone() for writer in writers]
    with attach(model, optimizer, concept, lambda c, s: {"pirate": 0.0}, where="update", summary=False):
        for _ in range(3):
            torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    handle.remove()
    assert len(streams) == 3
    for old, new in zip(before, writers, strict=True):
        moved = new.detach() - old
        axis = 0 if moved.ndim == 1 else [n for n, size in enumerate(moved.shape) if size == WIDTH][-1]
        along = torch.tensordot(concept.directions, moved, ([1], [axis]))
        assert moved.norm() > 1e-2
        assert along.norm() < 1e-4 * moved.norm()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({key: MINE[key] for key in MINE if key != "final_norm"}, r"a Family has title.*without 'final_norm'"),
        (MINE | {"final": "last"}, r"a Family has .*unknown 'final'"),
        (MINE | {"attention": {"module": "mix", "norm": "n1", "reader": ["qkv"], "writers": ["o"]}},
         r"a Half has module.*unknown 'reader' and without 'readers'"),
        (MINE | {"embeddings": "tokens"}, r"'embeddings' of a Family is a list of names, found 'tokens'"),
    ],
)  # fmt: skip
def test_a_description_that_is_not_understood_is_refused_by_what_differs(given, message):
    with pytest.raises(ValueError, match=message):
        Family.from_mapping(given)


@pytest.mark.usefixtures("_known")
def test_another_family_of_the_same_title_is_refused():
    register_family(Family.from_mapping(MINE))
    assert [family.title for family in FAMILIES].count("mine") == 1
    with pytest.raises(ValueError, match="another family is called 'mine'"):
        register_family(Family.from_mapping(MINE | {"head": "other"}))
