"""The check of a run's SAEs: on which texts it is made, and how its result is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from torch import nn

from interptrain.concepts.bank import ConceptBank
from interptrain.interventions.intervention import is_compiled
from interptrain.meters.explained import reconstructions
from interptrain.meters.probe_meter import NEUTRAL
from interptrain.processes import rank
from interptrain.sae_fit import Fit, FitCheck
from interptrain.warn import warn

if TYPE_CHECKING:
    from interptrain.steerer import Steerer


class SAECheck:
    """Looks at the neutral probe set before training, or where there are no probes at the first training pass.

    Args:
        bank: whose SAEs are checked.
        steerer: knows the probe sets, and which tokens count in a pass whose batch nobody shows.
        show: print what was found, in the first process.
    """

    def __init__(self, bank: ConceptBank, steerer: Steerer, *, show: bool) -> None:
        self._bank, self._steerer, self._show = bank, steerer, show and rank() == 0
        self._check: FitCheck | None = None
        self._said = False
        self.fits: tuple[Fit, ...] = ()

    def start(self, model: nn.Module) -> None:
        """Run the probe texts through the model, or begin to look at its training passes.

        Of several processes all run the texts, and the first alone looks at training.
        """
        if not reconstructions(self._bank):
            return
        probes = self._steerer.probes
        try:
            check = FitCheck(self._bank, self._steerer.positions, done=self._done)
        except (ModuleNotFoundError, ValueError) as error:  # SAELens is missing, or is too old for this SAE
            self._print(f"the bank's SAEs are not checked against the model: {error}")
            return
        if probes is not None:
            texts = probes.batches[NEUTRAL if NEUTRAL in probes.names else probes.names[0]]
            check.look(model, texts)
        elif is_compiled(model):
            self._print("the bank's SAEs are not checked, since the model is compiled; with probes they are")
        elif rank() == 0:
            self._check = check
            check.listen(model)

    def expect(self, batch: Any) -> None:
        """Say what the coming pass is of."""
        if self._check is not None and not self.fits:
            self._check.expect(batch)

    def say(self) -> None:
        """Print what was found, and warn where it is doubtful; once, when the run has said where it starts."""
        self._said = True
        for fit in self.fits:
            self._print(str(fit))
            if fit.doubtful:
                warn(f"{fit.doubt()} (check_saes=False leaves this out)")

    def stop(self) -> None:
        """Remove the hooks; what was found stays."""
        if self._check is not None:
            self._check.stop()
            self._check = None

    def _done(self, fits: tuple[Fit, ...]) -> None:
        self.fits = fits
        if self._said:
            self.say()

    def _print(self, what: str) -> None:
        if self._show:
            Console().print(f"interptrain: {what}")
