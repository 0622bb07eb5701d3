"""Several ways to find a concept, and how each does on texts that it never saw."""

import pytest
import torch

from interptrain.concepts.candidates import Dictionary, TextSet, held_out, methods, text_auc, without_effects

WIDTH, LATENTS, TEXTS = 16, 40, 48


def dictionary(*, effect=True):
    generator = torch.Generator().manual_seed(5)
    decoder = torch.randn(LATENTS, WIDTH, generator=generator)
    return Dictionary(decoder, torch.ones(LATENTS, dtype=torch.bool), torch.arange(40.0) if effect else None)


def planted(shown, *, seed):
    """Texts that lie apart along axis 0, begin apart along axis 1, and on which latents 2, 3 and 5 to 9 fire."""
    generator = torch.Generator().manual_seed(seed)
    means, starts = (torch.randn(TEXTS, WIDTH, generator=generator) for _ in range(2))
    latents = torch.rand(TEXTS, LATENTS, generator=generator)
    means[:, 0] += 3.0 * shown
    starts[:, 1] += 6.0 * shown
    latents[:, [2, 3, 5, 6, 7, 8, 9]] += 1.0 * shown
    return TextSet(means, starts, latents)


SEARCH = planted(1, seed=0), planted(0, seed=1)
TEST = planted(1, seed=2), planted(0, seed=3)
EVERY = methods(dictionary(), group=4, sparse_counts=(1, 4))


def test_means_lie_along_what_differs_in_the_answers_and_start_means_along_what_differs_where_they_begin():
    assert EVERY["means"](*SEARCH).direction[0] > 0.9
    assert EVERY["start-means"](*SEARCH).direction[1] > 0.9


@pytest.mark.parametrize("name", list(EVERY))
def test_each_method_s_directions_are_unit_rows_and_its_score_tells_what_it_was_made_of(name):
    found = EVERY[name](*SEARCH)
    torch.testing.assert_close(found.directions.norm(dim=-1), torch.ones(len(found.directions)))
    assert len(found.latents) in (0, len(found.directions))
    if name != "start-means":
        assert text_auc(found, *TEST) > 0.95


def test_the_group_takes_the_latents_with_most_effect_of_those_that_separate():
    assert set(EVERY["latents"](*SEARCH).latents) == {6, 7, 8, 9}


@pytest.mark.parametrize("name", ["means", "linear-probe", "latents", "sparse-probe-4"])
def test_held_out_texts_are_told_apart_and_the_nulls_are_at_chance(name):
    nulls = without_effects(dictionary(), group=4, sparse_counts=(1, 4))
    found = held_out(EVERY[name](*SEARCH), nulls[name], SEARCH, TEST, dictionary())
    assert found.auc == text_auc(EVERY[name](*SEARCH), *TEST)
    for mean, spread in (found.shuffled, found.random):
        assert abs(mean - 0.5) < max(0.1, 2 * spread)
        assert found.auc > mean


def test_the_nulls_are_the_same_for_the_same_seed_and_the_search_is_not_changed_by_them():
    null = without_effects(None, group=4, sparse_counts=())["means"]
    candidate = EVERY["means"](*SEARCH)
    before = SEARCH[0].means.clone()
    first, again = (held_out(candidate, null, SEARCH, TEST, None, seed=3) for _ in range(2))
    assert first == again
    torch.testing.assert_close(SEARCH[0].means, before, rtol=0, atol=0)


def test_a_null_that_cannot_find_enough_latents_says_so():
    few = Dictionary(dictionary().decoder, torch.arange(LATENTS) < 3)
    with pytest.raises(ValueError, match="asked for 4 latents"):
        methods(few, group=4, sparse_counts=())["latents"](*SEARCH)
