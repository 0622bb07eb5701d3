"""Projection of gradients on concept directions, and the operator that steers them."""

from interptrain.projection.backend import Backend
from interptrain.projection.cap import cap_factor, capped
from interptrain.projection.frame import Frame
from interptrain.projection.grouped import workspace_bytes
from interptrain.projection.matrix import WHOLE, Matrix, Part, Projector, Sums
from interptrain.projection.precision import full_precision
from interptrain.projection.product import Factors, product_change, steer_product, thin
from interptrain.projection.reference import (
    as_columns,
    correct_,
    energies,
    project,
    steer_,
)
from interptrain.projection.sharded import PartialSums, ShardedProjector

__all__ = [
    "WHOLE",
    "Backend",
    "Factors",
    "Frame",
    "Matrix",
    "Part",
    "PartialSums",
    "Projector",
    "ShardedProjector",
    "Sums",
    "as_columns",
    "cap_factor",
    "capped",
    "correct_",
    "energies",
    "full_precision",
    "product_change",
    "project",
    "steer_",
    "steer_product",
    "thin",
    "workspace_bytes",
]
