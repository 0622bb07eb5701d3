"""What is installed, what is missing and what is broken, each with the command that mends it.

Nothing here needs a network, and nothing prints a key.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.table import Table
from rich.text import Text

from interptrain._version import __version__
from interptrain.projection import nvrtc
from interptrain.projection.cuda import OLDEST, obstacles
from interptrain.projection.tables import Program
from interptrain.recorders.wandb_login import wandb_host, wandb_mode
from interptrain.self_test import self_test as tried

Status = Literal["ok", "missing", "broken"]
STYLES: dict[Status, str] = {"ok": "green", "missing": "yellow", "broken": "bold red"}
DOCUMENT_SCHEMA = 1
ELSEWHERE = "sm_90"  # what is compiled for where there is no device
NVRTC = "nvidia-cuda-nvrtc"
DRIVER = Path("/proc/driver/nvidia/version")
HIDING = ("", "-1")  # values of CUDA_VISIBLE_DEVICES that hide all of them on purpose
GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Args:
        part: what it belongs to.
        name: of what was looked at.
        status: `missing` is what only some uses need; `broken` is what is there and does not work.
        found: what there is.
        mend: the command that puts it right; empty where there is nothing to do.
    """

    part: str
    name: str
    status: Status
    found: str
    mend: str = ""


def examine(*, self_test: bool = True) -> list[Finding]:
    """Look at versions, devices, kernels, caches and sinks, and try it out.

    Args:
        self_test: also import every installed package and train a few steps: some tens of seconds.

    Example:
        >>> findings = examine(self_test=False)
        >>> {finding.name: finding.status for finding in findings}["torch"]
        'ok'
    """
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [*versions(), *packages(start=self_test), *devices(), *kernels(), *caches(), wandb()]
        return [*found, *_tried()] if self_test else found


def show(findings: Iterable[Finding], console: Console) -> None:
    """Print a table, and below it the commands, each whole and in a line of its own however narrow the screen."""
    findings = list(findings)
    table = Table(box=None, header_style="bold")
    for column in ("part", "what", "status", "found"):
        table.add_column(column, overflow="fold")
    for above, one in zip([None, *findings], findings, strict=False):
        part = "" if above is not None and above.part == one.part else one.part
        table.add_row(part, one.name, Text(one.status, STYLES[one.status]), Text(one.found))
    console.print(table)
    mends = {one.mend: one.status for one in findings if one.mend}
    if mends:
        console.print("\nwhat puts it right, or adds what is missing:")
    for mend, status in mends.items():
        console.print(Text(f"  {mend}", STYLES[status]), soft_wrap=True)


def as_json(findings: Iterable[Finding]) -> str:
    """The same as a document: `{"schema": 1, "interptrain": version, "findings": [...]}`."""
    document = {"schema": DOCUMENT_SCHEMA, "interptrain": __version__, "findings": [asdict(one) for one in findings]}
    return json.dumps(document, indent=1)


# ---- what is installed ----------------------------------------------------------------------------------------------


def versions() -> Iterator[Finding]:
    """Python, this package and the CUDA that torch was built for."""
    try:
        asked = SpecifierSet(importlib.metadata.metadata("interptrain")["Requires-Python"])
    except importlib.metadata.PackageNotFoundError:
        mend = "pip install interptrain"
        yield Finding("versions", "interptrain", "broken", f"{__version__}, sources that are not installed", mend)
        return
    python = platform.python_version()
    fits = asked.contains(python, prereleases=True)
    mend = "" if fits else "python3.11 -m venv .venv && .venv/bin/pip install interptrain"
    yield Finding("versions", "Python", "ok" if fits else "broken", f"{python}, needs {asked}", mend)
    yield Finding("versions", "interptrain", "ok", __version__)
    built = torch.version.cuda
    yield Finding("versions", "torch's CUDA", "ok", "built without" if built is None else built)


def packages(*, start: bool) -> Iterator[Finding]:
    """What this package needs and what each extra adds, as its own metadata ask for it.

    Extras that only sum up others (`all`, `dev`) are left out.

    Args:
        start: also import what is installed.
    """
    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires("interptrain") or ()]
    except importlib.metadata.PackageNotFoundError:
        return
    named = {extra: [each for each in wanted if _asked_for(each, extra)] for extra in ("", *_extras(wanted))}
    for extra, requirements in named.items():
        if not any(each.name == "interptrain" for each in requirements):
            yield from (_package(each, extra, start=start) for each in requirements)


def _extras(wanted: Iterable[Requirement]) -> list[str]:
    named = re.compile(r"extra == [\"']([^\"']+)")
    return list(dict.fromkeys(extra for each in wanted for extra in named.findall(str(each.marker or ""))))


def _asked_for(requirement: Requirement, extra: str) -> bool:
    """By this extra, and not without it."""
    marker = requirement.marker
    if marker is None:
        return not extra
    return marker.evaluate({"extra": extra}) and (not extra or not marker.evaluate({"extra": ""}))


def _package(requirement: Requirement, extra: str, *, start: bool) -> Finding:
    install = f"pip install 'interptrain[{extra}]'" if extra else "pip install interptrain"
    part = f"extra {extra}" if extra else "needed"
    asked = str(requirement.specifier)
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(part, requirement.name, "missing" if extra else "broken", f"asks for {asked}", install)
    if not requirement.specifier.contains(version, prereleases=True):
        mend = install.replace("install", "install --upgrade", 1)
        return Finding(part, requirement.name, "broken", f"{version}, asks for {asked}", mend)
    if start and (reason := _fails_to_start(requirement.name)) is not None:
        again = f"pip install --force-reinstall --no-deps '{requirement.name}{asked}' && {install}"
        return Finding(part, requirement.name, "broken", f"{version} cannot be imported: {reason}", again)
    return Finding(part, requirement.name, "ok", f"{version}, asks for {asked}")


def _fails_to_start(package: str) -> str | None:
    """Why the module of the same name cannot be imported; None where it can, or where there is none."""
    module = re.sub(r"[-.]+", "_", package).lower()
    files = importlib.metadata.files(package) or ()
    if not any(file.parts[0] == module for file in files):
        return None
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - what others' modules raise when they start is theirs to choose
        return _brief(error)
    return None


# ---- devices and kernels --------------------------------------------------------------------------------------------


def devices() -> Iterator[Finding]:
    """Cores and memory, and what CUDA devices there are."""
    memory = "" if sys.platform == "win32" else f", {_memory() / GIB:.1f} GiB"
    name = platform.processor() or platform.machine()
    yield Finding("devices", "CPU", "ok", f"{name}, {_cores()} cores, {torch.get_num_threads()} torch threads{memory}")
    if torch.cuda.is_available():
        yield from (_device(index) for index in range(torch.cuda.device_count()))
    elif DRIVER.exists() and torch.version.cuda is None:
        mend = "pip install --force-reinstall torch"
        yield Finding("devices", "CUDA", "missing", "there is an NVIDIA driver, this torch is built without CUDA", mend)
    elif DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in HIDING:
        yield Finding("devices", "CUDA", "broken", "there is an NVIDIA driver, but torch finds no device", "nvidia-smi")
    else:
        yield Finding("devices", "CUDA", "ok", "no device: everything runs on the CPU")


def _device(index: int) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    found = f"{properties.name}, {properties.total_memory / GIB:.1f} GiB, {properties.major}.{properties.minor}"
    try:
        worked = float(torch.ones(2, device=f"cuda:{index}").sum()) == 2
    except RuntimeError as error:
        return Finding("devices", f"cuda:{index}", "broken", f"{found}: {_brief(error)}", "nvidia-smi")
    return Finding("devices", f"cuda:{index}", "ok" if worked else "broken", found, "" if worked else "nvidia-smi")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def kernels() -> Iterator[Finding]:
    """Whether NVRTC compiles the kernels: for the devices at hand, or where there are none for one architecture."""
    lack = nvrtc.lack()
    if lack is not None:
        yield _lacking(lack)
        return
    capabilities = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    for major, minor in sorted(each for each in capabilities if each >= OLDEST):
        yield _compiled(f"sm_{major}{minor}", "")
    if not capabilities:
        yield _compiled(ELSEWHERE, ", without a device")
    for index in range(torch.cuda.device_count()):
        reasons = list(obstacles(torch.device("cuda", index)))
        found = f"torch is used, as {'; '.join(reasons)}" if reasons else "the kernels are used"
        yield Finding("kernels", f"on cuda:{index}", "ok", found)


def _lacking(lack: nvrtc.Lack) -> Finding:
    """Missing where a package is; where all are there and NVRTC still does not start, it is broken."""
    lost = [name for name in dict.fromkeys((*(need[0] for need in nvrtc.NEEDED), NVRTC)) if not _installed(name)]
    if lost:
        return Finding("kernels", "NVRTC", "missing", lack.what, lack.mend)
    again = " ".join(word for word in lack.mend.split(" ") if word not in ("pip", "install"))
    return Finding("kernels", "NVRTC", "broken", lack.what, f"pip install --force-reinstall {again}")


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _compiled(arch: str, note: str) -> Finding:
    started, size = time.perf_counter(), 0
    for dtype in (torch.float32, torch.bfloat16):
        program = Program.of(dtype, directions=16, difference=False)
        source = nvrtc.kernel_source(*program.sources)
        try:
            compiled = nvrtc.compile_cubin(source, arch=arch, macros=program.macros(), cache=None)
        except RuntimeError as error:
            mend = nvrtc.LIBRARY.replace("install", "install --force-reinstall", 1)
            return Finding("kernels", arch, "broken", _brief(error), mend)
        size += len(compiled.cubin)
    seconds = time.perf_counter() - started
    return Finding("kernels", arch, "ok", f"float32 and bfloat16 compile in {seconds:.1f} s to {size:,} bytes{note}")


# ---- caches and sinks -----------------------------------------------------------------------------------------------


def caches() -> Iterator[Finding]:
    """Where compiled kernels and what came from the hub are kept, how much it is, and whether more can be."""
    try:
        kernel_cache = nvrtc.cache_folder()
    except ModuleNotFoundError:
        yield Finding("caches", "kernels", "missing", "platformdirs says where it is", nvrtc.EXTRA)
    else:
        yield _cache("kernels", kernel_cache, "INTERPTRAIN_CACHE", check=nvrtc.check_own)
    try:
        hub = importlib.import_module("huggingface_hub.constants")
    except ModuleNotFoundError:
        yield Finding("caches", "hub", "missing", "huggingface_hub says where it is", "pip install 'interptrain[hf]'")
    else:
        yield _cache("hub", Path(hub.HF_HUB_CACHE), "HF_HUB_CACHE", only_read=hub.HF_HUB_OFFLINE)


def _cache(
    name: str, folder: Path, variable: str, *, check: Callable[[Path], None] | None = None, only_read: bool = False
) -> Finding:
    """A folder that may be yet to be made: then the nearest one above it has to take it."""
    try:
        if folder.exists() and check is not None:
            check(folder)
        if not only_read:
            nearest = next(each for each in (folder, *folder.parents) if each.exists())
            tempfile.TemporaryFile(dir=nearest).close()
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    except OSError as error:
        mend = f"export {variable}={shlex.quote(str(Path.home() / 'interptrain-cache'))}"
        return Finding("caches", name, "broken", f"{folder} cannot be used: {error.strerror or error}", mend)
    made = f"{size / MIB:,.1f} MiB" if folder.exists() else "not made yet"
    return Finding("caches", name, "ok", f"{folder}, {made}, {'only read, offline' if only_read else 'writable'}")


def wandb() -> Finding:
    """Where a run of W&B would go from here."""
    if not _installed("wandb"):
        return Finding("sinks", "W&B", "missing", "wandb is not installed", "pip install 'interptrain[wandb]'")
    mode, host = wandb_mode(os.environ), wandb_host(os.environ)
    if mode is None:
        return Finding("sinks", "W&B", "ok", f"WANDB_MODE={os.environ['WANDB_MODE']}")
    if mode == "online":
        return Finding("sinks", "W&B", "ok", f"logged in at {host}")
    return Finding("sinks", "W&B", "missing", f"not logged in at {host}: the recipe's runs stay here", "wandb login")


# ---- trying it out --------------------------------------------------------------------------------------------------


def _tried() -> Iterator[Finding]:
    started = time.perf_counter()
    mend = f"pip install --force-reinstall --no-deps interptrain=={__version__}"
    try:
        for name, passed, found in tried():
            yield Finding("self-test", name, "ok" if passed else "broken", found, "" if passed else mend)
    except Exception as error:  # noqa: BLE001 - whatever keeps a few steps from running is what is to be told
        yield Finding("self-test", "a few steps", "broken", f"{type(error).__name__}: {_brief(error)}", mend)
    yield Finding("self-test", "time", "ok", f"{time.perf_counter() - started:.1f} s")


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def report(console: Console, *, self_test: bool = True, document: bool = False) -> int:
    """Examine and print; the exit status is 1 where something is broken, else 0.

    Args:
        console: to print on.
        self_test: see `examine`.
        document: as JSON.
    """
    findings = examine(self_test=self_test)
    if document:
        console.file.write(as_json(findings) + "\n")
    else:
        show(findings, console)
    return int(any(one.status == "broken" for one in findings))
