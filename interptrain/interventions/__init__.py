"""What acts on training beside the rules: on the loss, on activations, on the parameters and on the data."""

from interptrain.interventions.ablate import Ablate, ablate
from interptrain.interventions.gate import TokenGate, emphasise, gate
from interptrain.interventions.hold import Hold, hold
from interptrain.interventions.inoculate import Inoculation, inoculate
from interptrain.interventions.intervention import Context, Intervention
from interptrain.interventions.penalise import Penalise, penalise
from interptrain.interventions.prevent import Prevent, prevent
from interptrain.interventions.retain import Retain, retain
from interptrain.interventions.route import Route, route

__all__ = [
    "Ablate",
    "Context",
    "Hold",
    "Inoculation",
    "Intervention",
    "Penalise",
    "Prevent",
    "Retain",
    "Route",
    "TokenGate",
    "ablate",
    "emphasise",
    "gate",
    "hold",
    "inoculate",
    "penalise",
    "prevent",
    "retain",
    "route",
]
