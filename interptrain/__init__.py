"""Read and steer what a fine-tuning run teaches, concept by concept, while it trains.

from interptrain import ConceptBank, suppress
from interptrain.callbacks.lightning import ConceptSteering

trainer = Trainer(callbacks=[ConceptSteering(bank, suppress("pirate"))])
"""

from interptrain._version import __version__
from interptrain.concepts import ConceptBank
from interptrain.interventions import (
    ablate,
    emphasise,
    gate,
    hold,
    inoculate,
    penalise,
    prevent,
    retain,
    route,
)
from interptrain.projection import project, steer_
from interptrain.report import Recorder, StepReport
from interptrain.sites import find_sites
from interptrain.steerer import Steerer
from interptrain.steering import amplify, chain, keep_only, observe, one_sided, scheduled, suppress

__all__ = [
    "ConceptBank",
    "Recorder",
    "Steerer",
    "StepReport",
    "__version__",
    "ablate",
    "amplify",
    "chain",
    "emphasise",
    "find_sites",
    "gate",
    "hold",
    "inoculate",
    "keep_only",
    "observe",
    "one_sided",
    "penalise",
    "prevent",
    "project",
    "retain",
    "route",
    "scheduled",
    "steer_",
    "suppress",
]
