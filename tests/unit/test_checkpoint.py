"""A steering state as a file."""

import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from interptrain.checkpoint import load_state, save_state
from interptrain.warn import warn

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text()
    | st.sampled_from(["tensor:", "tensor:0", "tensor:tensor:0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), values, max_size=4))
def test_json_values_come_back_as_they_were(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    assert load_state(save_state(state, path)) == state


def test_tensors_of_any_type_and_shape_come_back_bit_for_bit(tmp_path):
    whole = torch.randn(3, 4)
    state = {
        "double": torch.randn(2, dtype=torch.float64), "half": torch.randn(2).bfloat16(), "number": torch.tensor(3),
        "none": torch.zeros(0, 3), "truth": torch.tensor([True, False]), "turned": whole.T,
        "shared": [whole, whole[0]], "nan": torch.tensor([torch.nan, torch.inf]),
    }  # fmt: skip
    found = load_state(save_state(state, tmp_path / "state.safetensors"))
    assert found.keys() == state.keys()
    for key, value in state.items():
        for one, other in zip(
            *([each] if torch.is_tensor(each) else each for each in (value, found[key])), strict=True
        ):
            assert one.dtype == other.dtype
            torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = save_state({"steps": [1]}, tmp_path / "state.safetensors")
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_state({"steps": object()}, path)
    assert load_state(path) == {"steps": [1]}
    assert [each.name for each in tmp_path.iterdir()] == ["state.safetensors"]
    with pytest.raises(OSError, match="missing"):
        save_state({"steps": [1]}, tmp_path / "missing" / "state.safetensors")


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "another", "schema", "header"])
def test_what_is_no_steering_state_is_named(tmp_path, damage):
    path = save_state({"steps": [1], "start": torch.ones(100)}, tmp_path / "state.safetensors")
    if damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: -40 if damage == "cut" else 0])
    elif damage == "gone":
        path.unlink()
    else:
        states = {"another": None, "schema": {"schema": "9", "state": "{}"}, "header": {"schema": "1", "state": "{"}}
        save_file({"weight": torch.ones(1)}, path, states[damage])
    with pytest.raises(ValueError, match=r"cannot read the steering state in '.*state\.safetensors'"):
        load_state(path)


def test_the_rest_is_plain_json_in_the_header(tmp_path):
    path = save_state({"concepts": ["pirate"], "start": torch.ones(1)}, tmp_path / "state.safetensors")
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["state"]) == {"concepts": ["pirate"], "start": "tensor:0"}


def test_a_warning_points_at_the_line_that_led_to_it():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn("look here")
    assert "jaxtyping" in caught[0].filename or caught[0].filename == __file__
