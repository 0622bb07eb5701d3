"""Probes as files: what is saved is what is read, and what is damaged says so."""

import json

import pytest
import torch

from interptrain.concepts.attention_probe import AttentionProbe
from interptrain.concepts.latent_probe import LatentProbe
from interptrain.concepts.placed import PlacedProbe
from interptrain.concepts.text_probe import PooledProbe
from tests.helpers.texts import texts

HOOK = "blocks.1.hook_resid_post"
POOLED = PooledProbe(torch.randn(6), torch.tensor(0.5), "max")
ATTENTION = AttentionProbe(torch.randn(2, 6), torch.randn(2, 6), torch.tensor(-1.0))
INNER = PooledProbe(torch.ones(2), torch.ones(()), "mean")
LATENTS = LatentProbe(torch.tensor([5, 1]), torch.eye(4)[:2], torch.ones(2), INNER, 6)


@pytest.mark.parametrize("probe", [POOLED, ATTENTION, LATENTS], ids=["pooled", "attention", "latents"])
def test_a_probe_that_was_saved_scores_the_same_to_the_last_bit(tmp_path, probe):
    placed = PlacedProbe(probe, HOOK, "mine", {"seed": 3}, "some/model")
    read = PlacedProbe.load(placed.save(tmp_path / "probe"))
    given = texts(5)
    assert torch.equal(read.probe.score(given), probe.score(given))
    assert torch.equal(read.probe.directions(), probe.directions())
    assert (read.hook, read.name, read.source, read.model) == (HOOK, "mine", {"seed": 3}, "some/model")
    assert placed.same_as(read.tensors())
    assert sorted(file.name for file in (tmp_path / "probe").iterdir()) == ["probe.json", "probe.safetensors"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 99}, "schema 99, this version reads 1"),
        ({"kind": "forest"}, "of the kind 'forest'"),
        ({"hook": "nowhere"}, "nowhere"),
        ({"pool": "median"}, "by mean or max, found 'median'"),
        ({"name": "a/b"}, "expected a word, found 'a/b'"),
    ],
)
def test_a_file_that_says_something_else_is_refused_with_what_it_says(tmp_path, change, said):
    folder = PlacedProbe(POOLED, HOOK, "mine").save(tmp_path)
    document = json.loads((folder / "probe.json").read_text())
    (folder / "probe.json").write_text(json.dumps(document | change))
    with pytest.raises(ValueError, match=said) as raised:
        PlacedProbe.load(folder)
    assert str(folder) in str(raised.value)


def test_files_that_are_cut_off_or_missing_are_errors(tmp_path):
    folder = PlacedProbe(POOLED, HOOK, "mine").save(tmp_path / "probe")
    with pytest.raises(ValueError, match="cannot read a probe from"):
        PlacedProbe.load(tmp_path / "nothing")
    whole = (folder / "probe.safetensors").read_bytes()
    (folder / "probe.safetensors").write_bytes(whole[:-3])
    with pytest.raises(ValueError, match="cannot read a probe from"):
        PlacedProbe.load(folder)
    (folder / "probe.safetensors").write_bytes(whole)
    (folder / "probe.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read a probe from"):
        PlacedProbe.load(folder)
    (folder / "probe.json").write_text("{}")
    with pytest.raises(ValueError, match="it lacks 'schema'"):
        PlacedProbe.load(folder)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match="cannot write a probe to"):
        PlacedProbe(POOLED, HOOK, "mine").save(tmp_path / "taken" / "probe")
