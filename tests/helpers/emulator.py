"""Compiles CUDA kernels for the CPU and launches them there, thread by thread."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ORDERS = ("ascending", "descending", "shuffled")
HEADER = Path(__file__).parents[1] / "kernels" / "cuda_host.h"
# Hidden, never unique symbols: two sources may name their kernels and their shared memory alike.
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", "-fvisibility=hidden", "-fno-gnu-unique"]
KINDS = {"i": b"i", "u": b"i", "b": b"i", "f": b"f", "V": b"s"}  # of numpy types, as cuda_host.h names parameters


class EmulationError(Exception):
    """What stopped a launch or a compilation; where it was a thread, with its block, number and source line."""


class Settings(ctypes.Structure):
    """`emulator::Settings` of cuda_host.h."""

    _fields_ = (
        ("grid", ctypes.c_int),
        ("block", ctypes.c_int),
        ("order", ctypes.c_int),
        ("shared_bytes", ctypes.c_size_t),
        ("seed", ctypes.c_uint64),
    )


class Argument(ctypes.Structure):
    """`emulator::Argument` of cuda_host.h."""

    _fields_ = (("value", ctypes.c_void_p), ("size", ctypes.c_size_t), ("kind", ctypes.c_char))


class Emulated:
    """Kernels, compiled by g++ for the CPU.

    Args:
        source: CUDA C++. Messages call it `source.cu`, unless it has `#line` directives of its own.
        macros: to define while compiling.
        kernels: names of the `__global__` functions to launch.

    Raises:
        EmulationError: the source does not compile, or there is no g++.

    Example:
        >>> doubled = Emulated("__global__ void twice(float *x) { x[threadIdx.x] *= 2; }", {}, ["twice"])
        >>> numbers = np.arange(4, dtype=np.float32)
        >>> doubled.launch("twice", 1, 4, 0, numbers, order="shuffled")
        >>> numbers
        array([0., 2., 4., 6.], dtype=float32)
    """

    def __init__(self, source: str, macros: Mapping[str, int], kernels: Sequence[str]) -> None:
        launchers = "".join(f"EMULATED_KERNEL({name})\n" for name in kernels)
        text = f'#line 1 "source.cu"\n{source}\n#line 1 "launchers"\n{launchers}'
        self._library = ctypes.CDLL(str(_compiled(text, [f"-D{name}={macros[name]}" for name in sorted(macros)])))
        self.kernels = tuple(kernels)

    def launch(
        self,
        name: str,
        grid: int,
        block: int,
        shared_bytes: int,
        *arguments: np.ndarray | np.generic,
        order: str = "ascending",
        seed: int = 0,
    ) -> None:
        """Runs a kernel to its end.

        Args:
            name: of the kernel.
            grid: blocks.
            block: threads of a block.
            shared_bytes: of dynamic shared memory; filled with NaN before every block.
            arguments: arrays by their address, numpy scalars by value. An address may also be an `np.uint64`.
            order: in which threads, and blocks, run: one of `ORDERS`.
            seed: of the order "shuffled".

        Raises:
            EmulationError: the kernel has gone wrong, or the arguments do not fit its parameters.
        """
        if name not in self.kernels:
            raise ValueError(f"there is no kernel '{name}' among {', '.join(self.kernels)}")
        values = [_value(argument) for argument in arguments]  # alive until the launch is over
        given = (Argument * len(values))(*(Argument(value.ctypes.data, value.nbytes, kind) for value, kind in values))
        settings = Settings(grid, block, ORDERS.index(order), shared_bytes, seed)
        launcher = getattr(self._library, f"emulated_{name}")
        launcher.restype = ctypes.c_bool
        message = ctypes.create_string_buffer(1200)
        done = launcher(
            ctypes.byref(settings), given, ctypes.c_size_t(len(given)), message, ctypes.c_size_t(len(message))
        )
        if not done:
            raise EmulationError(f"{name}: {message.value.decode()}")


def _value(argument: np.ndarray | np.generic) -> tuple[np.ndarray, bytes]:
    """What a kernel gets for an argument, in memory of its own, and its kind."""
    if isinstance(argument, np.ndarray):
        if not argument.flags.c_contiguous:
            raise ValueError(f"an array of shape {argument.shape} and strides {argument.strides} is not contiguous")
        return np.array(argument.ctypes.data, np.uint64), b"p"
    if isinstance(argument, np.generic) and argument.dtype.kind in KINDS:
        return np.array(argument), KINDS[argument.dtype.kind]
    raise TypeError(f"expected a numpy array, or a numpy scalar (it has a size), got {type(argument).__name__}")


def _compiled(text: str, macros: Sequence[str]) -> Path:
    """The library of a source: compiled once on this machine, by whichever process is first."""
    folder = _folder()
    key = "\0".join([_compiler(), *FLAGS, *macros, HEADER.read_text(encoding="utf-8"), text])
    library = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=folder) as own:
        source, built = Path(own, "source.cu"), Path(own, "built.so")
        source.write_text(text, encoding="utf-8")
        command = ["g++", *FLAGS, *macros, "-x", "c++", "-include", str(HEADER), str(source), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
        if done.returncode:
            raise EmulationError(f"the kernels do not compile for the CPU:\n{done.stderr}")
        os.replace(built, library)  # in one stroke: another process sees the whole library or none
    return library


@functools.cache
def _compiler() -> str:
    try:
        found = subprocess.run(["g++", "-dumpfullversion", "-dumpmachine"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise EmulationError(
            "there is no g++ to compile the kernels for the CPU; install the Debian package g++: apt-get install g++"
        ) from None
    return found.stdout


def _folder() -> Path:
    """Where libraries are kept. They are code that gets loaded: nobody else may write there."""
    folder = Path(tempfile.gettempdir(), f"interptrain-emulator-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise EmulationError(f"{folder} is not a folder that only you can write to; remove it")
    return folder
