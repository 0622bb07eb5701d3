"""A run that may be killed at any time and goes on from its last whole checkpoint when it is started again.

It writes a line of curves a step, a checkpoint every other step, and the weights when it is done. Each start is a
process of its own, forked, so that the libraries are imported once.
"""

import multiprocessing
import os
import signal
import time

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torchdata.stateful_dataloader import StatefulDataLoader

from interptrain import gate, scheduled, suppress
from interptrain.callbacks import lightning, transformers
from interptrain.callbacks.torch import attach
from interptrain.recorders import JSONLRecorder
from tests.helpers.loops import adamw, hugging_face
from tests.helpers.models import Sentences, Tuning, llama, lora, trainer, two_concepts

CURVES, WEIGHTS, EVERY = "curves.jsonl", "weights.safetensors", 2


def steering(folder):
    """A scheduled rule, a gate that finds its threshold in the first batch, and probe texts: all have a state."""
    texts = Sentences(count=8, seed=5).tokens
    probes = {"neutral": [{"input_ids": texts, "attention_mask": torch.ones_like(texts)}]}
    rules = [scheduled(suppress("pirate"), lambda step: step / 20), gate("royal", tokens=0.2)]
    options = {"where": "update", "probes": probes, "probe_every": 5, "discover_every": None, "summary": False}
    return (two_concepts(), rules), options | {"recorders": [JSONLRecorder(folder / CURVES)]}


def data():
    generator = torch.Generator().manual_seed(3)
    return StatefulDataLoader(Sentences(count=400), batch_size=8, shuffle=True, generator=generator)


def in_lightning(model, folder, steps):
    given, options = steering(folder)
    whole = [path for path in newest(folder, "*.ckpt") if _is_whole(path)]
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=EVERY, save_top_k=-1)
    run = trainer(folder, lightning.ConceptSteering(*given, **options), keep, steps=steps, enable_checkpointing=True)
    run.fit(Tuning(model, adamw), data(), ckpt_path=whole[0] if whole else None, weights_only=False)


def in_hugging_face(model, folder, steps):
    given, options = steering(folder)
    whole = [path.parent for path in newest(folder, "checkpoint-*/interptrain.safetensors")]
    hugging_face(
        model, folder, transformers.ConceptSteering(*given, **options), max_steps=steps, save_steps=EVERY,
        save_strategy="steps", data=Sentences(count=400),
    ).train(resume_from_checkpoint=str(whole[0]) if whole else None)  # fmt: skip


def in_torch(model, folder, steps):
    given, options = steering(folder)
    optimizer, batches, done, state = adamw([p for p in model.parameters() if p.requires_grad]), data(), 0, None
    if (folder / "state.pt").exists():
        saved = torch.load(folder / "state.pt", weights_only=False)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        batches.load_state_dict(saved["data"])
        done, state = saved["step"], saved["steering"]
    model.train()
    with attach(model, optimizer, *given, state=state, **options) as handle:
        for step, batch in enumerate(batches, start=done + 1):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % EVERY == 0:
                saved = {"model": model, "optimizer": optimizer, "data": batches, "steering": handle}
                torch.save({n: each.state_dict() for n, each in saved.items()} | {"step": step}, folder / "part")
                (folder / "part").replace(folder / "state.pt")
            if step == steps:
                break


def newest(folder, pattern):
    return sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _is_whole(checkpoint):
    try:
        torch.load(checkpoint, weights_only=False)
    except (RuntimeError, EOFError, OSError):
        return False
    return True


LOOPS = {"lightning": in_lightning, "hugging-face": in_hugging_face, "torch": in_torch}


def train(loop, folder, steps):
    """Train from the last whole checkpoint, or from the start; writes the weights at the end."""
    model = lora(llama())
    LOOPS[loop](model, folder, steps)
    tensors = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    save_file(tensors, folder / WEIGHTS)


def start(loop, folder, steps, *, kill_after=None, patience=120.0):
    """Run it in a process of its own, to its end or until SIGKILL.

    Args:
        loop: one of `LOOPS`.
        folder: its files.
        steps: of the whole run.
        kill_after: lines of curves, and seconds from then on.
        patience: seconds for all of it.
    """
    process = multiprocessing.get_context("fork").Process(target=_quietly, args=(loop, folder, steps))
    process.start()
    try:
        if kill_after is not None:
            lines, seconds = kill_after
            _wait(lambda: _lines(folder) >= lines or not process.is_alive(), patience)
            time.sleep(seconds)
            os.kill(process.pid, signal.SIGKILL)
        process.join(patience)
    finally:
        if process.is_alive():
            process.kill()
    expected = 0 if kill_after is None else -signal.SIGKILL
    if process.exitcode != expected:
        raise RuntimeError(
            f"{loop} ended with {process.exitcode}, expected {expected}:\n{(folder / 'log').read_text()}"
        )


def _quietly(loop, folder, steps):
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    train(loop, folder, steps)


def _lines(folder):
    path = folder / CURVES
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _wait(done, patience):
    end = time.monotonic() + patience
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing came in {patience} s")
        time.sleep(0.002)
