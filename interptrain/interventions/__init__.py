"""What acts on training beside the rules: gates, holds, penalties, and what they share."""

from interptrain.interventions.gate import TokenGate, emphasise, gate
from interptrain.interventions.hold import Hold, hold
from interptrain.interventions.intervention import Context, Intervention
from interptrain.interventions.penalise import Penalise, penalise
from interptrain.interventions.retain import Retain, retain

__all__ = [
    "Context",
    "Hold",
    "Intervention",
    "Penalise",
    "Retain",
    "TokenGate",
    "emphasise",
    "gate",
    "hold",
    "penalise",
    "retain",
]
