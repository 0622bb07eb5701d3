"""Real steps of a small model of every family: what was asked for is what the parameters did."""

import copy

import pytest
import torch

from interptrain import ConceptBank, find_sites
from interptrain.callbacks.torch import attach
from tests.helpers.models import WIDTH, WORDS
from tests.helpers.steps import RealisedSteps, relative_errors
from tests.unit.sites.families import CONFIGS, adapted, model_of
from tests.unit.sites.models import gpt2

TIED = {
    "gpt2-tied": lambda: gpt2(tied=True), "gemma2-tied": lambda: model_of("gemma2", tied=True),
    "opt-tied": lambda: model_of("opt", tied=True), "qwen3-moe-tied": lambda: model_of("qwen3-moe", tied=True),
}  # fmt: skip
FULL = {name: lambda name=name: model_of(name) for name in CONFIGS} | TIED
LORA = {f"{name}-lora": lambda name=name: adapted(name, model_of(name)) for name in CONFIGS}
MODELS = FULL | LORA


def bank():
    """Two overlapping directions to steer and one to watch."""
    rows = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.3
    return ConceptBank.from_directions({"pirate": rows[:2], "royal": rows[2]}, hook="blocks.0.hook_resid_post")


def started(name):
    """A model of a family with norms' gains away from where they begin, so that they matter."""
    model = MODELS[name]().train()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if is_norm(key):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def is_norm(name):
    return "norm" in name or "ln_" in name


def batch(step):
    tokens = torch.randint(1, WORDS, (4, 9), generator=torch.Generator().manual_seed(step))
    return {"input_ids": tokens, "labels": tokens}


def train(model, optimizer, steps):
    torch.manual_seed(0)  # of dropout
    for step in range(steps):
        model(**batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gain_of(value):
    return lambda coefficients, step: {"pirate": value}


def realised(model, optimizer, where):
    """What the steps of an optimizer do from now on at the sites."""
    seen = RealisedSteps(find_sites(model, bank(), where=where), bank().select("pirate").directions)
    seen.attach(optimizer)
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_an_adamw_update_has_the_gain_that_was_asked_for(name):
    start = started(name)
    for gain in (0.0, 2.0):
        model = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(trained(model), lr=1e-3, weight_decay=0.1)
        before = realised(model, optimizer, "update")
        with attach(model, optimizer, bank(), gain_of(gain), where="update", summary=False) as steering:
            after = realised(model, optimizer, "update")
            train(model, optimizer, 3)
            achieved = steering.metrics()["concept/pirate/achieved"]
        assert max(relative_errors(before, after, gain)) < (1e-5 if gain == 0 and name in FULL else 1e-3)
        assert achieved == pytest.approx(gain, abs=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_an_sgd_step_on_a_steered_gradient_has_the_gain_that_was_asked_for(name):
    start, steps = started(name), {}
    for key, parameter in start.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not is_norm(key))  # directions are those before the step
    for gain in (1.0, 0.0, 2.0):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(trained(model), lr=0.1)
        with attach(model, optimizer, bank(), gain_of(gain), summary=False):
            steps[gain] = realised(model, optimizer, "gradient")
            train(model, optimizer, 1)
    for gain in (0.0, 2.0):
        assert max(relative_errors(steps[1.0], steps[gain], gain)) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_observing_changes_no_bit(name):
    start, ends = started(name), []
    for where in (None, "gradient", "update"):
        model = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(trained(model), lr=1e-3)
        if where is None:
            train(model, optimizer, 2)
        else:
            with attach(model, optimizer, bank(), where=where, summary=False) as steering:
                train(model, optimizer, 2)
                metrics = steering.metrics()
            assert 0 < metrics["concept/pirate/gradient"] < 1
            assert metrics["concept/pirate/write/signed"] != 0
        ends.append(list(model.state_dict().values()))
    assert all(torch.equal(one, other) for end in ends[1:] for one, other in zip(ends[0], end, strict=True))


@pytest.mark.parametrize(("family", "name"), [("opt", "0.fc2"), ("qwen2-moe", "0.mlp.shared_expert.down_proj")])
def test_a_writer_that_receives_one_text_after_another_has_its_signed_write(family, name):
    model, caught = started(family), []
    (site,) = (each for each in find_sites(model, bank()) if each.name.endswith(f"{name}.weight"))
    before = site.parameter.detach().clone()
    optimizer = torch.optim.SGD([site.parameter], lr=1.0)
    with attach(model, optimizer, bank(), sites=[site], meters=["write"], summary=False) as steering:
        handle = site.module.register_forward_pre_hook(lambda _module, args: caught.append(args[0].detach()))
        train(model, optimizer, 1)
        handle.remove()
        found = steering.metrics()["concept/royal/write/signed"]
    assert caught[0].ndim == 2
    mean = caught[0].view(4, 9, -1)[:, :-1].mean((0, 1))  # the last token of a text predicts nothing
    expected = bank().select("royal").directions[0] @ (site.parameter.detach() - before) @ mean
    assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "mixtral-lora"])
def test_a_bound_on_the_edit_holds_for_every_expert_that_writes(name):
    model = started(name)
    optimizer = torch.optim.AdamW(trained(model), lr=1e-3)
    experts = [s for s in find_sites(model, bank(), where="update") if s.experts > 1 and s.role == "writer"]
    assert len(experts) == 1
    before, after = (RealisedSteps(experts, torch.eye(WIDTH)) for _ in range(2))  # every direction: the step itself
    before.attach(optimizer)
    with attach(model, optimizer, bank(), gain_of(30.0), where="update", norm_cap=0.1, summary=False):
        after.attach(optimizer)
        train(model, optimizer, 1)
    for site in experts:
        step, steered = (each.steps[0][site.name].unflatten(1, (3, -1)) for each in (before, after))
        step, edit = (each.norm(dim=(0, 2)) for each in (step, steered - step))
        assert (edit <= 0.11 * step).all()
        assert (edit > 0.05 * step).all()
