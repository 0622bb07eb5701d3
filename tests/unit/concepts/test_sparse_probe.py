"""Probes on few latents."""

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from interptrain.concepts.contrast import auc
from interptrain.concepts.sparse_probe import sparse_probe


def sets(*, seed=0, texts=80, latents=12, marked=(3, 7)):
    generator = torch.Generator().manual_seed(seed)
    shown, other = (torch.rand(texts, latents, generator=generator) for _ in range(2))
    for strength, latent in enumerate(marked, start=1):
        shown[:, latent] += 0.3 * strength
    return shown, other


def test_the_planted_latents_are_chosen_those_that_differ_most_first():
    assert sparse_probe(*sets(), count=2).latents == (7, 3)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_weights_point_as_scikit_learn_s_shrunk_discriminant_does(count):
    shown, other = sets()
    probe = sparse_probe(shown, other, count=count)
    columns = list(probe.latents)
    labels = [1] * len(shown) + [0] * len(other)
    theirs = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
    theirs.fit(torch.cat([shown, other])[:, columns].double().numpy(), labels)
    expected = torch.tensor(theirs.coef_[0]).float()
    assert float(torch.cosine_similarity(probe.weights, expected, dim=0)) > 0.999


def test_more_latents_tell_held_out_texts_apart_better():
    held = sets(seed=1)
    scores = []
    for count in (1, 2):
        probe = sparse_probe(*sets(), count=count)
        scores.append(float(auc(*(side[:, list(probe.latents)] @ probe.weights[:, None] for side in held))[0]))
    assert scores[1] > scores[0] > 0.8


def test_latents_that_mark_the_absence_are_left_alone():
    shown, other = sets(marked=())
    other[:, 5] += 3.0
    probe = sparse_probe(shown, other, count=1)
    assert probe.latents != (5,)


def test_dead_latents_are_never_chosen():
    alive = torch.ones(12, dtype=torch.bool)
    alive[7] = False
    assert sparse_probe(*sets(), count=1, alive=alive).latents == (3,)


def test_a_latent_that_never_varies_within_a_set_is_the_first():
    shown, other = sets()
    shown[:, 2], other[:, 2] = 1.0, 0.0
    assert sparse_probe(shown, other, count=1).latents == (2,)


def test_too_few_latents_or_no_texts_are_errors():
    with pytest.raises(ValueError, match="asked for 12 latents but only"):
        sparse_probe(*sets(), count=12)
    with pytest.raises(ValueError, match="a set of texts is empty"):
        sparse_probe(torch.rand(0, 4), torch.rand(3, 4), count=1)
