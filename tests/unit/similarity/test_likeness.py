"""The score: against a dense reference, and what it must not depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch.nn.functional import normalize

from interptrain.similarity import Reservoir, Top, cosine, rank_correlation, whitened


def dense(query, sample, corpus, ridge):
    """The formula with the covariance formed and its inverse root taken."""
    u = normalize(sample.double(), dim=-1)
    mean = u.mean(0)
    covariance = (u - mean).T @ (u - mean) / len(u)
    values, vectors = torch.linalg.eigh(covariance)
    kept = values[values > 1e-6 * values[-1]]
    root = (vectors * (1 + values.clamp_min(0) / (ridge * kept.mean())).rsqrt()) @ vectors.T
    asked = normalize((normalize(query.double(), dim=-1) - mean) @ root, dim=-1)
    scores, usual = ((normalize(each.double(), dim=-1) - mean) @ root @ asked.T for each in (corpus, sample))
    return ((scores - usual.mean(0)) / usual.std(0)).relu().square().mean(-1).sqrt()


@settings(max_examples=15, deadline=None)
@given(
    features=st.sampled_from([3, 8, 40]), count=st.sampled_from([5, 30]), ridge=st.sampled_from([0.1, 3.0, 100.0]),
    seed=st.integers(0, 20),
)  # fmt: skip
def test_whitened_is_its_formula(features, count, ridge, seed):
    generator = torch.Generator().manual_seed(seed)
    query, sample, corpus = (torch.randn(n, features, generator=generator) + 1 for n in (4, count, 6))
    found = whitened(query, sample, ridge=ridge)(corpus)
    torch.testing.assert_close(found.double(), dense(query, sample, corpus, ridge), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("rule", [whitened, cosine])
def test_how_long_a_gradient_is_and_what_it_is_scored_with_do_not_matter(rule):
    query, sample, corpus = torch.randn(4, 12), torch.randn(30, 12), torch.randn(9, 12)
    score = rule(query, sample)
    whole = score(corpus)
    torch.testing.assert_close(score(corpus * 100), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([score(each) for each in corpus.split(2)]), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rule(query * 7, sample)(corpus), whole, rtol=1e-3, atol=1e-4)


def test_what_every_document_asks_for_is_discounted():
    """A shared direction hides the skill from the cosine and hardly from the whitened score."""
    common, skill = 4 * torch.eye(40)[0], 1.5 * torch.eye(40)[1]
    own, found = torch.arange(110) >= 100, {whitened: 0.0, cosine: 0.0}
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(216, 41, generator=generator)
        documents = draw[:, :1] * common + 0.2 * draw[:, 1:]
        sample, query, others = documents[:200], documents[200:206] + skill, documents[206:] + skill
        corpus = torch.cat([sample[:100], others])
        for rule in found:
            found[rule] += float(own[rule(query, sample)(corpus).topk(10).indices].float().mean()) / 10
    assert found[whitened] > 0.8
    assert found[cosine] < found[whitened] - 0.1


def test_a_sample_of_equal_documents_gives_no_nonsense():
    score = whitened(torch.randn(3, 5), torch.ones(4, 5))
    assert bool(torch.isfinite(score(torch.ones(2, 5))).all())


def test_a_document_without_a_gradient_has_a_finite_score():
    score = whitened(torch.randn(3, 5), torch.randn(20, 5))
    assert bool(torch.isfinite(score(torch.zeros(2, 5))).all())


def test_too_little_to_compare_is_refused():
    with pytest.raises(ValueError, match="expected an example and two documents or more, found 0 and 5"):
        whitened(torch.zeros(0, 3), torch.randn(5, 3))


@given(st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=40), st.integers(1, 10))
def test_the_top_is_that_of_the_sorted_list(scores, count):
    top = Top(count)
    for number, score in enumerate(scores):
        top.add(number, score)
    expected = sorted(range(len(scores)), key=lambda number: (-scores[number], number))[:count]
    assert [number for number, _ in top.ranked()] == expected


def test_each_item_of_a_stream_has_the_same_chance():
    counts = torch.zeros(10)
    for seed in range(2000):
        few = Reservoir(3, seed=seed)
        for number in range(10):
            few.add(number)
        assert len(set(few.items)) == 3
        counts[few.items] += 1
    assert bool((counts - 600).abs().max() < 5 * (2000 * 0.3 * 0.7) ** 0.5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=30))
def test_the_rank_correlation_is_scipy_s_ties_included(pairs):
    a, b = torch.tensor(pairs, dtype=torch.float64).T
    if len(a.unique()) > 1 and len(b.unique()) > 1:
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a.numpy(), b.numpy()).statistic, abs=1e-5)
    else:
        assert rank_correlation(a, b) == 0
