"""A runner for experiments on normalization and regularization in residual networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.experiment.load import load_run

__version__ = "0.1.0"
__all__ = ["load_run"]


def __getattr__(name: str) -> object:
    if name == "load_run":  # on demand: the command line answers --help without importing torch
        from runner.experiment.load import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
