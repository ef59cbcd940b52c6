"""The types of a probe's arguments; its result is a `Measurement`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reading learning curves imports this package, and takes no torch
    from torch import Tensor

Batch = tuple["Tensor", "Tensor"]
"""Normalized images (B, C, H, W) and their targets, on the model's device."""

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Logits in float32 and targets to the mean loss, a scalar."""
