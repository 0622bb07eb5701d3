import json

import pytest
import torch

from interptrain import ConceptBank
from interptrain.concepts import Readout

HOOK = "blocks.1.hook_resid_post"


def bank():
    generator = torch.Generator().manual_seed(0)
    found = ConceptBank.from_directions(
        {"pirate": torch.randn(3, 8, generator=generator) * 11, "sums": torch.randn(8, generator=generator) * 0.2},
        hook=HOOK,
        source={"kind": "test"},
        model="tiny",
    )
    weights = {"W_dec": torch.randn(5, 8, generator=generator), "W_enc": torch.randn(8, 5, generator=generator)}
    alive = torch.tensor([True, True, False, True, True])
    return ConceptBank(
        found.directions,
        found.concepts,
        found.hooks,
        found.sources,
        found.model,
        readouts={HOOK: Readout({"architecture": "standard"}, weights, alive)},
    )


def test_rows_are_unit_whatever_came_in():
    norms = bank().directions.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(4))


def test_names_rows_and_selection_agree():
    found = bank()
    assert found.names == ("pirate", "sums")
    assert found.rows("pirate") == (0, 1, 2)
    chosen = found.select("sums", "pirate")
    assert chosen.concepts == ("sums", "pirate", "pirate", "pirate")
    assert torch.equal(chosen.directions[0], found.directions[3])
    assert chosen.readouts is found.readouts


def test_an_unknown_concept_names_those_there_are():
    with pytest.raises(ValueError, match="unknown concept 'parrot'; this bank has pirate, sums"):
        bank().select("parrot")


def test_a_bank_comes_back_as_it_was_saved(tmp_path):
    found = bank()
    again = ConceptBank.load(found.save(tmp_path / "bank"))
    assert torch.equal(again.directions, found.directions)
    assert (again.concepts, again.hooks, again.model) == (found.concepts, found.hooks, found.model)
    assert [dict(source) for source in again.sources] == [dict(source) for source in found.sources]
    readout = again.readouts[HOOK]
    assert readout.config == {"architecture": "standard"}
    assert torch.equal(readout.alive, found.readouts[HOOK].alive)
    assert torch.equal(readout.weights["W_enc"], found.readouts[HOOK].weights["W_enc"])


def test_a_bank_without_a_read_out_is_saved_too(tmp_path):
    plain = ConceptBank.from_directions({"a": torch.ones(4)}, hook=HOOK)
    again = ConceptBank.load(plain.save(tmp_path))
    assert again.names == ("a",)
    assert again.readouts == {}


@pytest.mark.parametrize("name", ["bank.json", "bank.safetensors", "readouts.safetensors"])
def test_a_truncated_file_is_a_clear_error(tmp_path, name):
    folder = bank().save(tmp_path)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{name}.*truncated"):
        ConceptBank.load(folder)


@pytest.mark.parametrize("name", ["bank.json", "bank.safetensors", "readouts.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = bank().save(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name}' does not exist"):
        ConceptBank.load(folder)


def test_a_pickle_is_never_read(tmp_path):
    folder = bank().save(tmp_path)
    torch.save({"directions": torch.ones(1, 4)}, folder / "bank.safetensors")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        ConceptBank.load(folder)


def test_another_schema_or_a_lost_field_is_refused(tmp_path):
    folder = bank().save(tmp_path)
    document = json.loads((folder / "bank.json").read_text())
    (folder / "bank.json").write_text(json.dumps({**document, "schema": 99}))
    with pytest.raises(ValueError, match="schema 99, this version reads 1"):
        ConceptBank.load(folder)
    del document["hooks"]
    (folder / "bank.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="lacks hooks"):
        ConceptBank.load(folder)


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write a bank"):
        bank().save(tmp_path / "file" / "bank")


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ({}, "at least one concept"),
        ({"a": torch.zeros(4)}, "concept 'a': row 0 is zero or not finite"),
        ({"a": torch.tensor([1.0, float("nan")])}, "concept 'a': row 0 is zero or not finite"),
        ({"a": torch.ones(0, 4)}, "concept 'a' needs a tensor"),
        ({"a": torch.ones(4), "b": torch.ones(5)}, "concept 'b' has width 5 but 'a' has 4"),
    ],
)
def test_directions_that_point_nowhere_are_refused(directions, message):
    with pytest.raises(ValueError, match=message):
        ConceptBank.from_directions(directions, hook=HOOK)


def test_merging_joins_hooks_and_refuses_another_model():
    first = bank()
    second = ConceptBank.from_directions({"pirate": torch.ones(8)}, hook="blocks.0.hook_resid_post", model="tiny")
    both = first.merge(second)
    assert both.names == ("pirate", "sums")
    assert both.rows("pirate") == (0, 1, 2, 4)
    assert both.rows("pirate", hook=HOOK) == (0, 1, 2)
    assert both.at_hook("blocks.0.hook_resid_post").names == ("pirate",)
    other = ConceptBank.from_directions({"pirate": torch.ones(8)}, hook=HOOK, model="large")
    with pytest.raises(ValueError, match="model 'large' into one of model 'tiny'"):
        first.merge(other)
    with pytest.raises(ValueError, match="width 9 into one of width 8"):
        first.merge(ConceptBank.from_directions({"a": torch.ones(9)}, hook=HOOK))
