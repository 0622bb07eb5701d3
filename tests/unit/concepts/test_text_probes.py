"""Probes of texts: what they compute, what they are indifferent to, and that they find what is there."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from interptrain.concepts.attention_probe import AttentionProbe
from interptrain.concepts.contrast import TextActivations
from interptrain.concepts.labelled import Labelled, class_weights, folds
from interptrain.concepts.latent_probe import LatentProbe
from interptrain.concepts.logistic import ridge_logistic
from interptrain.concepts.probes import PROBES, Fitting, fit_labelled, fit_probe, parameters_of, reads_latents
from interptrain.concepts.segments import segment_max, segment_mean, segment_softmax
from interptrain.concepts.text_probe import PooledProbe, distinct_rows, probe_auc
from tests.helpers.texts import permuted, texts, twice, two_sets

QUICK = Fitting(steps=30, sparse=4)


def attention(*, width=6, heads=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    query, value = (torch.randn(heads, width, generator=generator, dtype=dtype) for _ in range(2))
    return AttentionProbe(query, value, torch.tensor(0.3, dtype=dtype))


def some_probes():
    weight = torch.randn(6, generator=torch.Generator().manual_seed(3))
    pooled = [PooledProbe(weight, torch.tensor(-0.2), pool) for pool in ("mean", "max")]
    inner = PooledProbe(weight[:2], weight[2], "max")
    latents = LatentProbe(torch.tensor([4, 0]), torch.eye(2), torch.ones(2), inner, 6)
    return [*pooled, attention(), latents]


def sae():
    torch.manual_seed(0)
    return StandardSAE(StandardSAEConfig(d_in=6, d_sae=24))


def as_seen(name, pair, dictionary):
    if not reads_latents(name):
        return pair
    with torch.no_grad():
        return tuple(TextActivations(dictionary.encode(each.values), each.text) for each in pair)


def dense_scores(query, value, bias, given):
    """The attention probe of texts padded to one length, `[text, token, width]`, a masked softmax."""
    lengths = torch.bincount(given.text).tolist()
    padded = torch.nn.utils.rnn.pad_sequence(given.values.split(lengths), batch_first=True, padding_value=7.0)
    there = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    logits = torch.einsum("ntd,hd->nht", padded, query).masked_fill(~there[:, None], -torch.inf)
    found = torch.einsum("nht,ntd,hd->n", logits.softmax(-1), padded, value)
    return found + bias


def test_a_text_s_attention_weights_sum_to_one_for_every_head():
    given, probe = texts(12), attention()
    sums = torch.zeros(12, 3).index_add(0, given.text, probe.weights(given))
    torch.testing.assert_close(sums, torch.ones(12, 3))


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_scores_and_gradients_are_those_of_a_padded_reference_in_float64(scale):
    given = texts(9, dtype=torch.float64)
    given = TextActivations(given.values * scale, given.text)
    probe = attention(dtype=torch.float64)
    leaves = [each.clone().requires_grad_() for each in (probe.query, probe.value, probe.bias)]
    others = [each.clone().requires_grad_() for each in (probe.query, probe.value, probe.bias)]
    found, expected = AttentionProbe(*leaves).score(given), dense_scores(*others, given)
    torch.testing.assert_close(found, expected)
    for own, reference in zip(
        torch.autograd.grad(found.sin().sum(), leaves), torch.autograd.grad(expected.sin().sum(), others), strict=True
    ):
        torch.testing.assert_close(own, reference, rtol=1e-7, atol=1e-7 * scale)


def test_without_a_query_it_is_the_mean_and_with_a_sharp_one_the_max():
    given, weight = texts(10), torch.randn(6)
    mean, most = (PooledProbe(weight, torch.tensor(0.0), pool).score(given) for pool in ("mean", "max"))
    even = AttentionProbe(torch.zeros(1, 6), weight[None], torch.tensor(0.0)).score(given)
    sharp = AttentionProbe(1e4 * weight[None], weight[None], torch.tensor(0.0)).score(given)
    torch.testing.assert_close(even, mean)
    torch.testing.assert_close(sharp, most, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("probe", some_probes(), ids=lambda probe: type(probe).__name__)
def test_contributions_and_the_bias_sum_to_the_score(probe):
    given = texts(11)
    bias = getattr(probe, "inner", probe).bias
    sums = torch.zeros(11).index_add(0, given.text, probe.contributions(given))
    torch.testing.assert_close(sums + bias, probe.score(given))


@pytest.mark.parametrize("probe", some_probes(), ids=lambda probe: type(probe).__name__)
def test_the_order_of_tokens_and_of_texts_does_not_matter(probe):
    given = texts(8)
    torch.testing.assert_close(probe.score(permuted(given)), probe.score(given))
    turned = TextActivations(given.values, 7 - given.text)
    torch.testing.assert_close(probe.score(turned), probe.score(given).flip(0))


@pytest.mark.parametrize("probe", some_probes(), ids=lambda probe: type(probe).__name__)
def test_a_text_of_one_token_is_scored_by_that_token(probe):
    token = torch.randn(1, 6)
    alone = probe.score(TextActivations(token, torch.tensor([0])))
    among = probe.score(TextActivations(torch.cat([torch.randn(5, 6), token]), torch.tensor([0, 0, 0, 0, 0, 1])))
    torch.testing.assert_close(alone[0], among[1])


def test_pooling_is_that_of_each_text_by_itself():
    given = texts(7)
    parts = given.values.split(torch.bincount(given.text).tolist())
    torch.testing.assert_close(segment_mean(given.values, given.text, 7), torch.stack([p.mean(0) for p in parts]))
    torch.testing.assert_close(segment_max(given.values, given.text, 7), torch.stack([p.amax(0) for p in parts]))
    torch.testing.assert_close(
        segment_softmax(given.values, given.text, 7), torch.cat([part.softmax(0) for part in parts])
    )


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_finds_what_is_there_and_nothing_where_labels_are_shuffled(name):
    dictionary = sae()
    fitted, held = (as_seen(name, two_sets(30, apart=2.0, seed=seed), dictionary) for seed in (0, 10))
    decoder = dictionary.W_dec.detach()
    probe = fit_probe(name, *fitted, fitting=QUICK, decoder=decoder)
    assert probe_auc(probe, *held) > 0.9
    nulls = [
        probe_auc(fit_labelled(name, Labelled.of(*fitted).shuffled(seed), fitting=QUICK, decoder=decoder), *held)
        for seed in range(2)
    ]
    assert sum(nulls) / len(nulls) < 0.75
    assert parameters_of(probe) > 1


@pytest.mark.parametrize("name", PROBES)
def test_directions_are_unit_rows_in_the_stream_that_point_at_the_concept(name):
    dictionary = sae()
    pair = as_seen(name, two_sets(30, apart=3.0), dictionary)
    rows = fit_probe(name, *pair, fitting=QUICK, decoder=dictionary.W_dec.detach()).directions()
    assert rows.shape[1] == 6
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(len(rows)))
    assert float(rows[0, 0]) > 0.3
    assert (rows @ rows.T - torch.eye(len(rows))).abs().max() <= 0.9


@pytest.mark.parametrize("name", ["mean", "attention", "latents-l1"])
def test_the_same_seed_gives_the_same_probe_to_the_last_bit(name):
    dictionary = sae()
    pair = as_seen(name, two_sets(8), dictionary)
    one, two = (fit_probe(name, *pair, fitting=QUICK, decoder=dictionary.W_dec.detach()) for _ in range(2))
    assert torch.equal(one.score(pair[0]), two.score(pair[0]))


def test_one_token_in_a_long_text_is_lost_on_a_mean_and_found_by_attention():
    def haystack(seed, shown):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(60, 50, 8, generator=generator)
        if shown:
            values[torch.arange(60), torch.randint(50, (60,), generator=generator), 0] += 8.0
        return TextActivations(values.flatten(0, 1), torch.arange(60).repeat_interleave(50))

    fitted, held = ((haystack(seed, True), haystack(seed + 1, False)) for seed in (0, 10))
    mean, attending = (probe_auc(fit_probe(name, *fitted, fitting=QUICK), *held) for name in ("mean", "attention"))
    assert attending > 0.95 > 0.9 > mean


def test_duplicating_a_class_changes_nothing_of_a_mean_pool_probe():
    shown, absent = two_sets(12)
    solutions = []
    for each in (Labelled.of(shown, absent), Labelled.of(twice(shown), absent)):
        weights = class_weights(each.positive)
        assert float(weights[each.positive].sum()) == pytest.approx(0.5)
        means = segment_mean(each.values, each.text, len(each))
        solutions.append(ridge_logistic(means, each.positive, weights, 0.01))
    torch.testing.assert_close(*solutions, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["linear-mean", "mean", "attention"])
def test_where_one_class_has_ten_times_the_texts_even_odds_lie_between_the_classes_all_the_same(name):
    shown, absent = texts(8, apart=1.5, seed=1), texts(80, seed=2)
    probe = fit_probe(name, shown, absent, fitting=QUICK)
    right = [float((probe.score(texts(200, apart=x, seed=3)) > 0).float().mean()) for x in (1.5, 0)]
    assert right[0] > 0.75
    assert right[1] < 0.25


def test_every_part_that_is_held_out_has_texts_of_both_classes():
    positive = torch.tensor([True] * 3 + [False] * 11)
    parts = folds(positive, 5, seed=0)
    assert parts.unique().tolist() == [0, 1, 2]
    for part in range(3):
        assert 0 < int(positive[parts == part].sum()) < int((parts == part).sum())


def test_latents_that_speak_against_the_concept_are_none_of_its_directions():
    inner = PooledProbe(torch.tensor([1.0, -2.0, 0.5]), torch.tensor(0.0), "mean")
    probe = LatentProbe(torch.tensor([7, 2, 5]), torch.eye(3), torch.tensor([1.0, -1.0, 1.0]), inner, 9)
    assert probe.named() == (7, 5)
    assert probe.named(1) == (7,)
    torch.testing.assert_close(probe.directions(), torch.eye(3)[[0, 2]])


def test_of_rows_that_are_nearly_one_the_longest_stays():
    rows = torch.tensor([[1.0, 0.0], [-3.0, 0.1], [0.0, 0.5]])
    torch.testing.assert_close(distinct_rows(rows), rows[1:] / rows[1:].norm(dim=-1, keepdim=True))
    assert distinct_rows(torch.zeros(2, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("name", "pair", "decoder", "said"),
    [
        ("quadratic", two_sets(), None, "unknown probe 'quadratic'; there are linear-mean"),
        ("mean", (texts(1), texts(4)), None, "the positive set has 1 texts, expected two or more"),
        ("mean", (texts(4), texts(4, width=5)), None, "width 6 and 5"),
        ("latents-k", two_sets(), None, "give the decoder"),
        ("latents-k", two_sets(), torch.ones(4, 6), "6 latents and a decoder of 4 rows"),
        (
            "mean",
            (TextActivations(torch.ones(3, 6), torch.tensor([0, 0, 2])), texts(4)),
            None,
            "text 1 of the",
        ),
    ],
)
def test_what_cannot_be_fitted_is_an_error_that_says_why(name, pair, decoder, said):
    with pytest.raises(ValueError, match=said):
        fit_probe(name, *pair, decoder=decoder)


def test_latents_that_never_fire_are_an_error():
    silent = TextActivations(torch.zeros(6, 4), torch.arange(6))
    with pytest.raises(ValueError, match="no latent differs"):
        fit_probe("latents-k", silent, silent, decoder=torch.eye(4))
