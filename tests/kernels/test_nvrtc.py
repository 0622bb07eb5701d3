"""Real compilations by NVRTC, which need no GPU, and a cache that never changes what comes out of them."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import pytest

from interptrain.projection import nvrtc
from interptrain.projection.nvrtc import Use, compile_cubin, kernel_source, resource_use

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="NVIDIA has no compiler for macOS")
root_writes_everywhere = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="root writes to read-only folders too"
)

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
SCALE = """
extern "C" __global__ void scale(float *x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] *= FACTOR;
}
"""
# 64 live values and their addresses, in the 32 registers a thread that two blocks of 1024 leave, or in 64 where an SM
# holds but one such block
STARVED = """
extern "C" __global__ void __launch_bounds__(1024, 2) starved(float *x, int n) {
  float kept[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) kept[i] = x[i * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i * n + threadIdx.x] = kept[63 - i] * kept[i / 2];
}
"""
APART = """
__device__ __noinline__ float apart(const float *x, int n) {
  float kept[64], sum = 0;
  for (int i = 0; i < 64; ++i) kept[i] = x[i * n];
  for (int i = 0; i < 64; ++i) sum += kept[i] * kept[(i * n) & 63];
  return sum;
}
extern "C" __global__ void calls(float *x, int n) { x[0] = apart(x, n); }
"""
# the module's file alone, as a process that has neither torch nor the package would see it
ALONE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("nvrtc", {nvrtc.__file__!r})
nvrtc = sys.modules["nvrtc"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nvrtc)
"""
HIDE = """
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == HIDDEN or name.startswith(HIDDEN + "."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def compiled(cache, *, source=SCALE, arch="sm_90", factor=3, **more):
    return compile_cubin(source, arch=arch, macros={"FACTOR": factor}, cache=cache, **more)


def entries(cache):
    return [path for path in cache.rglob("*") if path.is_file()]


def python(code, *flags, environment=None):
    done = subprocess.run(
        [sys.executable, "-B", *flags, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def assert_compiles_without(cache, reason):
    """The right cubin, not cached, a warning that names folder and reason; the second time in silence."""
    right = compiled(None).cubin
    with pytest.warns(UserWarning, match=f"{re.escape(str(cache))}.*{reason}") as caught:
        found = compiled(cache)
    assert (found.cubin, found.cached, len(caught)) == (right, False, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(cache) == found


# ---- compiling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_kernel_compiles_to_an_elf_file_that_names_it(arch):
    found = compiled(None, arch=arch)
    assert found.cubin.startswith(b"\x7fELF")
    assert b"scale" in found.cubin
    assert (found.log, found.cached) == ("", False)


def test_architectures_and_macros_change_the_cubin():
    assert len({compiled(None, arch=arch).cubin for arch in ARCHITECTURES}) == len(ARCHITECTURES)
    assert compiled(None, factor=3).cubin != compiled(None, factor=4).cubin


def test_the_order_of_macros_is_of_no_account(tmp_path):
    macros = {"FACTOR": 3, "ANOTHER": 1}
    first = compile_cubin(SCALE, arch="sm_90", macros=macros, cache=tmp_path)
    second = compile_cubin(SCALE, arch="sm_90", macros=dict(reversed(macros.items())), cache=tmp_path)
    assert (first.cached, second.cached) == (False, True)


def test_a_kernel_needs_no_macros():
    source = SCALE.replace("FACTOR", "3")
    assert compile_cubin(source, arch="sm_90", macros={}, cache=None).cubin.startswith(b"\x7fELF")


def test_a_warning_of_the_compiler_is_in_the_log():
    found = compiled(None, source=SCALE.replace("int i =", "int unused; int i ="))
    assert "unused" in found.log
    assert "\0" not in found.log


def test_an_error_names_the_file_and_the_line():
    source = '#line 1 "first.cu"\n__device__ int fine;\n#line 1 "second.cu"\n\n__device__ int broken = nowhere;\n'
    with pytest.raises(RuntimeError, match=r'second\.cu\(2\): error: identifier "nowhere" is undefined'):
        compiled(None, source=source)


def test_an_error_in_a_packaged_file_names_its_own_line():
    text = (nvrtc.files("interptrain") / "csrc" / "finish.cu").read_text(encoding="utf-8")
    with pytest.raises(RuntimeError) as caught:
        compiled(None, source=kernel_source("finish.cu"))  # without the file that it builds on
    lines = [int(line) for line in re.findall(r"finish\.cu\((\d+)\): error", str(caught.value))]
    quoted = [text.splitlines()[line - 1].strip() for line in lines]
    assert quoted
    assert all(line in str(caught.value) for line in quoted)


def test_an_unknown_architecture_is_refused_with_the_compilers_words_and_what_was_asked_for():
    with pytest.raises(RuntimeError, match=r"sm_20 -DFACTOR=3.*\n*.*--gpu-architecture"):
        compiled(None, arch="sm_20")


def test_sources_follow_each_other_in_the_order_asked_for():
    folder = Path(__file__).parents[2] / "csrc"
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in ("finish.cu", "common.cuh")}
    expected = "".join(f'#line 1 "{name}"\n{text}\n' for name, text in texts.items())
    assert kernel_source("finish.cu", "common.cuh") == expected


# ---- registers and spills -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_kernel_short_of_registers_spills_and_a_plain_one_does_not(arch):
    use = resource_use(compiled(None, source=SCALE + STARVED, arch=arch, verbose=True).log)
    assert set(use) == {"scale", "starved"}
    assert use["scale"] == Use(registers=use["scale"].registers, spill_stores=0, spill_loads=0, stack=0)
    assert 0 < use["scale"].registers < use["starved"].registers <= 64
    assert min(use["starved"].spill_stores, use["starved"].spill_loads, use["starved"].stack) >= 4 * 32


def test_a_function_that_was_not_inlined_is_counted_apart():
    use = resource_use(compiled(None, source=APART, verbose=True).log)
    name = next(name for name in use if "apart" in name)
    assert set(use) == {"calls", name}
    assert use["calls"].registers > 0
    assert use[name].registers == 0
    assert max(each.stack for each in use.values()) >= 4 * 64


def test_a_log_without_figures_is_no_proof_of_none():
    with pytest.raises(ValueError, match="verbose=True"):
        resource_use(compiled(None).log)


def test_a_verbose_compilation_leaves_the_cache_alone(tmp_path):
    assert [compiled(tmp_path, verbose=True).cached for _ in range(2)] == [False, False]
    assert not entries(tmp_path)


# ---- the cache ------------------------------------------------------------------------------------------------------


def test_the_second_compilation_is_read_from_disk_and_the_same(tmp_path):
    first, second = compiled(tmp_path), compiled(tmp_path)
    assert (first.cached, second.cached) == (False, True)
    assert first.cubin == second.cubin == compiled(None).cubin


@pytest.mark.parametrize("other", [{"factor": 4}, {"arch": "sm_80"}, {"source": SCALE + "\n"}])
def test_other_macros_architectures_and_sources_are_compiled_apart(tmp_path, other):
    compiled(tmp_path)
    found = compiled(tmp_path, **other)
    assert not found.cached
    assert found.cubin == compiled(None, **other).cubin
    assert compiled(tmp_path).cached
    assert compiled(tmp_path, **other).cached


def test_another_build_of_the_compiler_compiles_anew(tmp_path, monkeypatch):
    compiled(tmp_path)
    monkeypatch.setattr(nvrtc, "_library", lambda: b"another build")
    assert not compiled(tmp_path).cached


def test_four_processes_at_once_all_get_the_same_cubin(tmp_path):
    cache = tmp_path / "made" / "by" / "them"
    code = f"""{ALONE}
import json, warnings
from pathlib import Path
import cuda.core, cuda.core.utils
warnings.simplefilter("error")
print("ready", flush=True)
sys.stdin.readline()
found = nvrtc.compile_cubin({SCALE!r}, arch="sm_90", macros={{"FACTOR": 3}}, cache=Path({str(cache)!r}))
print(json.dumps([found.cached, found.cubin.hex()]))
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen([sys.executable, "-B", "-c", code], text=True, **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, answers
    found = [json.loads(answer) for answer, _ in answers]
    assert {bytes.fromhex(cubin) for _, cubin in found} == {compiled(None).cubin}
    assert not all(cached for cached, _ in found)
    assert len(entries(cache)) == 1
    assert compiled(cache).cached


def cut_short(entry):
    return entry[: len(entry) // 2]


def emptied(entry):
    return b""


def one_bit_flipped(entry):
    return entry[:1000] + bytes([entry[1000] ^ 1]) + entry[1001:]


@pytest.mark.parametrize("damage", [cut_short, emptied, one_bit_flipped])
def test_a_damaged_entry_is_compiled_anew_and_mended(tmp_path, damage):
    right = compiled(tmp_path).cubin
    (path,) = entries(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=f"{re.escape(str(tmp_path))} is damaged") as caught:
        found = compiled(tmp_path)
    assert (found.cubin, found.cached, len(caught)) == (right, False, 1)
    assert compiled(tmp_path).cached
    assert compiled(tmp_path).cubin == right


def test_an_entry_under_the_name_of_another_is_not_taken_for_it(tmp_path):
    compiled(tmp_path)
    (path,) = entries(tmp_path)
    other = compiled(tmp_path, factor=4).cubin
    (second,) = set(entries(tmp_path)) - {path}
    shutil.copyfile(path, second)
    with pytest.warns(UserWarning, match="damaged"):
        assert compiled(tmp_path, factor=4).cubin == other


def test_a_folder_in_the_place_of_an_entry_is_lived_with(tmp_path):
    compiled(tmp_path)
    (path,) = entries(tmp_path)
    path.unlink()
    path.mkdir()
    assert_compiles_without(tmp_path, "Is a directory")


def test_a_file_in_the_place_of_the_folder_is_lived_with(tmp_path):
    cache = tmp_path / "kernels"
    cache.write_text("not a folder")
    assert_compiles_without(cache, "File exists")
    assert cache.read_text() == "not a folder"


def test_a_folder_that_cannot_be_made_is_lived_with(tmp_path):
    (tmp_path / "file").touch()
    assert_compiles_without(tmp_path / "file" / "kernels", "Not a directory")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder that root cannot write to either")
def test_a_folder_that_takes_no_files_is_lived_with():
    assert_compiles_without(Path("/proc/self"), "Operation not permitted")


@root_writes_everywhere
def test_a_read_only_folder_is_lived_with(tmp_path):
    tmp_path.chmod(0o500)
    assert_compiles_without(tmp_path, "Permission denied")


@root_writes_everywhere
def test_a_read_only_folder_is_read_from(tmp_path):
    compiled(tmp_path)
    for folder in (*(path for path in tmp_path.rglob("*") if path.is_dir()), tmp_path):
        folder.chmod(0o500)
    assert compiled(tmp_path).cached
    with pytest.warns(UserWarning, match="Permission denied"):
        assert not compiled(tmp_path, factor=4).cached


@pytest.mark.skipif(sys.platform == "win32", reason="limits are those of POSIX")
def test_a_full_disk_is_lived_with(tmp_path):
    # A file may grow to 1000 bytes and not beyond: as on a full disk, it can be made and begun, and then a write fails
    # (EFBIG where a full disk gives ENOSPC, both an OSError). The limit is set once everything has been imported.
    code = f"""{ALONE}
import json, resource, warnings
from pathlib import Path
import cuda.core, cuda.core.utils
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = [
        nvrtc.compile_cubin({SCALE!r}, arch="sm_90", macros={{"FACTOR": 3}}, cache=Path({str(tmp_path)!r}))
        for _ in range(2)
    ]
print(json.dumps([[[each.cached, each.cubin.hex()] for each in found], [str(each.message) for each in caught]]))
"""
    found, warned = json.loads(python(code))
    assert found == [[False, compiled(None).cubin.hex()]] * 2
    assert len(warned) == 1
    assert str(tmp_path) in warned[0]
    assert "File too large" in warned[0]
    assert not entries(tmp_path)
    assert not compiled(tmp_path).cached
    assert compiled(tmp_path).cached


# ---- whose code it is -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="modes are those of POSIX")
class TestModes:
    @pytest.fixture(autouse=True)
    def _open_umask(self):
        kept = os.umask(0)
        yield
        os.umask(kept)

    def test_a_new_folder_is_the_users_alone(self, tmp_path):
        compiled(tmp_path / "kernels")
        assert (tmp_path / "kernels").stat().st_mode & 0o777 == 0o700

    def test_a_folder_that_others_can_read_becomes_the_users_alone(self, tmp_path):
        cache = tmp_path / "kernels"
        cache.mkdir(mode=0o755)
        assert [compiled(cache).cached for _ in range(2)] == [False, True]
        assert cache.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
    def test_a_folder_that_others_can_write_to_is_neither_read_nor_written(self, tmp_path, mode):
        cache = tmp_path / "kernels"
        compiled(cache)
        before = {path: path.stat().st_mtime_ns for path in entries(cache)}
        cache.chmod(mode)
        assert_compiles_without(cache, "other users can write to it")
        assert {path: path.stat().st_mtime_ns for path in entries(cache)} == before
        assert cache.stat().st_mode & 0o7777 == mode

    def test_the_folder_of_another_user_is_neither_read_nor_written(self, tmp_path):
        cache = Path("/usr")
        if os.geteuid() == 0:
            cache = tmp_path / "kernels"
            compiled(cache)
            os.chown(cache, 65534, -1)
        assert_compiles_without(cache, "belongs to another user")


# ---- where and whether ----------------------------------------------------------------------------------------------


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERPTRAIN_CACHE", str(tmp_path))
    assert nvrtc.cache_folder() == tmp_path / "kernels"


@pytest.mark.skipif(sys.platform != "linux", reason="the variable is that of Linux desktops")
def test_the_cache_lies_in_the_users_cache_folder_else(monkeypatch, tmp_path):
    monkeypatch.delenv("INTERPTRAIN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert nvrtc.cache_folder() == tmp_path / "interptrain" / "kernels"


def test_nothing_is_missing_here():
    assert nvrtc.missing() is None


@pytest.mark.parametrize(
    ("hidden", "package"),
    [("cuda", "cuda-bindings"), ("cuda.bindings", "cuda-bindings"), ("cuda.core", "cuda-core"), ("platformdirs",) * 2],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(hidden, package):
    said = python(f"{ALONE}\nHIDDEN = {hidden!r}\n{HIDE}\nprint(nvrtc.missing())")
    assert said.startswith(f"{package} is not installed")
    assert said.endswith("pip install 'interptrain[cuda]'")
    assert "\n" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path):
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith("nvidia"):
            (tmp_path / path.name).symlink_to(path)
    paths = ("CUDA_PATH", "CUDA_HOME", "CONDA_PREFIX", "LD_LIBRARY_PATH", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in paths}
    code = f"import sys; sys.path.append({str(tmp_path)!r})\n{ALONE}\nprint(nvrtc.missing())"
    said = python(code, "-S", environment=environment)
    if said == "None":
        pytest.skip("the system has an NVRTC of its own")
    assert said.startswith("the NVRTC library was not found")
    assert said.endswith("pip install 'nvidia-cuda-nvrtc>=13.0,<14'")


def test_importing_the_module_imports_neither_cuda_nor_platformdirs():
    wanted = "[name for name in sys.modules if name.partition('.')[0] in ('cuda', 'platformdirs')]"
    assert python(f"{ALONE}\nprint({wanted})") == "[]"
    # torch takes cuda.bindings where it finds them; the package adds nothing to that
    code = f"import sys, torch\nbefore = {wanted}\nimport interptrain.projection.nvrtc\nprint({wanted} == before)"
    assert python(code) == "True"


WITHOUT = """
import torch
from interptrain.projection import Backend, Matrix
cpu = torch.device("cpu")
print(Backend("auto").explained(cpu))
gradient = torch.ones(4, 2)
Backend("auto").on(cpu).steer_([Matrix(gradient, torch.eye(4)[:1], -torch.eye(1))])
print(gradient[:, 0].tolist())
try:
    Backend("cuda").on(cpu)
except RuntimeError as error:
    print(error)
"""


def test_without_the_extra_everything_works_and_the_kernels_by_name_say_what_to_install():
    auto, steered, refused = python(f"import sys\nHIDDEN = 'cuda'\n{HIDE}\n{WITHOUT}").splitlines()
    assert auto == "torch, as cpu is no CUDA device"
    assert steered == "[0.0, 1.0, 1.0, 1.0]"
    assert refused.startswith('backend="cuda" cannot run: cpu is no CUDA device; cuda-bindings is not installed')
    assert refused.endswith("pip install 'interptrain[cuda]'")
