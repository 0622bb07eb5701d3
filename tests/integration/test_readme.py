"""The README's first example runs as it is written."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_trainer_example_runs_and_is_about_ten_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = blocks("python")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    names = {}
    exec(compile(example, "README.md", "exec"), names)  # the README is ours
    assert names["trainer"].global_step == 20
    assert "concept/pirate/demand" in names["trainer"].callback_metrics


def test_the_bank_example_runs_on_a_saved_sae(tmp_path, monkeypatch):
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    monkeypatch.chdir(tmp_path)
    metadata = SAEMetadata(model_name="some-model", hook_name="blocks.1.hook_resid_post")
    TopKSAE(TopKSAEConfig(d_in=16, d_sae=64, k=4, metadata=metadata)).save_model("my-sae")
    names = {}
    exec(compile(blocks("python")[1], "README.md", "exec"), names)
    assert names["ConceptBank"].load("my-bank").names == ("pirate", "arithmetic")


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!https?:)[^)#]+)\)", README.read_text()))
def test_every_link_to_a_file_leads_somewhere(path):
    assert (README.parent / path).exists()
