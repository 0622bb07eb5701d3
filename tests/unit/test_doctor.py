"""The doctor in real environments: packages that are not there, that do not start, caches that take nothing."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from interptrain import doctor, self_test
from interptrain.cli import main

ROOT = Path(__file__).parents[2]
SITE = Path(sysconfig.get_path("purelib"))
EXTRAS = {
    "lightning": ("pytorch_lightning",), "sae": ("sae_lens",), "hf": ("transformers", "peft"), "wandb": ("wandb",),
    "dashboard": ("wandb_workspaces",),
    "tensorboard": ("tensorboard",), "cuda": ("cuda", "platformdirs"),
    "recipes": ("matplotlib", "jinja2", "pydantic", "pyyaml", "psutil", "datasets"),
}  # fmt: skip
links = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
needs_nvrtc = pytest.mark.skipif(sys.platform == "darwin", reason="NVIDIA has no compiler for macOS")


def examined(*options, python=sys.executable, prelude="", home, **environment):
    """Findings by name, what was printed, and the exit status, of a process with a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "HF_", "XDG", "INTERP"))}
    variables = {"PYTHONPATH": str(ROOT), "HOME": str(home), "OMP_NUM_THREADS": "1", **environment}
    code = f"import sys\n{prelude}\nfrom interptrain.cli import main\nsys.exit(main(['doctor', *sys.argv[1:]]))"
    done = subprocess.run(
        [str(python), "-c", code, *options], env=kept | variables, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)["findings"] if "--json" in options else []
    return {one["name"]: one for one in found}, done.stdout, done.returncode


def environment_without(folder, *hidden):
    """A virtual environment with links to all that is installed but some packages and their metadata."""
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    for path in SITE.iterdir():
        if not path.name.lower().startswith(hidden):
            (site / path.name).symlink_to(path)
    return folder / "bin" / "python", site


@links
def test_without_any_extra_the_core_is_tried_out_and_every_extra_has_its_command(tmp_path):
    hidden = [name for names in EXTRAS.values() for name in names]
    python, _ = environment_without(tmp_path / "venv", *hidden, "lightning", "huggingface_hub", "nvidia", "yaml")
    found, _, status = examined("--json", python=python, home=tmp_path)
    assert status == 0
    assert {one["status"] for one in found.values()} == {"ok", "missing"}
    for extra, (package, *_) in EXTRAS.items():
        name = {"cuda": "cuda-core"}.get(extra, package.replace("_", "-"))
        assert (found[name]["status"], found[name]["mend"]) == ("missing", f"pip install 'interptrain[{extra}]'")
    assert found["NVRTC"]["mend"] == "pip install 'interptrain[cuda]'"
    assert found["hub"]["mend"] == "pip install 'interptrain[hf]'"
    assert found["observing changes nothing"]["found"].endswith("a model of torch alone")


@links
def test_the_commands_are_on_lines_of_their_own_and_a_version_outside_the_bounds_is_broken(tmp_path):
    python, site = environment_without(tmp_path / "venv", "sae_lens", "peft-", "nvidia")
    metadata = site / "peft-0.9.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.9.0\n")
    _, printed, status = examined("--no-self-test", python=python, home=tmp_path, COLUMNS="40")
    assert status == 1
    assert {"  pip install 'interptrain[sae]'", "  pip install --upgrade 'interptrain[hf]'"} <= set(
        printed.splitlines()
    )
    assert {"ok", "missing", "broken"} <= set(printed.split())


BLOCK = """
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sae_lens":
            raise ImportError("sae_lens was cut in half")
sys.meta_path.insert(0, Hidden())
"""


@links
def test_an_installed_package_that_does_not_start_is_broken_and_the_core_is_tried_out_still(tmp_path):
    others = ("pytorch_lightning", "peft", "wandb", "tensorboard", "matplotlib", "nvidia")
    python, _ = environment_without(tmp_path / "venv", *others)
    found, _, status = examined("--json", python=python, prelude=BLOCK, home=tmp_path)
    assert status == 1
    assert [one["name"] for one in found.values() if one["status"] == "broken"] == ["sae-lens"]
    assert "cannot be imported: sae_lens was cut in half" in found["sae-lens"]["found"]
    assert found["sae-lens"]["mend"].startswith("pip install --force-reinstall --no-deps 'sae-lens<7")
    assert found["sae-lens"]["mend"].endswith("&& pip install 'interptrain[sae]'")
    assert found["observing changes nothing"]["found"].endswith("a model of torch alone")


@links
@needs_nvrtc
def test_an_nvrtc_library_that_does_not_load_is_broken(tmp_path):
    python, site = environment_without(tmp_path / "venv", "nvidia")
    for path in SITE.glob("nvidia*.dist-info"):
        (site / path.name).symlink_to(path)
    for library in (SITE / "nvidia").rglob("libnvrtc*.so*"):
        broken = site / library.relative_to(SITE)
        broken.parent.mkdir(parents=True, exist_ok=True)
        broken.write_bytes(b"\x7fELF cut short")
    found, _, status = examined("--json", "--no-self-test", python=python, home=tmp_path)
    assert status == 1
    assert found["NVRTC"]["status"] == "broken"
    assert (
        found["NVRTC"]["mend"] == f"pip install --force-reinstall {doctor.nvrtc.LIBRARY.removeprefix('pip install ')}"
    )


@needs_nvrtc
def test_the_kernels_compile_here_for_an_architecture_and_for_one_that_is_none_they_do_not():
    compiled = doctor._compiled("sm_90", "")
    assert (compiled.status, compiled.mend) == ("ok", "")
    refused = doctor._compiled("sm_1", "")
    assert refused.status == "broken"
    assert "sm_1" in refused.found


def test_a_cache_in_whose_place_a_file_lies_is_broken(tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    taken.write_text("")
    monkeypatch.setenv("INTERPTRAIN_CACHE", str(taken / "below"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(taken))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for one, variable in zip(doctor.caches(), ("INTERPTRAIN_CACHE", "HF_HUB_CACHE"), strict=True):
        assert one.status == "broken"
        assert one.mend.startswith(f"export {variable}=")


def test_a_hub_cache_need_not_take_anything_offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/proc/interptrain")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert list(doctor.caches())[1].status == "ok"


@pytest.mark.skipif(sys.platform == "win32", reason="modes are those of POSIX")
def test_a_kernel_cache_that_others_can_write_to_is_broken_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERPTRAIN_CACHE", str(tmp_path))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels").chmod(0o777)
    kernels = next(doctor.caches())
    assert (kernels.name, kernels.status) == ("kernels", "broken")
    assert "other users can write to it (chmod 700" in kernels.found


def test_a_cache_is_measured_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERPTRAIN_CACHE", str(tmp_path))
    assert "not made yet" in next(doctor.caches()).found
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kernels").mkdir(mode=0o700)
    (tmp_path / "kernels" / "cubin").write_bytes(bytes(3 * 2**20))
    assert next(doctor.caches()).found == f"{tmp_path / 'kernels'}, 3.0 MiB, writable"
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == ["cubin"]


def test_a_key_counts_as_a_login_and_is_never_shown(tmp_path, monkeypatch, capsys):
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    out = doctor.wandb()
    assert (out.status, out.mend) == ("missing", "wandb login")
    key = "0123456789abcdef" * 2
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {key}\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert (doctor.wandb().status, doctor.wandb().found) == ("ok", "logged in at api.wandb.ai")
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", f"https://user:{key}@wandb.example.org")
    assert main(["doctor", "--no-self-test"]) == main(["doctor", "--no-self-test", "--json"]) == 0
    shown = capsys.readouterr().out
    assert "wandb.example.org" in shown
    assert key not in shown


def test_the_self_test_finds_an_edit_of_the_weights_where_there_should_be_none(monkeypatch):
    assert all(outcome.passed for outcome in self_test.self_test(self_test.torch_world()))

    def nudged(steerer):
        for site in steerer.sites:
            site.parameter.data.add_(1e-7)

    monkeypatch.setattr(self_test.Steerer, "detach", nudged)
    assert [outcome.passed for outcome in self_test.self_test(self_test.torch_world())] == [False, True, True]


def test_the_self_test_finds_updates_that_were_not_steered(monkeypatch):
    monkeypatch.setattr(self_test, "suppress", lambda name: self_test.observe())
    steered = list(self_test.self_test(self_test.torch_world()))[1]
    assert steered.name == "suppressed updates have gain 0"
    assert not steered.passed


def test_what_the_self_test_raises_is_broken_and_not_raised_again(monkeypatch):
    monkeypatch.setattr(self_test, "world_at_hand", lambda: torch.zeros(2) @ torch.zeros(3))
    broken, seconds = doctor._tried()
    assert (broken.status, broken.name) == ("broken", "a few steps")
    assert broken.found.startswith("RuntimeError: ")
    assert seconds.name == "time"


def test_the_document_is_what_the_table_shows(capsys):
    assert main(["doctor", "--no-self-test", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == doctor.DOCUMENT_SCHEMA
    assert {one["status"] for one in document["findings"]} <= {"ok", "missing", "broken"}
    names = {one["name"] for one in document["findings"]}
    assert {"torch", "sae-lens", "CPU", "kernels", "hub", "W&B"} <= names
