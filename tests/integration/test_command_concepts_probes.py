"""`interptrain concepts probes`: the table, what is saved, what takes it, and what is refused."""

import json

import pytest

from interptrain import ConceptBank, cli
from interptrain.commands import concepts_probes
from interptrain.concepts.placed import PlacedProbe
from interptrain.concepts.probes import PROBES
from interptrain.tiny_world.concepts import CONTRASTS, draw

COMMAND = ["concepts", "probes"]
WORLD = ["--model", "tiny-world", "--sae", "tiny-world"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pirate texts and others in both halves of the wordings, as flags."""
    folder, flags = tmp_path_factory.mktemp("texts"), []
    for half, prefix in (("search", ""), ("test", "test-")):
        for name, texts in zip(("positive", "negative"), CONTRASTS["pirate"], strict=True):
            file = folder / f"{prefix}{name}.jsonl"
            rows = (json.dumps({"text": each.text.removeprefix("<q> ")}) for each in draw(texts, half, 0, count=16))
            file.write_text("\n".join(rows))
            flags += [f"--{prefix}{name}", str(file)]
    return flags


def test_every_probe_is_measured_beside_its_null_and_kept_with_its_directions(files, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main([*COMMAND, *WORLD, *files, "--seeds", "2", "--concept", "pirate", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    document = json.loads((out / "table.json").read_text())
    assert document["schema"] == 1
    assert [row["probe"] for row in document["rows"]] == [*PROBES] * 2
    for name in PROBES:
        own = [row for row in document["rows"] if row["probe"] == name]
        assert name in said
        auc, other, shuffled = (sum(r[k] for r in own) / 2 for k in ("auc", "auc_other_wording", "auc_shuffled"))
        assert auc > (0.5 if name == "linear-max" else 0.85)  # a max needs more texts than these
        assert other > 0.5
        assert shuffled < auc
        probe = PlacedProbe.load(out / "probes" / name)
        bank = ConceptBank.load(out / "banks" / name)
        assert (probe.name, probe.hook) == (name, bank.hook_points[0])
        assert bank.names == ("pirate",)
        assert len(bank.directions) == own[0]["directions"] == len(probe.probe.directions())
        assert ("latent" in bank.sources[0]) == name.startswith("latents")
    before = (out / "table.json").read_text()
    assert "holds something already" in refused([*COMMAND, *files, "--out", str(out)], capsys)
    assert (out / "table.json").read_text() == before


def test_without_an_sae_only_the_stream_is_probed_and_nothing_is_written(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["--seeds", "1", "--probes", "mean", "linear-max", "latents-k", "--hook", "blocks.1.hook_resid_post"]
    assert cli.main([*COMMAND, *files[:4], *asked]) == 0
    said = capsys.readouterr().out
    assert "linear-max" in said
    assert "latents" not in said
    assert "other" not in said
    assert list(tmp_path.iterdir()) == []


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--probes", "forest"], "probes: unknown forest; there are linear-mean"),
        (["--probes", "latents-k"], "latents-k look at latents: name an SAE (--sae)"),
        (["--hook", "blocks.9.hook_resid_post"], "has 4 blocks"),
        (["--hook", "blocks.1.hook_resid_post", "--sae", "tiny-world"], "hook is where to read without an SAE"),
        (["--seeds", "0"], "seeds must be at least 1, found 0"),
        (["--held-out", "1"], "held_out is a share between 0 and 1"),
        (["--texts", "3"], "has 3 texts, expected 4 or more"),
        (["--sae", "nowhere"], "'nowhere' is no folder"),
        (["--model", "tests"], "no config.json"),
        (["--positive", "missing.jsonl"], "'missing.jsonl' does not exist"),
        (["--test-positive", "some.jsonl"], "test_positive and test_negative go together"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(files, tmp_path, capsys, more, said):
    out = tmp_path / "out"
    assert said in refused([*COMMAND, *files[:4], "--out", str(out), *more], capsys)
    assert not out.exists()


def test_latents_that_do_not_fit_into_memory_are_refused(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(concepts_probes, "free_host_memory", lambda: 10**6)
    said = refused([*COMMAND, *files[:4], "--sae", "tiny-world", "--out", str(tmp_path / "out")], capsys)
    assert "1.0 MB are free: take fewer texts" in said
    assert not (tmp_path / "out").exists()


def test_both_files_are_needed(files, capsys):
    assert "negative is needed: --negative FILE" in refused([*COMMAND, *files[:2]], capsys)
