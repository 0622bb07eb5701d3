"""Projection of gradients on concept directions, and the operator that steers them."""

from interptrain.projection.frame import Frame
from interptrain.projection.product import Factors, product_change, steer_product, thin
from interptrain.projection.reference import as_columns, correct_, correction_of, energies, project, steer_

__all__ = [
    "Factors",
    "Frame",
    "as_columns",
    "correct_",
    "correction_of",
    "energies",
    "product_change",
    "project",
    "steer_",
    "steer_product",
    "thin",
]
