"""Models, tokenizers and released SAEs come from a hub by their own libraries' loaders, and each SAE becomes a bank.

The hub is on this machine and serves small random weights in the files that the real repositories have.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from http.client import HTTPConnection

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.families import FAMILIES, logits
from tests.helpers.hub import serving
from tests.helpers.releases import RELEASES, decoder, lay_out
from tests.helpers.words import TEXTS

DEFAULT = ("gpt2", "llama")
REST = tuple(family for family in FAMILIES if family not in DEFAULT)
ASKS_ALWAYS = ("gemma3",)  # SAELens asks for the header of Gemma Scope 2's files whatever HF_HUB_OFFLINE says
LIMIT = 300  # seconds for a process that loads several families


def marked(families):
    return [family if family in DEFAULT else pytest.param(family, marks=pytest.mark.slow) for family in families]


@dataclass(frozen=True)
class Loaded:
    """What two processes have loaded, the second without the hub, and what they asked it for."""

    online: dict
    offline: dict
    asked_online: list
    asked_offline: list


@pytest.fixture(scope="module")
def loaded(hub, tmp_path_factory):
    """What was loaded of a family: in one pair of processes for the default families, in another for the rest."""
    found = {}

    def of(family):
        families = DEFAULT if family in DEFAULT else REST
        if families not in found:
            lay_out(hub.root, families)
            home, outs = tmp_path_factory.mktemp("home"), [tmp_path_factory.mktemp("out") for _ in range(2)]
            online, asked_online = _load(hub, families, home, outs[0], offline=False)
            offline, asked_offline = _load(hub, families, home, outs[1], offline=True)
            found[families] = Loaded(online, offline, asked_online, asked_offline)
        return found[families]

    return of


def _load(hub, families, home, out, *, offline):
    before = len(hub.log)
    program = [sys.executable, "-m", "tests.helpers.from_hub", str(out), *families]
    environment = hub.environment(home, offline=offline)
    ended = subprocess.run(program, env=environment, cwd=out, capture_output=True, text=True, timeout=LIMIT)
    assert ended.returncode == 0, ended.stderr
    described = {family: json.loads((out / f"{family}.json").read_text()) for family in families}
    tensors = {family: load_file(out / f"{family}.safetensors") for family in families}
    return {family: described[family] | tensors[family] for family in families}, hub.log[before:]


@pytest.mark.parametrize("family", marked(FAMILIES))
def test_the_bank_holds_the_file_s_decoder_rows_at_unit_length(loaded, family):
    release, found = RELEASES[family], loaded(family).online[family]
    chosen = [latent for latents in release.concepts.values() for latent in latents]
    rows = decoder(release.latents, FAMILIES[family].width)[chosen].to(release.stored).double()
    expected = rows / rows.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found["directions"].double(), expected, rtol=0, atol=1e-6)
    assert [source["latent"] for source in found["sources"]] == chosen


@pytest.mark.parametrize("family", marked(FAMILIES))
def test_the_bank_names_the_release_s_hook_and_model_and_its_readout_encodes_as_the_sae(loaded, family):
    release, found = RELEASES[family], loaded(family).online[family]
    assert set(found["hooks"]) == {release.hook}
    assert found["model"] == release.model
    assert found["readout_agrees"]
    assert 0 < found["active"] < 4 * release.latents


@pytest.mark.parametrize("family", marked(FAMILIES))
def test_model_and_tokenizer_are_those_of_the_repository(loaded, hub, family):
    found, folder = loaded(family).online[family], hub.root / FAMILIES[family].model
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert found["class"] == type(model).__name__
    assert found["dtype"] == str(FAMILIES[family].dtype)
    assert torch.equal(found["logits"], logits(model, tokenizer))
    assert found["tokens"] == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXTS[0]).ids
    assert found["text"] == TEXTS[0]
    assert max(found["tokens"]) < model.config.vocab_size
    words = FAMILIES[family].words
    assert (found["tokens"][0] == tokenizer.bos_token_id) == (words.first is not None)
    assert (found["chat"] is None) == (words.chat is None)
    assert words.chat is None or TEXTS[2] in found["chat"]


@pytest.mark.parametrize("family", marked(FAMILIES))
def test_a_known_family_s_model_takes_the_bank_of_its_release(loaded, family):
    sites = loaded(family).online[family]["sites"]
    layers = int(RELEASES[family].hook.split(".")[1]) + RELEASES[family].hook.endswith("resid_post")
    written = [name for name, role in sites if role == "writer" and name.endswith("proj.weight")]
    assert len(written) == 2 * layers


@pytest.mark.parametrize("family", marked(FAMILIES))
def test_without_the_hub_the_same_is_loaded_again(loaded, family):
    both = loaded(family)
    online, offline = both.online[family], both.offline[family]
    assert online.keys() == offline.keys()
    for name, value in online.items():
        assert torch.equal(value, offline[name]) if isinstance(value, torch.Tensor) else value == offline[name], name


@pytest.mark.parametrize("family", marked(("llama", "gemma3")))
def test_every_request_goes_to_the_hub_and_none_where_it_is_forbidden(loaded, hub, family):
    both = loaded(family)
    assert not hub.elsewhere
    for name in both.online:
        asked = {request.target for request in both.asked_online if request.method == "GET" and request.status < 300}
        for repository in (FAMILIES[name].model, RELEASES[name].repository):
            assert any(f"/{repository}/resolve/" in target for target in asked), repository
    excused = tuple(f"/{RELEASES[name].repository}/" for name in ASKS_ALWAYS)
    assert not [request for request in both.asked_offline if not request.target.startswith(excused)]


def test_a_process_that_asks_another_host_is_refused_and_leaves_a_trace(tmp_path):
    program = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])"
    with serving(tmp_path) as hub:
        for url in ("http://huggingface.co/gpt2", "https://huggingface.co/gpt2"):
            ended = subprocess.run(
                [sys.executable, "-c", program, url], env=hub.environment(tmp_path), capture_output=True, text=True
            )
            assert ended.returncode == 1
            assert "403" in ended.stderr
        assert [request.target for request in hub.elsewhere] == ["http://huggingface.co/gpt2", "huggingface.co:443"]


def test_a_file_is_served_whole_in_part_by_its_head_or_with_the_reason_why_not(tmp_path):
    content = bytes(range(256)) * 3
    (tmp_path / "someone" / "some-saes").mkdir(parents=True)
    (tmp_path / "someone" / "some-saes" / "weights").write_bytes(content)
    with serving(tmp_path) as hub:
        connection = HTTPConnection("127.0.0.1", hub.port)  # one for all, on which a byte too many would be seen

        def ask(path, method="GET", **headers):
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

        path = "/someone/some-saes/resolve/main/weights"
        (_, about, nothing), (status, headers, body) = ask(path, "HEAD"), ask(path)
        assert (status, body, nothing) == (200, content, b"")
        assert headers["Content-Length"] == about["Content-Length"] == str(len(content))
        assert headers["ETag"] == about["ETag"]
        assert len(headers["X-Repo-Commit"]) == 40
        status, headers, body = ask(path, Range="bytes=5-12")
        assert (status, body, headers["Content-Range"]) == (206, content[5:13], "bytes 5-12/768")
        assert ask(path, Range="bytes=700-")[2] == content[700:]
        assert ask("/someone/some-saes/resolve/main/biases")[1]["X-Error-Code"] == "EntryNotFound"
        assert ask("/someone/else/resolve/main/weights")[1]["X-Error-Code"] == "RepoNotFound"
        assert [request.status for request in hub.log] == [200, 200, 206, 206, 404, 404]
        connection.close()
