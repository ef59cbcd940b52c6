"""Figures of probes, one module each; they need matplotlib but no torch."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from runner.figures.drawing import Measured

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "drawing"))

__all__ = ["NAMES", "draw"]


def draw(name: str, arms: Measured) -> Figure:
    """The figure of the probe `name`, of one measurement or of several arms that differ by line, marker and label.

    An arm is a pair of a label and a measurement, or of a label and the measurements of several seeds. Several seeds
    are shown by their median with a band from the smallest to the largest value, or by a dot each. Heat maps show the
    first seed, and their title says so.

    Raises ValueError for an unknown name, without arms, and if the seeds of an arm measured different layers.
    """
    if name not in NAMES:
        raise ValueError(f"figure={name}: there is no probe of that name. Choose from {', '.join(NAMES)}.")
    from runner.figures.drawing import labelled  # on demand: matplotlib is slow to import

    return importlib.import_module(f"runner.figures.{name}").figure(labelled(arms))
