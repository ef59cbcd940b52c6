"""One line of the table that `bench.py all` prints: what was measured, what stands beside it, the target."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

HEADERS = ("what", "ours", "beside it", "ratio", "quartiles", "target", "met")


@dataclass(frozen=True)
class Result:
    """A measured value, its ratio to another, and a bound on the ratio (without another: on the value).

    `blocks` are the ratios of single interleaved blocks or repeats; their quartiles say how much to trust the ratio.
    """

    what: str  # in words, as "step with AGC, batch 16, 64 px"
    ours: float
    unit: str  # of `ours` and `beside`: images/s, ms, s, MiB, x
    beside: float | None = None
    beside_what: str = ""  # as "timm's train.py"
    bound: float | None = None  # None: no target
    is_upper: bool = True  # at most `bound`, else at least
    blocks: Sequence[float] = ()

    @property
    def value(self) -> float:
        """What the bound is on."""
        return self.ours if self.beside is None else self.ours / self.beside

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        if self.bound is None:
            return None
        return self.value <= self.bound if self.is_upper else self.value >= self.bound

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The lower and the upper one of `blocks`."""
        if len(self.blocks) < 2:
            return None
        low, _, high = statistics.quantiles(self.blocks, n=4, method="inclusive")
        return low, high

    def as_dict(self) -> dict:
        """For the JSON file; `from_dict` reads it."""
        return {
            "what": self.what,
            "ours": self.ours,
            "unit": self.unit,
            "beside": self.beside,
            "beside_what": self.beside_what,
            "value": self.value,
            "quartiles": self.quartiles,
            "at_most" if self.is_upper else "at_least": self.bound,
            "met": self.met,
            "blocks": list(self.blocks),
        }

    @classmethod
    def from_dict(cls, saved: dict) -> Result:
        """The result that `as_dict` gave."""
        bound, is_upper = saved.get("at_most"), "at_most" in saved
        names = ("what", "ours", "unit", "beside", "beside_what", "blocks")
        return cls(**{name: saved[name] for name in names}, bound=saved.get("at_least", bound), is_upper=is_upper)

    def cells(self) -> tuple[str, ...]:
        """The texts under `HEADERS`."""
        beside = "" if self.beside is None else f"{self.beside_what}: {_number(self.beside)}"
        quartiles = "" if self.quartiles is None else " to ".join(f"{each:.3g}" for each in self.quartiles)
        target = "" if self.bound is None else f"at {'most' if self.is_upper else 'least'} {self.bound:g}"
        met = {True: "yes", False: "NO", None: ""}[self.met]
        ratio = "" if self.beside is None else f"{self.value:.3g}"
        return self.what, f"{_number(self.ours)} {self.unit}", beside, ratio, quartiles, target, met


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def console_table(results: Iterable[Result]) -> Table:
    """The results as the terminal shows them."""
    table = Table(box=None, pad_edge=False)
    for header in HEADERS:
        table.add_column(header)
    for result in results:
        table.add_row(*result.cells(), style="yellow" if result.met is False else "")
    return table


def markdown_table(results: Iterable[Result]) -> str:
    """The results as a README shows them."""
    rows = [HEADERS, ["---"] * len(HEADERS), *(result.cells() for result in results)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
