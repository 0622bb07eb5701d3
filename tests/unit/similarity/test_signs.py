"""The random signs: the same from a seed, drawn in blocks, and true to inner products on average."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interptrain.similarity import Folding, Signs
from interptrain.similarity.signs import BLOCK


def dense(signs: Signs) -> torch.Tensor:
    return signs.times(torch.eye(signs.width, dtype=torch.float64)).T


def test_the_matrix_is_of_signs_over_the_root_of_its_rows():
    assert torch.equal(dense(Signs(9, 40, "x")).abs(), torch.full((9, 40), 1 / 3, dtype=torch.float64))


def test_the_same_name_and_seed_give_the_same_matrix_and_others_another():
    x = torch.randn(3, BLOCK + 7)
    found = [Signs(8, BLOCK + 7, name, seed=seed).times(x) for name, seed in (("a", 0), ("a", 0), ("b", 0), ("a", 1))]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert not torch.allclose(found[0], found[3])


def test_signs_that_are_drawn_anew_are_those_that_are_kept():
    x = torch.randn(2, 2 * BLOCK + 1)
    kept, drawn = (Signs(5, 2 * BLOCK + 1, "x", keep=keep) for keep in (True, False))
    assert torch.equal(kept.times(x), kept.times(x))
    assert torch.equal(kept.times(x), drawn.times(x))


def test_the_blocks_of_a_wide_matrix_are_unlike():
    first, second = (Signs(4, 2 * BLOCK, "x")._block(number, torch.device("cpu")).float() for number in (0, 1))
    assert abs(float((first * second).mean())) < 0.05


def test_half_precision_is_multiplied_in_single():
    x = torch.randn(4, 300).bfloat16()
    signs = Signs(16, 300, "x")
    assert torch.equal(signs.times(x), signs.times(x.float()))


@settings(max_examples=6, deadline=None)
@given(rows=st.sampled_from([1, 3, 16]), width=st.sampled_from([1, 5, 33]), seed=st.integers(0, 99))
def test_inner_products_are_kept_on_average(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, width, generator=generator, dtype=torch.float64)
    draws = 200
    found = torch.stack([
        (s := Signs(rows, width, f"{seed} {n}")).times(x) @ s.times(y) for n in range(draws)
    ])  # fmt: skip
    # Var = (|x|^2 |y|^2 + (x.y)^2 - 2 sum x_i^2 y_i^2) / rows, of independent signs
    variance = (x @ x * (y @ y) + (x @ y) ** 2 - 2 * (x * y).square().sum()) / rows
    assert abs(found.mean() - x @ y) <= 5 * (variance / draws).sqrt() + 1e-9


@settings(max_examples=6, deadline=None)
@given(places=st.sampled_from([1, 3, 16]), width=st.sampled_from([1, 5, 33]), seed=st.integers(0, 99))
def test_folding_keeps_inner_products_on_average_too(places, width, seed):
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, width, generator=generator, dtype=torch.float64)
    draws = 400
    folded = [Folding(places, width, f"{seed} {n}").times(both) for n in range(draws)]
    found = torch.stack([x @ y for x, y in folded])
    x, y = both
    variance = (x @ x * (y @ y) + (x @ y) ** 2 - 2 * (x * y).square().sum()) / places  # that of signs
    assert abs(found.mean() - x @ y) <= 5 * (variance / draws).sqrt() + 1e-9
