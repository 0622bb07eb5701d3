"""Every axis by experiment: move the parameter or the stream along a direction and watch the model."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from interptrain.sites import HookPoint, find_sites
from tests.helpers.models import WIDTH, lora
from tests.unit.sites.models import FAMILIES, bank, shaken

TOKENS = torch.tensor([[3, 1, 4, 15, 9]])
HUGGING_FACE = [name for name in FAMILIES if name != "plain"]
CASES = [(name, False) for name in FAMILIES] + [(name, True) for name in HUGGING_FACE]


def build(family, adapted):
    model = FAMILIES[family]()
    return shaken(lora(model, bias="lora_only") if adapted else model)


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
        name = f"blocks.{int(layer)}.hook_{'resid_mid' if half < 0.5 else 'resid_post'}"
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


def outer_on_axis(along, other, axis, ndim):
    """`along` on one axis of a parameter and `other` on the rest."""
    if ndim == 1:
        return along.clone()
    return torch.outer(along, other) if axis == 0 else torch.outer(other, along)


@pytest.mark.parametrize(("family", "adapted"), CASES)
def test_a_writer_moved_along_a_direction_moves_the_stream_along_it_and_nowhere_else(family, adapted):
    model = build(family, adapted)
    direction = normalize(torch.randn(WIDTH).double(), dim=0)
    for site in sites_of(model, "writer"):
        before, kept = stream_after(model, site), site.parameter.detach().clone()
        other = torch.randn(kept.numel() // WIDTH).double()
        site.parameter.data += outer_on_axis(site.directions(direction[None])[0], other, site.axis, kept.ndim)
        moved = stream_after(model, site) - before
        site.parameter.data.copy_(kept)
        along = (moved @ direction)[..., None] * direction
        assert moved.norm() > 1e-3, site.name
        assert (moved - along).norm() < 1e-9 * moved.norm(), site.name


@pytest.mark.parametrize(("family", "adapted"), CASES)
def test_a_stream_moved_along_a_direction_reaches_a_reader_along_the_sites_direction(family, adapted):
    model = build(family, adapted)
    for site in sites_of(model, "reader"):
        direction = away_from(value_at(model, site.norm.module, "input")[0])
        moved = answer(model, site, direction, "input")
        expected = site.directions(direction[None])[0]
        assert expected.norm() == pytest.approx(1), site.name
        assert cosine_similarity(moved, expected, dim=-1).min() > 0.99999, site.name


@pytest.mark.parametrize(("family", "adapted"), CASES)
def test_a_readers_step_without_the_sites_direction_does_not_change_how_it_answers_to_the_stream(family, adapted):
    model = build(family, adapted)
    for site in sites_of(model, "reader"):
        direction = away_from(value_at(model, site.norm.module, "input")[0])
        seen = site.directions(direction[None])[0]
        step = torch.randn_like(site.parameter)
        columns = step if site.axis == 1 else step.T
        unseen = columns - torch.outer(columns @ seen, seen)
        start = answer(model, site, direction, "output")
        plain = answer(model, site, direction, "output", step) - start
        cleaned = answer(model, site, direction, "output", unseen if site.axis == 1 else unseen.T) - start
        assert plain.norm() > 0.1 * start.norm(), site.name
        assert cleaned.norm() < 1e-3 * plain.norm(), site.name


def away_from(stream):
    """A unit direction across every token's activation, centred or not: there first order is exact."""
    taken = torch.cat([stream, stream - stream.mean(-1, keepdim=True)])
    basis = torch.linalg.qr(taken.T)[0]
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5)).double() + 0.5
    return normalize(direction - basis @ (basis.T @ direction), dim=0)


def answer(model, site, direction, side, step=0.0):
    """How a reader's input or output moves when the stream in front of its norm moves along a direction."""
    norm = site.norm.module
    small = 1e-2 * value_at(model, norm, "input").norm(dim=-1, keepdim=True) * direction
    site.parameter.data += step
    ends = []
    for by in (small, -small):
        handle = norm.register_forward_pre_hook(lambda _module, args, by=by: (args[0] + by,))
        ends.append(value_at(model, site.module, side))
        handle.remove()
    site.parameter.data -= step
    return ends[0] - ends[1]
