"""Do a bank's SAEs fit the model? What they explain of its activations, beside the same at its other layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interptrain.concepts.bank import ConceptBank, Readout
from interptrain.concepts.saelens import load_sae_readout
from interptrain.meters.explained import ExplainedVariance, Reconstruction, add_reconstruction, reconstructions
from interptrain.meters.probes import callable_model, evaluating
from interptrain.meters.tokens import OUTLIER_NORM, Positions, bos_token, leading_bos
from interptrain.sites.reading import reading_point
from interptrain.sites.stack import find_stack

POOR = 0.5  # explained variance under which a warning is due
SAMPLE, LEAST = 512, 64  # tokens looked at in a pass at most, and in all at least


@dataclass(frozen=True)
class Fit:
    """How much of the activations an SAE explains where the bank has it, and at the same place of other layers.

    Args:
        hook: the read-out's, in the bank.
        explained: share of the variance of what it reconstructs, see `ExplainedVariance`.
        elsewhere: the same SAE on other layers' activations, by hook point: what a wrong layer would have.
        tokens: looked at.
        prepend_bos: whether the SAE was trained on texts that begin with a BOS token, if it says so.
        with_bos: the share of the texts looked at that begin with one; None where it is not known.
    """

    hook: str
    explained: float
    elsewhere: Mapping[str, float]
    tokens: int
    prepend_bos: bool | None = None
    with_bos: float | None = None

    @property
    def best_elsewhere(self) -> tuple[str, float] | None:
        """The other layer whose activations it explains best."""
        return max(self.elsewhere.items(), key=lambda item: item[1], default=None)

    @property
    def better_elsewhere(self) -> str | None:
        """That layer's hook point, if at most half as much is left unexplained there."""
        best = self.best_elsewhere
        return best[0] if best is not None and 1 - best[1] < (1 - self.explained) / 2 else None

    @property
    def doubtful(self) -> bool:
        """Whether it is poor here, or clearly better at another layer."""
        return not self.explained >= POOR or self.better_elsewhere is not None

    def __str__(self) -> str:
        best = self.best_elsewhere
        other = f", of other layers at most {_short(best[1])}, at {best[0]}" if best is not None else ""
        return f"the SAE at {self.hook} explains {_short(self.explained)} of the variance ({self.tokens} tokens){other}"

    def doubt(self) -> str:
        """What to tell the user where it is doubtful."""
        here = f"the SAE at {self.hook} explains {_short(self.explained)} of the variance of this model's activations"
        if self.better_elsewhere is not None:
            there = self.better_elsewhere
            return f"{here}, and {_short(self.elsewhere[there])} at {there}: was the SAE trained there?"
        bos = ""
        if self.prepend_bos and self.with_bos is not None and self.with_bos < 1:
            bos = f"; it was trained behind a BOS token, which {_short(self.with_bos)} of these texts begin with"
        return (
            f"{here}, so its latents say little about them: was it trained on another model, on this one before it was "
            f"fine-tuned, or on other kinds of text?{bos}"
        )


class FitCheck:
    """Looks at one forward pass of a model, and changes nothing of it.

    It draws no random numbers and runs the SAEs on detached activations, outside of autocast. Of a training run it
    looks at the first passes, until 64 tokens were seen; of texts of its own, at passes in eval mode.

    Args:
        bank: whose SAEs are looked at.
        positions: of training, for passes whose batch nobody shows.
        done: is given what was found, as soon as it is.

    Raises:
        ModuleNotFoundError: SAELens is not installed.
        ValueError: the installed SAELens does not know an SAE.

    Example:
        >>> from interptrain import tiny_world
        >>> check = FitCheck(tiny_world.concept_bank())
        >>> (fit,) = check.look(tiny_world.load_base(), tiny_world.probe_batches(32)["neutral"])
        >>> fit.doubtful, max(fit.elsewhere.values()) < fit.explained
        (False, True)
    """

    def __init__(
        self,
        bank: ConceptBank,
        positions: Positions | None = None,
        *,
        done: Callable[[tuple[Fit, ...]], None] = lambda fits: None,
    ) -> None:
        self._of = reconstructions(bank)
        self._saes = {each.hook: load_sae_readout(bank.readouts[each.hook]) for each in self._of}
        self._readouts, self._positions, self._done = bank.readouts, positions or Positions(), done
        self._pass, self._handles = _Pass(), list[RemovableHandle]()
        self._tallies: dict[tuple[str, str], ExplainedVariance] = {}
        self._places: dict[str, tuple[Reconstruction, ...]] = {}
        self._bos: int | None = None
        self.fits: tuple[Fit, ...] = ()

    def look(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> tuple[Fit, ...]:
        """Run texts through a model, one batch where it has 64 tokens, and say what the SAEs explain of them."""
        inner = callable_model(model)
        device = next(inner.parameters()).device
        with self._listening(inner), evaluating(model):
            for batch in batches:
                self.expect(batch)
                inner(input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device))
                if self._enough:
                    break
        self._conclude()
        return self.fits

    def listen(self, model: nn.Module) -> None:
        """Look at the first training passes that come."""
        self._pass.training = True
        self._register(model)

    def stop(self) -> None:
        """Remove the hooks and give the SAEs' memory back."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._saes.clear()
        self._pass = _Pass()

    def expect(self, batch: Any) -> None:
        """Say what comes: the forward pass's `input_ids` and `attention_mask`; what is no mapping says nothing."""
        if not isinstance(batch, Mapping) or not isinstance(batch.get("input_ids"), Tensor):
            return
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        attended = torch.ones_like(ids) if mask is None else mask
        if attended.shape != ids.shape or ids.ndim != 2:
            return
        bos = leading_bos(ids, attended, self._bos)
        self._pass.counted, self._pass.index = attended.bool() & ~bos, None
        self._pass.with_bos = bos.any(-1).float().mean()

    @contextmanager
    def _listening(self, model: nn.Module) -> Iterator[None]:
        self._register(model)
        try:
            yield
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()

    def _register(self, model: nn.Module) -> None:
        layers = range(len(find_stack(model).blocks))
        self._bos = bos_token(model)
        self._places = {each.hook: tuple(_at(each, layer) for layer in layers) for each in self._of}
        wanted = dict.fromkeys(
            p for all_layers in self._places.values() for r in all_layers for p in (r.reads, r.target)
        )
        self._pass.places = frozenset(wanted)
        for place in wanted:
            self._handles.append(reading_point(place).listen(model, partial(self._catch, place)))

    def _catch(self, place: str, activation: Tensor) -> None:
        if not self._pass.heeds(activation, self._positions):
            return
        self._pass.caught[place] = self._pass.sample(activation.detach(), self._positions)
        if self._pass.caught.keys() == self._pass.places:
            self._take()

    @torch.no_grad()
    def _take(self) -> None:
        """Every place was seen: see what the SAEs make of it."""
        caught, self._pass.caught, self._pass.index = self._pass.caught, {}, None
        for hook, layers in self._places.items():
            for each in layers:
                tally = self._tallies.setdefault((hook, each.target), ExplainedVariance())
                given, target = caught[each.reads], caught[each.target]
                norms = target.float().norm(dim=-1)
                kept = norms <= OUTLIER_NORM * norms.median()
                where = _room(self._readouts[hook], given.device)
                add_reconstruction(tally, self._saes[hook], given[kept].to(where), target[kept].to(where))
        if self._pass.training and self._enough:
            self._conclude()

    @property
    def _enough(self) -> bool:
        return all(tally.tokens >= LEAST for tally in self._tallies.values())

    def _conclude(self) -> None:
        found = {key: float(tally.value()) for key, tally in self._tallies.items()}
        with_bos = None if self._pass.with_bos is None else float(self._pass.with_bos)
        fits = []
        for each in self._of:
            own = _at(each, reading_point(each.target).layer).target
            others = {target: value for (hook, target), value in found.items() if hook == each.hook and target != own}
            said = self._saes[each.hook].cfg.metadata.prepend_bos
            tokens = self._tallies[each.hook, own].tokens
            fits.append(Fit(each.hook, found[each.hook, own], others, tokens, said, with_bos))
        self.fits = tuple(fits)
        self.stop()
        self._done(self.fits)


@dataclass
class _Pass:
    """One forward pass: which of its tokens count, and what of it was caught."""

    training: bool = False
    counted: Bool[Tensor, "batch token"] | None = None
    with_bos: Tensor | None = None
    places: frozenset[str] = frozenset()
    caught: dict[str, Tensor] = field(default_factory=dict)
    index: Tensor | None = None
    shape: torch.Size | None = None

    def heeds(self, activation: Tensor, positions: Positions) -> bool:
        """Whether this pass is to be looked at: one of training that is not an intervention's, or one asked for."""
        if self.training and (positions.asking or not torch.is_grad_enabled()):
            return False
        mask = self._mask(positions)
        return activation.ndim == 3 and (mask is None or mask.shape == activation.shape[:2])

    def sample(self, activation: Float[Tensor, "batch token width"], positions: Positions) -> Float[Tensor, "_ width"]:
        """The counted tokens' activations, evenly thinned out; the same tokens at every place of a pass."""
        flat = activation.flatten(0, 1)
        if self.index is None or self.shape != activation.shape[:2]:  # a pass that broke off leaves nothing
            mask = self._mask(positions)
            counted = torch.ones(len(flat), dtype=torch.bool) if mask is None else mask.flatten()
            every = counted.nonzero()[:, 0]
            self.index, self.shape = every[:: -(-len(every) // SAMPLE) or 1], activation.shape[:2]
            self.caught.clear()
        return flat.index_select(0, self.index.to(flat.device))

    def _mask(self, positions: Positions) -> Bool[Tensor, "batch token"] | None:
        return positions.current if self.counted is None else self.counted


def _at(of: Reconstruction, layer: int) -> Reconstruction:
    """The same reconstruction at another layer."""
    reads, target = reading_point(of.reads), reading_point(of.target)
    return Reconstruction(of.hook, reads.at(layer).name, target.at(layer + target.layer - reads.layer).name)


def _room(readout: Readout, device: torch.device) -> torch.device:
    """Where to run an SAE once: beside the model, if a third of the memory that is free there holds it."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if 3 * sum(tensor.nbytes for tensor in readout.weights.values()) < free else torch.device("cpu")


def _short(share: float) -> str:
    return f"{share:.2f}".replace("0.", ".", 1) if 0 <= share < 1 else f"{share:.2f}"
