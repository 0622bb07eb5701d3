"""What is dropped and what weighs how much, for any figures."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interptrain.attribution_rules import drop_above, drop_top, weights

FIGURES = st.lists(st.one_of(st.floats(-1e6, 1e6, width=32), st.just(math.nan)), max_size=40).map(torch.tensor)


@given(FIGURES, st.floats(0, 1))
def test_what_is_dropped_asks_for_at_least_as_much_as_what_stays(signed, share):
    dropped = drop_top(signed, share)
    assert int(dropped.sum()) == min(round(share * len(signed)), int(signed.isfinite().sum()))
    kept = signed[~dropped & ~signed.isnan()]
    if dropped.any() and len(kept):
        assert signed[dropped].min() >= kept.max()
    assert not (dropped & signed.isnan()).any()


@given(FIGURES, st.floats(-10, 10))
def test_every_z_above_the_threshold_is_dropped_and_no_other(z, threshold):
    expected = [bool(each > threshold) for each in z.double().tolist()]
    assert drop_above(z.double(), threshold).tolist() == expected


@given(FIGURES)
def test_no_weighted_example_asks_for_more_than_one_standard_deviation(z):
    found = weights(z)
    assert ((found > 0) & (found <= 1)).all()
    assert (found * z.nan_to_num(nan=0.0) <= 1 + 1e-5).all()
    assert (found[~(z > 1)] == 1).all()


def test_a_share_outside_of_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"from 0 to 1, found 1\.5"):
        drop_top(torch.zeros(3), 1.5)
