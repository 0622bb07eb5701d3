"""Every axis by experiment: move the parameter or the stream along a direction and watch the model."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from interptrain.sites import HookPoint, find_sites
from interptrain.sites.stack import find_stack
from tests.helpers.models import WIDTH, lora
from tests.unit.sites.families import APPROXIMATE, CONFIGS, adapted, model_of
from tests.unit.sites.models import FAMILIES, bank, shaken

TOKENS = torch.tensor([[3, 1, 4, 15, 9]])
HUGGING_FACE = [name for name in FAMILIES if name != "plain"]
EXACT = [name for name in CONFIGS if name not in APPROXIMATE]
CASES = [(name, False) for name in (*FAMILIES, *EXACT)] + [(name, True) for name in (*HUGGING_FACE, *EXACT)]
READERS = [*CASES, *((name, with_lora) for name in APPROXIMATE for with_lora in (False, True))]


def build(family, with_lora):
    if family in CONFIGS:
        model = model_of(family)
        return shaken(adapted(family, model) if with_lora else model)
    model = FAMILIES[family]()
    return shaken(lora(model, bias="lora_only") if with_lora else model)


def sites_of(model, role):
    """Sites of a role wherever they stand: writers up to the last hook, readers from the first."""
    last = "blocks.1.hook_resid_post" if role == "writer" else "blocks.0.hook_resid_pre"
    sites = [site for site in find_sites(model, bank(hook=last), where="update") if site.role == role]
    assert sites
    return sites


def stream_after(model, site):
    """The stream right behind a writer: what it added is in it, and nothing has yet reacted."""
    layer, half = divmod(site.position, 1)
    name = "blocks.0.hook_resid_pre"
    if site.position >= 0:
        between = half < 0.5 and not find_stack(model).family.parallel
        name = f"blocks.{int(layer)}.hook_{'resid_mid' if between else 'resid_post'}"
    module, side = HookPoint.parse(name).locate(model)
    return value_at(model, module, side)


def value_at(model, module, side):
    """A module's first input or output in a forward pass."""
    seen = []
    if side == "input":
        handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    else:
        handle = module.register_forward_hook(
            lambda _module, _args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.no_grad():
        model(input_ids=TOKENS)
    handle.remove()
    return seen[0].detach().clone()


def along_axis(values, axis, ndim):
    """A vector on one axis of a parameter."""
    return values.view([-1 if number == axis else 1 for number in range(ndim)])


def on_axis(along, shape, axis):
    """`along` on one axis of a parameter and random numbers on the others."""
    others = torch.randn([1 if number == axis else size for number, size in enumerate(shape)]).double()
    return others * along_axis(along, axis, len(shape))


def without(step, along, axis):
    """A step without its component along a direction on one axis."""
    along = along_axis(along, axis, step.ndim)
    return step - (step * along).sum(axis, keepdim=True) * along


@pytest.mark.parametrize(("family", "with_lora"), CASES)
def test_a_writer_moved_along_a_direction_moves_the_stream_along_it_and_nowhere_else(family, with_lora):
    model = build(family, with_lora)
    direction = normalize(torch.randn(WIDTH).double(), dim=0)
    for site in sites_of(model, "writer"):
        before, kept = stream_after(model, site), site.parameter.detach().clone()
        site.parameter.data += on_axis(site.directions(direction[None])[0], kept.shape, site.axis)
        moved = stream_after(model, site) - before
        site.parameter.data.copy_(kept)
        along = (moved @ direction)[..., None] * direction
        assert moved.norm() > 1e-3, site.name
        assert (moved - along).norm() < 1e-9 * moved.norm(), site.name


@pytest.mark.parametrize(("family", "with_lora"), READERS)
def test_a_stream_moved_along_a_direction_reaches_a_reader_along_the_sites_direction(family, with_lora):
    model = build(family, with_lora)
    for site in sites_of(model, "reader"):
        direction = away_from(value_at(model, front(model, site), "input"))
        moved = answer(model, site, direction, "input")
        expected = site.directions(direction[None])[0]
        assert expected.norm() == pytest.approx(1), site.name
        assert cosine_similarity(moved, expected, dim=-1).min() > 0.99999, site.name


@pytest.mark.parametrize(("family", "with_lora"), READERS)
def test_a_readers_step_without_the_sites_direction_does_not_change_how_it_answers_to_the_stream(family, with_lora):
    model = build(family, with_lora)
    for site in sites_of(model, "reader"):
        direction = away_from(value_at(model, front(model, site), "input"))
        seen = site.directions(direction[None])[0]
        step = torch.randn_like(site.parameter)
        unseen = without(step, seen, site.axis)
        start = answer(model, site, direction, "output")
        plain = answer(model, site, direction, "output", step) - start
        cleaned = answer(model, site, direction, "output", unseen) - start
        assert plain.norm() > 0.1 * start.norm(), site.name
        assert cleaned.norm() < 1e-3 * plain.norm(), site.name


def away_from(stream):
    """A unit direction across every token's activation, centred or not: there first order is exact."""
    stream = stream.view(-1, WIDTH)
    taken = torch.cat([stream, stream - stream.mean(-1, keepdim=True)])
    basis = torch.linalg.qr(taken.T)[0]
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5)).double() + 0.5
    return normalize(direction - basis @ (basis.T @ direction), dim=0)


def front(model, site):
    """What receives the stream in front of a reader: its norm, or the reader where it has none."""
    return receiver(model, site)[0] if site.norm is None else site.norm.module


def answer(model, site, direction, side, step=0.0):
    """How a reader's input or output moves when the stream in front of its norm moves along a direction.

    A weight that no module of its own applies, as an expert's, has what it does to its input as its output.
    """
    norm, (module, held) = front(model, site), receiver(model, site)
    small = 1e-2 * value_at(model, norm, "input").norm(dim=-1, keepdim=True) * direction
    site.parameter.data += step
    ends, weight = [], held()
    for by in (small, -small):
        handle = norm.register_forward_pre_hook(lambda _module, args, by=by: (args[0] + by,))
        ends.append(value_at(model, module, "input" if weight is not None else side))
        handle.remove()
    site.parameter.data -= step
    moved = ends[0] - ends[1]
    return moved if weight is None or side == "input" else moved.view(-1, WIDTH) @ weight.transpose(-2, -1)


def receiver(model, site):
    """The module that receives a reader's input, and what makes the present whole weight where it holds that itself."""
    around = model.get_submodule(site.name.rpartition(".lora_A.")[0]) if site.lora else site.module
    if "parameter_name" in vars(around):  # PEFT's own word for s B A, expert by expert
        return around, lambda: around.get_delta_weight("default")
    if type(site.module).__name__ in ("Linear", "Conv1D"):
        return site.module, lambda: None
    return site.module, lambda: site.parameter.detach().clone()
