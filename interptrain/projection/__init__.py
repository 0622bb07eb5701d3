"""Projection of gradients on concept directions, and the operator that steers them."""

from interptrain.projection.frame import Frame
from interptrain.projection.reference import as_columns, correct_, energies, project, steer_

__all__ = ["Frame", "as_columns", "correct_", "energies", "project", "steer_"]
