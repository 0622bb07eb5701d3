"""A run that was cut off goes on: what was begun, what is done, and from where."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from interptrain.recipes.provenance import make_folder
from interptrain.recorders.document import Run

if TYPE_CHECKING:
    from pytorch_lightning.callbacks import ModelCheckpoint

_FOLDER, _START = "unfinished", "start.json"


@dataclass(frozen=True)
class Unfinished:
    """What is kept in `OUT/unfinished` until a recipe ends.

    Args:
        out: the recipe's folder.
    """

    out: Path

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return self.out / _FOLDER

    def claim(self, settings: dict[str, Any], *, resume: bool) -> dict[str, Any] | None:
        """Look whether the folder can take a run, or holds one to go on with.

        Args:
            settings: as JSON; a run goes on with the settings that it was begun with.
            resume: whether to go on.

        Returns:
            What was kept at the start of the run that goes on; None for a new one.

        Raises:
            ValueError: the folder cannot be written, holds a run, holds none to go on with, or one of other settings.
        """
        start = self.folder / _START
        if resume:
            if not start.is_file():
                raise ValueError(f"'{self.out}' holds no run that was cut off; leave resume out to start one")
            kept: dict[str, Any] = json.loads(start.read_text(encoding="utf-8"))
            changed = [name for name in settings if kept["settings"].get(name) != settings[name]]
            if changed:
                raise ValueError(
                    f"the run in '{self.out}' was begun with another {', '.join(changed)}; resume it with the same"
                )
            return kept
        if start.is_file():
            raise ValueError(f"'{self.out}' holds a run that was cut off: resume it (--resume), or name another folder")
        if (self.out / "report.json").exists():
            raise ValueError(f"'{self.out}' holds a finished run; name another folder (--out)")
        there = next(each for each in (self.out.absolute(), *self.out.absolute().parents) if each.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):  # asked before a model is loaded; made once it is sure
            found = "is read-only" if there.is_dir() else "is a file"
            raise ValueError(f"cannot write to '{self.out}': '{there}' {found}; name another folder (--out)")
        return None

    def begin(self, kept: dict[str, Any]) -> None:
        """Keep what a run that goes on must not find out anew; from now on there is one to go on with."""
        make_folder(self.folder)
        _write(self.folder / _START, kept)

    def keeper(self, name: str, every: int) -> ModelCheckpoint:
        """The callback that keeps the last checkpoint of a run."""
        from pytorch_lightning.callbacks import ModelCheckpoint

        return ModelCheckpoint(
            dirpath=self.folder / name, filename="{step}", every_n_train_steps=every, save_top_k=1, monitor=None
        )

    def checkpoint(self, name: str) -> tuple[Path | None, int]:
        """A run's last checkpoint and the steps done in it."""
        found = [(int(path.stem.removeprefix("step=").partition("-")[0]), path) for path in self._kept(name)]
        steps, last = max(found, default=(0, None))
        return last, steps

    def keep(self, name: str, run: Run) -> None:
        """Keep what a run came to; its checkpoint is no longer needed."""
        _write(self.folder / f"{name}.json", dict(run))
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def result(self, name: str) -> Run | None:
        """What a run came to, if it is done."""
        file = self.folder / f"{name}.json"
        return cast("Run", json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def end(self) -> None:
        """Nothing is left to go on with."""
        shutil.rmtree(self.folder)

    def _kept(self, name: str) -> list[Path]:
        return sorted((self.folder / name).glob("step=*.ckpt"))


def _write(file: Path, content: dict[str, Any]) -> None:
    """As a whole or not at all."""
    half = file.with_suffix(".half")
    half.write_text(json.dumps(content), encoding="utf-8")
    half.replace(file)
