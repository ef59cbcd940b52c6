"""The arms that a claim compares, each with its runs by seed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, takewhile

from runner.claims.claim import Claim
from runner.config.text import canonical
from runner.results.number_text import format_value
from runner.results.run_state import RESULTS
from runner.results.runs import Run


class Undecidable(Exception):
    """The runs lack what a claim needs; the message says what. More seeds of the cells `lacking` would help."""

    def __init__(self, message: str, lacking: Sequence[Cell] = ()) -> None:
        super().__init__(message)
        self.lacking = tuple(lacking)


@dataclass(frozen=True, eq=False)
class Cell:
    """The settings of an arm and its runs by seed."""

    settings: dict[str, object]
    runs: dict[int, list[Run]]


def sides(claim: Claim, runs: Sequence[Run]) -> tuple[list[Cell], list[Cell]]:
    """The cells of the two sides of a claim. Raises Undecidable where one has no run, or runs that did not end."""
    cells = _cells(runs)
    plus, minus = _side(claim, claim.plus, cells), _side(claim, claim.minus, cells)
    _refuse_unended([*plus, *minus])
    return plus, minus


def groups(cells: Sequence[Cell], keys: Iterable[str]) -> list[list[Cell]]:
    """Groups of cells that differ in `keys` alone."""
    found = {}
    for cell in cells:
        found.setdefault(_without(cell, keys), []).append(cell)
    return list(found.values())


def common_seeds(cells: Sequence[Cell]) -> list[int]:
    seeds = set.intersection(*(set(cell.runs) for cell in cells))
    if not seeds:
        raise Undecidable("No seed is common to all runs that are compared.")
    return sorted(seeds)


def seeds_in_order(cells: Sequence[Cell], without: Collection[int] = ()) -> list[int]:
    """The seeds of all cells, but those in `without`, up to the first that one of the cells lacks."""
    every = sorted(set().union(*(cell.runs for cell in cells)).difference(without))
    return list(takewhile(lambda seed: all(seed in cell.runs for cell in cells), every))


def varied(cells: Iterable[Cell]) -> list[str]:
    """The keys in which the cells differ."""
    cells = list(cells)
    keys = dict.fromkeys(key for cell in cells for key in cell.settings)
    return [key for key in keys if len({cell.settings.get(key) for cell in cells}) > 1]


def words(cell: Cell, keys: Iterable[str]) -> str:
    return " ".join(f"{key}={shown(cell.settings[key])}" for key in keys if key in cell.settings)


def shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(shown, value))}]"
    return format_value(value, 10)


def _cells(runs: Sequence[Run]) -> list[Cell]:
    """The runs by arm; a failed run gives way to another one with the same seed that has a result."""
    cells = {}
    for run in runs:
        cell = cells.setdefault(frozenset(run.arm.items()), Cell(run.arm, {}))
        cell.runs.setdefault(run.seed, []).append(run)
    for cell in cells.values():
        for seed, twins in cell.runs.items():
            cell.runs[seed] = [run for run in twins if run.status in RESULTS] or twins
    return list(cells.values())


def _side(claim: Claim, selectors: Iterable[Mapping[str, Sequence[str]]], cells: Sequence[Cell]) -> list[Cell]:
    """The cells that match one of the selectors.

    Each value of a selector must occur with every combination of the other settings: in an unfinished sweep a cell
    without its counterpart would falsify the comparison. Settings that only some cells have, such as agc.clip, need no
    counterpart.
    """
    both = (*claim.plus, *claim.minus)
    compared = [cell for selector in both for single in _single(selector) for cell in _matching(single, cells)]
    named = {key for selector in both for key in selector}
    named |= {key for cell in compared for key in cell.settings if any(key not in other.settings for other in compared)}
    wanted = {_without(cell, named): cell for cell in compared}
    side = {}
    for single in (single for selector in selectors for single in _single(selector)):
        matching = _matching(single, cells)
        asked = " ".join(f"{key}={value}" for key, value in single.items())
        if not matching:
            raise Undecidable(f"There is no run with {asked}.")
        present = {_without(cell, named) for cell in matching}
        for rest, cell in wanted.items():
            if rest not in present:
                missing = words(cell, [key for key in varied(wanted.values()) if key not in named])
                raise Undecidable(f"There is no run with {asked} and {missing}, which what it is compared with has.")
        side |= {id(cell): cell for cell in matching}
    return list(side.values())


def _single(selector: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    return [dict(zip(selector, values, strict=True)) for values in product(*selector.values())]


def _matching(single: Mapping[str, str], cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if all(cell.settings.get(key) == canonical(single[key]) for key in single)]


def _without(cell: Cell, keys: Iterable[str]) -> frozenset:
    """The cell's settings without `keys`."""
    return frozenset((key, value) for key, value in cell.settings.items() if key not in keys)


def _refuse_unended(cells: Sequence[Cell]) -> None:
    every = [run for cell in cells for twins in cell.runs.values() for run in twins]
    if wrong := [run for run in every if run.status not in RESULTS]:
        first, others = wrong[0], f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        reason = (first.error or "no reason given").strip().splitlines()[0]
        count = f"{len(wrong)} of {len(every)} runs did not come to an end"
        raise Undecidable(f"{count}: {first.folder.name} ({first.status}: {reason}){others}.")
    if unknown := [run for run in every if run.seed is None]:
        raise Undecidable(f"The seed of {unknown[0].folder.name} is not known.")
