"""Several processes that train one model, on this machine."""

import os
import pickle
import sys
import time
import traceback
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from interptrain import processes

LIMIT = 120  # seconds that all of them have together


def in_processes(count, run, folder, *, limit=LIMIT):
    """What `run(rank, count)` returns in each of several processes; fails where one of them raises or hangs.

    They are forked, so that nothing is imported again and `run` may be any function.

    Args:
        count: how many.
        run: what each does, with `torch.distributed` initialised (gloo).
        folder: for what they return, and to find each other in.
        limit: seconds until they are ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = torch.multiprocessing.get_context("fork")
    found = [context.Process(target=_process, args=(rank, count, run, folder)) for rank in range(count)]
    for process in found:
        process.start()
    end = time.monotonic() + limit
    while any(process.is_alive() for process in found) and time.monotonic() < end:
        if any(process.exitcode not in (None, 0) for process in found):
            time.sleep(0.5)  # for the others to say why they fail too
            break
        time.sleep(0.02)
    hanging = [rank for rank, process in enumerate(found) if process.is_alive()]
    for process in found:
        process.kill()
        process.join()
    errors = [(folder / f"error{rank}").read_text() for rank in range(count) if (folder / f"error{rank}").exists()]
    if errors:
        pytest.fail("\n".join(errors))
    if hanging:
        pytest.fail(f"processes {hanging} of {count} did not end within {limit} seconds")
    return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(count)]


def _process(rank, count, run, folder):
    status = 1
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=count
        )
        torch.manual_seed(0)
        (folder / f"result{rank}").write_bytes(pickle.dumps(run(rank, count)))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        status = 0
    except BaseException:  # noqa: BLE001  whatever it was, the test says so
        (folder / f"error{rank}").write_text(f"in process {rank} of {count}:\n{traceback.format_exc()}")
    finally:
        os._exit(status)  # nothing of pytest's own is to end in here


@contextmanager
def counted_collectives():
    """Counts the package's collectives meanwhile, by name: what FSDP2 and DDP do themselves is not in it."""
    counts, module = Counter(), torch.distributed
    names = {"all_reduce": "all_reduce", "all_gather_into_tensor": "all_gather", "all_gather_single": "all_gather"}
    real = {name: getattr(module, name) for name in names if hasattr(module, name)}

    def counting(name):
        def call(*args, **kwargs):
            counts[names[name]] += sys._getframe(1).f_globals["__name__"] == processes.__name__
            return real[name](*args, **kwargs)

        return call

    for name in real:
        setattr(module, name, counting(name))
    try:
        yield counts
    finally:
        for name, function in real.items():
            setattr(module, name, function)
