"""Probes: what a model does with a batch, as arrays and numbers; the model stays as it was.

A probe module has a function of its own name, from a model and batches to a `Measurement`; `runner.figures` draws it.
Probes hook modules: give them the plain model, not one that is compiled or wrapped for several processes.
"""

from runner.probes.probe import Batch, Loss
from runner.results.measurement import Measurement

__all__ = ["Batch", "Loss", "Measurement"]
