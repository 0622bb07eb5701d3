"""Directions and latents that separate two sets of texts."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from interptrain.concepts import collect, difference_of_means, effects, group_auc, separating_latents
from interptrain.concepts.contrast import TextActivations, auc
from interptrain.meters.tokens import loss_positions
from tests.helpers.models import HOOK, WIDTH, WORDS, llama


def texts(values, tokens_each=3):
    values = torch.as_tensor(values).float()
    return TextActivations(values, torch.arange(len(values)) // tokens_each)


EMPTY = TextActivations(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))


def batch(*, rows=4, length=7):
    ids = torch.randint(1, WORDS, (rows, length))
    labels = ids.clone()
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def planted(shown, *, seed, many=60, latents=6):
    """Texts on which latent 0 fires if the concept is shown; 5 is its double; 1 fires a little more often."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(many * 3, latents, generator=generator)
    values[:, 0] += shown * 3.0
    values[:, 5] = values[:, 0]
    values[:, 1] += shown * 0.3
    return texts(values)


DECODER = torch.cat([torch.eye(5), torch.eye(5)[:1]])


def test_auc_equals_an_independent_one_with_ties():
    positive, negative = torch.randint(0, 5, (40, 3)).float(), torch.randint(0, 4, (30, 3)).float()
    labels = torch.cat([torch.ones(40), torch.zeros(30)])
    for column, value in enumerate(auc(positive, negative)):
        expected = roc_auc_score(labels, torch.cat([positive, negative])[:, column])
        assert float(value) == pytest.approx(expected, abs=1e-6)


def test_difference_of_means_weighs_texts_and_not_tokens():
    long = TextActivations(torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]]), torch.tensor([0] * 9 + [1]))
    origin = TextActivations(torch.zeros(1, 2), torch.tensor([0]))
    torch.testing.assert_close(difference_of_means(long, origin), torch.full((2,), 0.5**0.5))


def test_the_planted_latent_is_found_and_its_double_passed_over():
    found = separating_latents(planted(1, seed=0), planted(0, seed=1), count=2, decoder=DECODER, min_auc=0.6)
    assert found.latents[0] in (0, 5)
    assert found.latents[1] == 1
    assert found.auc[0] == 1.0
    assert found.auc[0] > found.auc[1] > 0.6


def test_a_latent_with_more_effect_comes_first_and_dead_ones_never():
    effect = torch.tensor([0.1, 0.9, 5.0, 5.0, 5.0, 0.3])
    sets = planted(1, seed=0), planted(0, seed=1)
    found = separating_latents(*sets, count=2, decoder=DECODER, effect=effect, min_auc=0.6)
    assert found.latents == (1, 5)
    alive = torch.tensor([True, False, True, True, True, False])
    assert separating_latents(*sets, count=1, decoder=DECODER, effect=effect, alive=alive).latents == (0,)


def test_a_group_separates_texts_it_never_saw_and_shuffled_labels_do_not():
    found = separating_latents(planted(1, seed=0), planted(0, seed=1), count=2, decoder=DECODER, min_auc=0.6)
    held_out = group_auc(found, planted(1, seed=2), planted(0, seed=3))
    assert held_out.auc > 0.99
    assert abs(held_out.shuffled - 0.5) < 0.03
    assert held_out.auc > held_out.shuffled + 5 * held_out.shuffled_std


def test_too_few_latents_that_separate_are_an_error():
    with pytest.raises(ValueError, match=r"asked for 4 latents but only \d separate the two sets"):
        separating_latents(planted(1, seed=0), planted(0, seed=1), count=4, decoder=DECODER)


@pytest.mark.parametrize("which", [0, 1])
def test_an_empty_set_of_texts_is_an_error(which):
    sets = [planted(1, seed=0), planted(0, seed=1)]
    sets[which] = EMPTY
    with pytest.raises(ValueError, match="a set of texts is empty"):
        difference_of_means(*sets)
    with pytest.raises(ValueError, match="a set of texts is empty"):
        separating_latents(*sets, count=1, decoder=DECODER)
    with pytest.raises(ValueError, match="a set of texts is empty"):
        collect(llama(), HOOK, [])
    with pytest.raises(ValueError, match="a set of texts is empty"):
        effects(llama(), HOOK, [], torch.eye(WIDTH))


def test_a_text_without_counted_tokens_is_an_error():
    with pytest.raises(ValueError, match="text 1 has no counted tokens"):
        TextActivations(torch.ones(2, 3), torch.tensor([0, 2])).means()


def test_collect_gives_the_hidden_states_at_answer_positions_and_leaves_the_model_as_it_was():
    model, one, two = llama().train(), batch(), batch(rows=2, length=9)
    seen = collect(model, HOOK, [one, two])
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        model.eval()
        states = [model(each["input_ids"], output_hidden_states=True).hidden_states[2] for each in (one, two)]
    torch.testing.assert_close(
        seen.values, torch.cat([states[0][:, 3:6].flatten(0, 1), states[1][:, 3:8].flatten(0, 1)])
    )
    assert seen.text.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5]


def test_without_labels_collect_keeps_every_attended_token():
    given = batch(rows=2)
    del given["labels"]
    given["attention_mask"][1, 5:] = 0
    assert torch.bincount(collect(llama(), HOOK, [given]).text).tolist() == [7, 5]


def test_effects_are_the_slope_of_the_likelihood_when_a_direction_is_added():
    model, given = llama().double().eval(), batch()
    decoder = torch.randn(5, WIDTH)
    counted = loss_positions(given["labels"])[..., None]
    predicted = effects(model, HOOK, [given], decoder)

    def loss(direction, step):
        added = model.model.layers[1].register_forward_hook(lambda _m, _i, out: out + step * direction * counted)
        with torch.no_grad():
            value = model(**given).loss
        added.remove()
        return float(value)

    for row, effect in zip(decoder, predicted, strict=True):
        direction = (row / row.norm()).double()
        slope = (loss(direction, 3e-3) - loss(direction, -3e-3)) / 6e-3  # its norms compute in float32
        assert float(effect) == pytest.approx(-slope, rel=1e-2, abs=1e-3)


def test_collect_leaves_the_user_s_mask_as_it_was():
    model, mask = llama().eval(), torch.ones(2, 5, dtype=torch.bool)
    model.config.bos_token_id = 1
    ids = torch.tensor([[1, 4, 5, 6, 7], [1, 8, 9, 10, 11]])
    found = collect(model, HOOK, [{"input_ids": ids, "attention_mask": mask}])
    assert len(found.values) == 8  # without the BOS token of each
    assert mask.all()


def test_effects_of_a_frozen_model_are_those_of_one_that_trains():
    model, given, decoder = llama().eval(), batch(), torch.randn(5, WIDTH)
    trains = effects(model, HOOK, [given], decoder)
    frozen = effects(model.requires_grad_(False), HOOK, [given], decoder)
    assert torch.equal(frozen, trains)
    assert trains.abs().min() > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())
