"""The Hugging Face callback: `Trainer(callbacks=[ConceptSteering(bank, suppress("pirate"))])`, and TRL's trainers."""

from __future__ import annotations

import sys
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, Self, Unpack

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from interptrain.checkpoint import load_state, save_state
from interptrain.concepts import ConceptBank
from interptrain.optimizers import bare, loss_scale
from interptrain.session import Controls, Options, Rules, Session
from interptrain.warn import warn


class ConceptSteering(Controls, TrainerCallback):
    """Reads every step as concepts, logs their curves, and steers the gradients or what the optimizer made of them.

    Gradients are read (and with `where="gradient"` edited) in `on_pre_optimizer_step`: after unscaling, accumulation
    and clipping. Lightning clips what is steered; for the same here, and in every loop, give `clip_norm` and
    `TrainingArguments(max_grad_norm=0)`. What the optimizer did is read (and with `where="update"` edited) in its own
    step hook. Labels are taken from the model's own call. The curves join the trainer's logs, averaged between two of
    them, and so reach everything in `report_to`, but not the screen; the steering state lies in each checkpoint as
    `interptrain.safetensors`, and a run resumed with `trainer.train(resume_from_checkpoint=...)` goes on from it.

    Give it to the trainer's constructor: what is left when training ends by an error is undone then. In other cases
    `detach()`, or a `with` around it, does.

    Args:
        bank: the concepts.
        rule: what to do to them; a sequence is chained and may hold interventions (`gate`, `hold`, ...);
            `observe()` changes nothing, to the last bit.
        options: those of every callback, see `interptrain.session.Options`.

    Raises:
        ValueError: when training begins, before the first step: the bank does not fit the model, a module is not
            understood, a rule names an unknown concept, a checkpoint's steering state is missing or of another bank,
            or two callbacks of this kind have one name.
        TypeError: an unknown option; when training begins: an optimizer or way of sharding that cannot be steered.

    Example:
        >>> import torch
        >>> from interptrain import ConceptBank, suppress
        >>> bank = ConceptBank.from_directions({"pirate": torch.ones(16)}, hook="blocks.0.hook_resid_post")
        >>> callback = ConceptSteering(bank, suppress("pirate"), every=10)
        >>> callback.rule
        Constant(concept='pirate', gain=0.0)
    """

    def __init__(self, bank: ConceptBank, rule: Rules | None = None, **options: Unpack[Options]) -> None:
        self._session = Session(bank, rule, **options)
        self._screen = _OffTheScreen(self._session)
        self._moved: tuple[list[TrainerCallback], int] | None = None

    def detach(self) -> None:
        """Leave nothing behind on the model, its optimizer and the trainer's order of callbacks."""
        self._session.end()
        if self._moved is not None:
            callbacks, place = self._moved
            callbacks.remove(self._screen)
            callbacks.insert(place, callbacks.pop(callbacks.index(self)))
            self._moved = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the trainer's `train` undo everything when it ends by an error, which no event tells of."""
        trainer = _frame_of(Trainer).f_locals["self"]
        train = trainer.train

        @wraps(train)
        def train_and_clean_up(*arguments: Any, **named: Any) -> Any:
            try:
                return train(*arguments, **named)
            finally:
                self.detach()

        trainer.train = train_and_clean_up

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the sites and attach, or say what does not fit; go on from the checkpoint that is resumed."""
        frame = _frame_of(Trainer)
        self.detach()
        trainer = frame.f_locals["self"]
        callbacks = trainer.callback_handler.callbacks
        if sum(isinstance(each, ConceptSteering) and each._file == self._file for each in callbacks) > 1:
            raise ValueError(
                f"two ConceptSteering callbacks have the name {self._session.name!r}; tell their curves and states "
                'apart: ConceptSteering(..., name="second")'
            )
        self._moved = callbacks, callbacks.index(self)
        callbacks.insert(0, callbacks.pop(self._moved[1]))  # before those that log: they find the curves in the logs
        printing = [n for n, each in enumerate(callbacks) if isinstance(each, (PrinterCallback, ProgressCallback))]
        callbacks.insert(min(printing, default=len(callbacks)), self._screen)
        if (checkpoint := frame.f_locals.get("resume_from_checkpoint")) is not None:
            self._restore(Path(checkpoint), state)
        if trainer.label_smoother is not None or trainer.compute_loss_func is not None:
            warn(
                "the trainer takes the labels out of the model's call (compute_loss_func, label_smoothing_factor): "
                "demand is read at every token that the attention mask keeps, prompts included"
            )
        self._session.start(kwargs["model"], bare(kwargs["optimizer"]))
        self._session.listen(kwargs["model"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the gradients, and steer them in gradient mode."""
        optimizer = kwargs["optimizer"]  # accelerate's, which knows the scaler
        scale = loss_scale(vars(optimizer).get("scaler"), optimizer)
        self._session.steerer.before_step(bare(optimizer), loss_scale=scale)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the mean since the last time among what is logged."""
        if self._session.drain():
            kwargs["logs"].update(self._session.metrics)
            state.log_history[-1].update(self._session.metrics)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the steering state beside the checkpoint's other files."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        try:
            save_state(self._session.state_dict(), folder / self._file)
        except OSError as error:
            warn(f"the steering state of step {state.global_step} is not saved, the run goes on: {error}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print the summary and leave nothing behind."""
        try:
            self._session.summarise()
        finally:
            self._session.end()

    @property
    def _file(self) -> str:
        return f"interptrain-{self._session.name}.safetensors" if self._session.name else "interptrain.safetensors"

    def _restore(self, checkpoint: Path, state: TrainerState) -> None:
        """Take over a checkpoint's steering state; one of a run that was not steered has none, which is said."""
        if (checkpoint / self._file).exists():
            self._session.load_state_dict(load_state(checkpoint / self._file))
        elif any(key.startswith(f"{self._session.prefix}concept/") for entry in state.log_history for key in entry):
            raise ValueError(
                f"'{checkpoint}' is of a run with concept curves but has no {self._file}: it was cut off while it was "
                "written, or its files were moved; resume from the checkpoint before it"
            )
        else:
            warn(f"'{checkpoint}' has no steering state ({self._file}); what the model is now counts as its start")


class _OffTheScreen(TrainerCallback):
    """Takes the curves out of a log before it is printed: there are hundreds of figures."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After those that log, before those that print."""
        for key in self._session.metrics:
            kwargs["logs"].pop(key, None)


def _frame_of(kind: type) -> FrameType:
    """The nearest caller that is a method of an object of this kind; callbacks are not told of their trainer."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), kind):
            return frame
        frame = frame.f_back
    raise RuntimeError(f"no {kind.__name__} is calling; give the callback to a {kind.__name__}")
