"""Meters: one quantity a file, each with its null."""

from interptrain.meters.demand import DemandMeter
from interptrain.meters.gradient import gradient_reading
from interptrain.meters.inputs import MeanInputs
from interptrain.meters.spans import NULL_GROUPS, Spans, mean_directions
from interptrain.meters.tokens import Positions, loss_positions

__all__ = [
    "NULL_GROUPS",
    "DemandMeter",
    "MeanInputs",
    "Positions",
    "Spans",
    "gradient_reading",
    "loss_positions",
    "mean_directions",
]
