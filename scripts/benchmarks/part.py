"""What the parts of bench.py share: a module with `HELP`, `IN_ALL`, `add_arguments` and `measure`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from typing import Any

from rich.table import Table

from .result import Result
from .timing import Scale


@dataclass(frozen=True)
class Report:
    """What the `measure` of a part gives: its settings, all it measured for the JSON file, and its results."""

    settings: dict[str, Any]
    measured: dict[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)


def scaled(arguments: argparse.Namespace, scale: Scale, quick: dict, on_cuda: dict) -> Scale:
    """The size of the measurement for the device, and as the arguments say."""
    if scale.device.type == "cuda":
        scale = replace(scale, **on_cuda)
    if arguments.quick:
        scale = replace(scale, **quick)
    given = {key: getattr(arguments, key, None) for key in ("model", "batch_size", "image_size", "steps")}
    return replace(scale, **{key: value for key, value in given.items() if value is not None})


def table_of(first: str, *others: str) -> Table:
    """A table whose first column holds names, and the others numbers."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for header in others:
        table.add_column(header, justify="right")
    return table
