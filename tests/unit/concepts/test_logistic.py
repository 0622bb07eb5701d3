"""Logistic regression against scikit-learn, with weights, and the choice of a penalty."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from interptrain.concepts.labelled import class_weights
from interptrain.concepts.logistic import lasso_logistic, least_l1, ridge_logistic, validated


def problem(count=40, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, width, generator=generator, dtype=torch.float64)
    positive = inputs[:, 0] + 0.7 * torch.randn(count, generator=generator, dtype=torch.float64) > 0.4
    return inputs, positive, torch.rand(count, generator=generator, dtype=torch.float64) + 0.1


@pytest.mark.parametrize("width", [1, 5, 80])  # 80: more than there are texts
@pytest.mark.parametrize("l2", [3.0, 0.1])
def test_it_is_scikit_learn_s_with_c_one_over_l2_and_the_same_weights(width, l2):
    inputs, positive, weights = problem(width=width)
    own, bias = ridge_logistic(inputs, positive, weights, l2)
    other = LogisticRegression(C=1 / l2, tol=1e-12, max_iter=10_000)
    other.fit(inputs.numpy(), positive.numpy(), sample_weight=weights.numpy())
    np.testing.assert_allclose(own.numpy(), other.coef_[0], rtol=1e-4, atol=1e-6)
    assert float(bias) == pytest.approx(float(other.intercept_[0]), rel=1e-4, abs=1e-6)


def test_with_an_l1_penalty_too():
    inputs, positive, weights = problem(count=120, width=12)
    l1 = 0.1 * least_l1(inputs, positive, weights)
    own, _ = lasso_logistic(inputs, positive, weights, l1)
    other = LogisticRegression(C=1 / l1, l1_ratio=1, solver="saga", tol=1e-10, max_iter=50_000)
    other.fit(inputs.numpy(), positive.numpy(), sample_weight=weights.numpy())
    np.testing.assert_allclose(own.numpy(), other.coef_[0], rtol=1e-3, atol=1e-4)
    assert 0 < int((own == 0).sum()) < 12


def test_the_least_penalty_that_leaves_nothing_leaves_nothing_and_less_leaves_something():
    inputs, positive, weights = problem()
    most = least_l1(inputs, positive, weights)
    assert not lasso_logistic(inputs, positive, weights, 1.01 * most)[0].any()
    assert lasso_logistic(inputs, positive, weights, 0.9 * most)[0].any()


def test_a_text_of_weight_two_is_that_text_twice():
    inputs, positive, _ = problem()
    weights = 1.0 + positive.double()
    doubled = torch.cat([inputs, inputs[positive]]), torch.cat([positive, positive[positive]])
    one = ridge_logistic(inputs, positive, weights, 0.2)
    two = ridge_logistic(*doubled, torch.ones(len(doubled[0])), 0.2)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)


def test_texts_that_are_told_apart_beyond_doubt_have_a_finite_answer():
    inputs = torch.tensor([[1.0], [2.0], [-1.0], [-2.0]])
    positive = torch.tensor([True, True, False, False])
    weight, bias = ridge_logistic(inputs, positive, class_weights(positive), 1e-4)
    assert weight.isfinite().all()
    assert float(bias) == pytest.approx(0, abs=1e-6)
    assert ((inputs.double() @ weight + bias > 0) == positive).all()


def test_where_one_dimension_tells_and_many_do_not_a_strong_penalty_is_chosen():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(24, 200, generator=generator)
    positive = torch.arange(24) % 2 == 0
    _, random = validated(ridge_logistic, inputs, positive, (100.0, 1e-4), parts=4, seed=0)
    inputs[:, 0] += 20.0 * positive
    _, there = validated(ridge_logistic, inputs, positive, (100.0, 1e-4), parts=4, seed=0)
    assert (random, there) == (100.0, 1e-4)
