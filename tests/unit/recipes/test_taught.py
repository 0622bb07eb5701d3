"""What a run taught besides its task: planted latents are named, and none where nothing was planted."""

import numpy as np
import pytest
import torch

from interptrain.meters.tokens import loss_positions
from interptrain.recipes.style_axes import leading_axes
from interptrain.recipes.taught import Along, Taught, outside, text_demands
from interptrain.sites.hooks import HookPoint
from tests.helpers.models import gpt2, llama

WIDTH, LATENTS, TEXTS = 24, 60, 80
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def dictionary(random):
    rows = torch.randn(LATENTS, WIDTH, generator=random)
    return rows / rows.norm(dim=-1, keepdim=True)


def noise(random, scale=1.0):
    return scale * torch.randn(TEXTS, WIDTH, generator=random)


def taught(dictionary, demands, shifts, task=None):
    task = torch.eye(WIDTH)[:1] if task is None else task
    alive = torch.ones(LATENTS, dtype=torch.bool)
    alive[5] = False
    return Taught.of(HOOK, dictionary, alive, task=task, demands=demands, shifts=shifts, spread=2.0)


def batch(ids, labels):
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_text_s_demand_is_how_its_loss_falls_along_a_direction(make):
    """Against central differences of the summed loss, in float64, with the direction added at the counted tokens."""
    model = make().double().eval()
    ids = torch.randint(0, 16, (3, 7), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :3] = -100
    width = model.config.hidden_size
    direction = torch.randn(width, generator=torch.Generator().manual_seed(2)).double()
    demands = text_demands(model, HOOK, [batch(ids[:2], labels[:2]), batch(ids[2:], labels[2:])])

    def losses(step):
        def add(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            moved = hidden + step * loss_positions(labels)[..., None] * direction
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
        handle = blocks[1].register_forward_hook(add)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        handle.remove()
        kept = labels[:, 1:] != -100
        own = logits.gather(-1, labels[:, 1:].clamp_min(0)[..., None])[..., 0]
        return -(own * kept).sum(-1)

    fall = -(losses(1e-4) - losses(-1e-4)) / 2e-4
    assert torch.allclose(demands.double() @ direction, fall, rtol=1e-3, atol=1e-3)


def test_reading_demands_leaves_the_model_as_it_was():
    model = llama().train()
    ids = torch.randint(0, 16, (2, 5))
    text_demands(model, HOOK, [batch(ids, ids)])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    layer = HookPoint.parse(HOOK).layer
    assert not model.model.layers[layer]._forward_hooks


def test_demands_can_be_read_where_nothing_before_the_hook_trains():
    model = llama().requires_grad_(False)
    ids = torch.randint(0, 16, (2, 5))
    assert text_demands(model, "blocks.0.hook_resid_pre", [batch(ids, ids)]).norm() > 0


def test_what_is_outside_a_span_is_orthogonal_to_it_and_the_rest_lies_in_it(random):
    vectors, span = torch.randn(9, WIDTH, generator=random), torch.randn(4, WIDTH, generator=random)
    left = outside(vectors, span).double()
    assert (left @ span.double().T).abs().max() < 1e-5
    solved = np.linalg.lstsq(span.T.double().numpy(), vectors.T.double().numpy(), rcond=None)[0]
    assert torch.allclose(vectors.double() - left, torch.from_numpy(solved).T @ span.double(), atol=1e-5)


def test_the_figures_along_latents_are_those_of_their_formulas(dictionary, random):
    vectors = noise(random) + dictionary[3]
    found = Along.of(dictionary, vectors)
    x = (vectors.double() @ dictionary.T.double()).numpy()
    assert np.allclose(found.z, x.mean(0) / np.sqrt((x.mean(0) ** 2).mean()), rtol=1e-4)
    assert np.allclose(found.t, x.sum(0) / np.sqrt((x**2).sum(0)), rtol=1e-4)
    again = Along.of(dictionary, 7 * vectors)
    assert torch.allclose(found.z, again.z, rtol=1e-4)
    assert torch.allclose(found.t, again.t, rtol=1e-4)


def test_under_random_signs_the_largest_t_is_what_noise_has(dictionary, random):
    """The null's draws and the largest of noise itself are of one size; a planted latent is far above both."""
    pure, planted = Along.of(dictionary, noise(random)), Along.of(dictionary, noise(random) + 2 * dictionary[3])
    assert pure.t.abs().max() <= pure.null_top.max()
    assert 2 < pure.null_top.mean() < 4
    assert planted.t[3] > 1.3 * planted.null_top.max()


def test_a_latent_that_was_asked_for_and_came_is_named_first(dictionary, random):
    found = taught(dictionary, noise(random) + 3 * dictionary[7], noise(random, 0.3) + 2 * dictionary[7])
    assert found.named[0] == found.latents[0] == 7
    assert found.rows(4)[0]["named"]
    assert found.rows(4)[0]["latent"] == 7


@pytest.mark.parametrize(
    ("asked", "came"),
    [(0.0, 0.0), (3.0, 0.0), (0.0, 2.0), (-3.0, 2.0), (3.0, -2.0)],
    ids=["neither", "asked only", "came only", "less was asked for", "it went away"],
)
def test_what_was_not_both_asked_for_and_came_is_not_named(dictionary, random, asked, came):
    found = taught(dictionary, noise(random) + asked * dictionary[7], noise(random, 0.3) + came * dictionary[7])
    assert 7 not in found.named


def test_what_one_text_alone_asks_for_is_not_named(dictionary, random):
    """However much it asks: under random signs of the texts the sum would be as large."""
    demands = noise(random)
    demands[0] += 5 * TEXTS * dictionary[7]
    found = taught(dictionary, demands, noise(random, 0.3) + 2 * dictionary[7])
    assert found.latents[0] == 7
    assert found.score[7 - (7 > 5)] > 2
    assert found.named == ()


def test_a_latent_of_the_task_is_not_named(dictionary, random):
    demands, shifts = noise(random) + 3 * dictionary[7], noise(random, 0.3) + 2 * dictionary[7]
    found = taught(dictionary, demands, shifts, task=dictionary[7][None])
    assert 7 not in found.named
    assert found.task_share > 0.9
    assert taught(dictionary, demands, shifts).task_share < 0.2


def test_a_latent_that_never_fires_is_in_no_place(dictionary, random):
    found = taught(dictionary, noise(random) + 3 * dictionary[5], noise(random, 0.3) + 2 * dictionary[5])
    assert 5 not in found.latents
    assert sorted([*found.latents, 5]) == list(range(LATENTS))


def test_the_share_explained_is_that_of_least_squares_and_grows(dictionary, random):
    shifts = noise(random, 0.1) + 2 * dictionary[7] + dictionary[9]
    found = taught(dictionary, noise(random) + 3 * dictionary[7], shifts)
    rest = outside(shifts, torch.eye(WIDTH)[:1]).mean(0).double().numpy()
    shares = []
    for count in (1, 3, 10):
        rows = dictionary[list(found.latents[:count])].double().numpy()
        left = rest - rows.T @ np.linalg.lstsq(rows.T, rest, rcond=None)[0]
        shares.append(1 - (left**2).sum() / (rest**2).sum())
        own, null = found.explained(count)
        assert own == pytest.approx(shares[-1], abs=1e-4)
        assert null.shape == (64,)
    assert shares == sorted(shares)
    assert found.explained(1)[0] > 3 * found.explained(1)[1].mean()


def test_where_nothing_moved_nothing_is_named_and_nothing_explained(dictionary, random):
    found = taught(dictionary, noise(random) + 3 * dictionary[7], torch.zeros(TEXTS, WIDTH))
    assert found.named == ()
    assert found.explained(3)[0] == 0.0
    assert found.moved == 0.0


def test_how_far_it_moved_is_over_the_texts_own_spread(dictionary, random):
    shifts = noise(random)
    assert taught(dictionary, noise(random), shifts).moved == pytest.approx(float(shifts.mean(0).norm()) / 2.0)


def test_the_leading_axes_are_those_of_the_second_moment(random):
    differences = torch.randn(30, WIDTH, generator=random) * torch.linspace(3, 0.1, WIDTH)
    axes = leading_axes(differences, 3).double()
    _, vectors = np.linalg.eigh((differences.double().T @ differences.double()).numpy())
    best = torch.from_numpy(vectors[:, ::-1][:, :3].copy())
    assert torch.allclose((axes @ best).abs(), torch.eye(3).double(), atol=1e-3)
    assert torch.allclose(axes @ axes.T, torch.eye(3).double(), atol=1e-5)
    with pytest.raises(ValueError, match="asked for 31 axes of 30 texts"):
        leading_axes(differences, 31)
