"""Meters: one quantity a file, each with its null."""

from interptrain.meters.achieved import AchievedGain, achieved_from_shares
from interptrain.meters.demand import DemandMeter
from interptrain.meters.gradient import gradient_reading
from interptrain.meters.inputs import MeanInputs
from interptrain.meters.spans import NULL_GROUPS, Spans, mean_directions, sign_flipped_means
from interptrain.meters.tokens import Positions, loss_positions
from interptrain.meters.write import write_reading

__all__ = [
    "NULL_GROUPS",
    "AchievedGain",
    "DemandMeter",
    "MeanInputs",
    "Positions",
    "Spans",
    "achieved_from_shares",
    "gradient_reading",
    "loss_positions",
    "mean_directions",
    "sign_flipped_means",
    "write_reading",
]
