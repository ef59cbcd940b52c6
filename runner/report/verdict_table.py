"""The verdicts on a study's claims, as a table of a report and on the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from runner.claims.verdict import HOLDS, HOLDS_NOT, UNDECIDABLE, Verdict
from runner.report.console_table import WIDTH
from runner.report.document import Mark, Remark, Table, Unfolding
from runner.results.number_text import format_significant
from runner.tracking.console import is_plain, rows_grid
from runner.tracking.terminal import ascii_line, terminal

SIGNS_AND_KINDS = {HOLDS: ("✓", "good"), HOLDS_NOT: ("✗", "bad"), UNDECIDABLE: ("?", "open")}
SMALLEST_SHOWN = 1e-4
STYLES = {"good": "bold green", "bad": "bold red", "open": "bold yellow"}


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A row for each claim. A sign beside the verdict's word tells it without colour."""
    columns = ("Verdict", "Claim", "Published", "Measured here", "Rule", "Smallest effect to be seen")
    rows = tuple(
        (
            mark(verdict),
            Remark(verdict.claim, verdict.source) if verdict.source else verdict.claim,
            verdict.published or "-",
            Remark(verdict.measured, _p_values(verdict)) if _p_values(verdict) else verdict.measured or "-",
            _folded(_rule(verdict)),
            verdict.smallest_effect_text or "-",
        )
        for verdict in verdicts
    )
    return Table(columns, rows)


def mark(verdict: Verdict) -> Mark:
    """The verdict's sign and word."""
    sign, kind = SIGNS_AND_KINDS[verdict.verdict]
    return Mark(sign, verdict.verdict, kind)


def print_verdicts(verdicts: Sequence[Verdict], console: Console | None = None) -> None:
    """Print each verdict with its claim, the published and the measured value, and the rule.

    At most 80 columns wide on a terminal, elsewhere lines of ASCII, never wrapped.
    """
    if not verdicts:
        return
    console = console or terminal()
    plain = is_plain(console)
    for verdict in verdicts:
        shown = mark(verdict)
        lines = [(name, text) for name, text in _lines(verdict) if text]
        if plain:
            for line in (f"{verdict.verdict}: {verdict.claim}", *(f"  {name}: {text}" for name, text in lines)):
                console.print(Text(ascii_line(line)), soft_wrap=True)
            continue
        width = min(console.width, WIDTH)
        heading = Text.assemble((f"{shown.sign} {shown.word}", STYLES[shown.kind]), "  ", (verdict.claim, "bold"))
        console.print(heading, width=width)
        console.print(Padding(rows_grid(lines), (0, 0, 1, 2)), width=width)


def _lines(verdict: Verdict) -> list[tuple[str, str]]:
    return [
        ("source", verdict.source),
        ("published", verdict.published),
        ("measured", verdict.measured),
        ("p value", _p_values(verdict)),
        ("rule", _rule(verdict)),
        ("smallest effect", verdict.smallest_effect_text),
    ]


def _p_values(verdict: Verdict) -> str:
    """The claim's own p value, and Holm's over all claims, by which fewer may be decided."""
    if math.isnan(verdict.adjusted_p):
        return ""
    together = "" if verdict.after_holm == verdict.verdict else f", by which it is {verdict.after_holm}"
    return f"p = {_p(verdict.p)}; over all claims together (Holm) {_p(verdict.adjusted_p)}{together}"


def _p(value: float) -> str:
    return format_significant(value, 2) if value >= SMALLEST_SHOWN else f"below {SMALLEST_SHOWN:g}"


def _folded(rule: str) -> str | Unfolding:
    """The first clause of the rule, which says what had to lie where; the rest unfolds."""
    head, *rest = re.split(r"(?<=[.;]) ", rule, maxsplit=1)
    return Unfolding(head, rest[0]) if rest else rule


def _rule(verdict: Verdict) -> str:
    """The rule, and for an undecided claim the reason."""
    return f"{verdict.rule} {verdict.why}".strip()
