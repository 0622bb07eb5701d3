"""CUDA C++ to a cubin at run time, by NVRTC through cuda.core, and cubins kept on disk from one run to the next.

No nvcc and no build step: the sources of csrc/ are part of the package. NVRTC needs neither a driver nor a GPU.
"""

from __future__ import annotations

import errno
import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as once
from hashlib import sha256
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

LARGEST_CACHE = 64 << 20  # bytes: some hundred programs; those read longest ago go first
CHECKSUM = sha256().digest_size
FUNCTION = re.compile(
    r"Function properties for (\S+)\n\D*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r"(?:\n[^\n]*Used (\d+) registers)?"
)
EXTRA = "pip install 'interptrain[cuda]'"
LIBRARY = "pip install 'nvidia-cuda-nvrtc>=13.0,<14'"
NEEDED = (
    ("cuda-bindings", "cuda.bindings.nvrtc", "nvrtcVersion"),
    ("cuda-core", "cuda.core", "Program"),
    ("cuda-core", "cuda.core.utils", "FileStreamProgramCache"),
    ("platformdirs", "platformdirs", "user_cache_path"),
)


@dataclass(frozen=True)
class Compiled:
    """What came out of a compilation.

    Args:
        cubin: machine code for one architecture, an ELF file.
        log: what NVRTC had to say, empty from the cache.
        cached: whether it was read from disk.
    """

    cubin: bytes
    log: str
    cached: bool


@dataclass(frozen=True)
class Use:
    """What a kernel takes of the device.

    Args:
        registers: a thread; 0 for a function that was not inlined, of which ptxas does not say it.
        spill_stores: bytes a thread.
        spill_loads: bytes a thread.
        stack: bytes a thread.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int


def kernel_source(*names: str) -> str:
    """Files of csrc/ in this order, as one translation unit whose errors name the file and its line.

    Raises:
        FileNotFoundError: there is no such file.

    Example:
        >>> kernel_source("finish.cu").splitlines()[0]
        '#line 1 "finish.cu"'
    """
    folder = files("interptrain") / "csrc"
    return "".join(f'#line 1 "{name}"\n{(folder / name).read_text(encoding="utf-8")}\n' for name in names)


def compile_cubin(
    source: str, *, arch: str, macros: Mapping[str, int], cache: Path | None, verbose: bool = False
) -> Compiled:
    """Compile, or read from the cache what was compiled before.

    A cache that cannot be used costs time and is warned of once; the result is the same.

    Args:
        source: C++17, without headers.
        arch: such as `"sm_90"`.
        macros: name to value, as by `-D`.
        cache: a folder of the user's own; None compiles anew.
        verbose: let ptxas put registers and spills into the log, for `resource_use`; always compiles anew.

    Raises:
        RuntimeError: NVRTC refused; with its log.
    """
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        name="interptrain",
        std="c++17",
        arch=arch,
        define_macro=[(name, str(value)) for name, value in sorted(macros.items())] or None,  # it takes no empty list
        ptxas_options=["-v"] if verbose else None,
    )
    folder = None if verbose else cache
    if folder is not None:
        cubin = _read(folder, source, options)
        if cubin is not None:
            return Compiled(cubin, log="", cached=True)
    log = io.StringIO()
    try:
        cubin = bytes(Program(source, "c++", options=options).compile("cubin", logs=log).code)
    except Exception as error:  # cuda.core does not export the classes that it raises
        asked = " ".join([arch, *(f"-D{name}={value}" for name, value in sorted(macros.items()))])
        raise RuntimeError(f"NVRTC cannot compile for {asked}: {error}") from error
    if folder is not None:
        _write(folder, source, options, cubin)
    return Compiled(cubin, log.getvalue().rstrip("\0 \n"), cached=False)


def cache_folder() -> Path:
    """Where cubins are kept: `kernels` in the user's cache folder for this package, or in `$INTERPTRAIN_CACHE`."""
    base = os.environ.get("INTERPTRAIN_CACHE")
    if base:
        return Path(base).expanduser() / "kernels"
    from platformdirs import user_cache_path

    return user_cache_path("interptrain") / "kernels"


def resource_use(log: str) -> dict[str, Use]:
    """What each kernel of a verbose compilation takes, by its name; functions that were not inlined are named too.

    Raises:
        ValueError: the log is not that of a verbose compilation.

    Example:
        >>> resource_use('''
        ... ptxas info    : Compiling entry function 'finish' for 'sm_90'
        ... ptxas info    : Function properties for finish
        ... ptxas         .     16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
        ... ptxas info    : Used 32 registers, used 1 barriers
        ... ''')
        {'finish': Use(registers=32, spill_stores=8, spill_loads=4, stack=16)}
    """
    found = FUNCTION.findall(log)
    if not found or len(found) != log.count("Function properties for"):
        raise ValueError(f"expected what ptxas says of each function, as by verbose=True, found {log[:200]!r}")
    return {
        name: Use(int(registers or 0), int(stores), int(loads), int(stack))
        for name, stack, stores, loads, registers in found
    }


class Lack(NamedTuple):
    """What is missing to use NVRTC, and the command that installs it."""

    what: str
    mend: str


def lack() -> Lack | None:
    """The first thing that is missing to use NVRTC; None where nothing is. Never raises."""
    for package, module, name in NEEDED:
        try:
            getattr(import_module(module), name)
        except Exception as error:  # noqa: BLE001 - an installation breaks in many ways, all of them worth this sentence
            return Lack(f"{package} is not installed or too old ({_brief(error)})", EXTRA)
    try:
        import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except Exception as error:  # noqa: BLE001 - as above
        return Lack(f"the NVRTC library was not found ({_brief(error)})", LIBRARY)
    return None


def missing() -> str | None:
    """What is missing to use NVRTC and how to install it; None where nothing is. Never raises."""
    found = lack()
    return None if found is None else f"{found.what}: {found.mend}"


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ---- the cache ------------------------------------------------------------------------------------------------------
# cuda.core's cache of files is safe between processes (a temporary file, then a rename) and bounded. It hands out what
# lies there, however, cut short or not, so an entry here is a checksum of key and cubin, then the cubin.


def _read(folder: Path, source: str, options: Any) -> bytes | None:
    """The cubin that was kept; None where there is none, or not an intact one."""
    with _or_compiling(folder):
        key = _key(source, options)
        entry = _opened(folder).get(key)
        if entry is not None and entry[:CHECKSUM] == sha256(key + entry[CHECKSUM:]).digest():
            return entry[CHECKSUM:]
        if entry is not None:
            _warn_once(f"a kernel in the cache {folder} is damaged; it is compiled anew")
    return None


def _write(folder: Path, source: str, options: Any, cubin: bytes) -> None:
    """Keep a cubin, where the disk takes it."""
    with _or_compiling(folder):
        key = _key(source, options)
        _opened(folder)[key] = sha256(key + cubin).digest() + cubin


@contextmanager
def _or_compiling(folder: Path) -> Iterator[None]:
    """Go on without a cache that fails: read-only, full, a file, or someone else's."""
    try:
        yield
    except OSError as error:
        _warn_once(f"kernels are compiled without the cache {folder}: {error.strerror or error}")


@once
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _opened(folder: Path) -> Any:
    """The cache in a folder that nobody else can write to: a cubin is code, and what lies there will be run.

    Raises:
        OSError: the folder cannot be made, or is not the user's alone.
    """
    from cuda.core.utils import FileStreamProgramCache

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_own(folder)
    if os.name == "posix" and folder.stat().st_mode & 0o055:
        folder.chmod(0o700)  # the folders inside are made with the user's umask, which may let a group write
    return FileStreamProgramCache(folder, max_size_bytes=LARGEST_CACHE)


def check_own(folder: Path) -> None:
    """See that nobody else can write to a folder of cubins.

    Raises:
        OSError: it is another user's, or others can write to it.
    """
    if os.name != "posix":
        return
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"it belongs to another user (uid {found.st_uid})")
    if found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, f"other users can write to it (chmod 700 {folder})")


def _key(source: str, options: Any) -> bytes:
    """A digest of source, architecture, macros and compiler."""
    from cuda.core.utils import make_program_cache_key

    return make_program_cache_key(
        code=source, code_type="c++", options=options, target_type="cubin", extra_digest=_library()
    )


@once
def _library() -> bytes:
    """What tells one build of NVRTC from another: the version in cuda.core's key is no finer than 13.0."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    path = load_nvidia_dynamic_lib("nvrtc").abs_path
    if path is None:  # found loaded, by a name that cannot be followed
        return b""
    found = os.stat(path)
    return f"{found.st_size} {found.st_mtime_ns}".encode()
