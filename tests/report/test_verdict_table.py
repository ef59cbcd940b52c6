from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from runner.claims.verdict import Verdict
from runner.report.document import Remark, Unfolding
from runner.report.verdict_table import print_verdicts, verdict_table

VERDICTS = [
    Verdict(
        claim="Without batch norm the deviation grows [bold]with depth[/bold].",
        source="Bjorck et al. 2018, figure 5",
        published="+0.05 decades a layer",
        measured="+0.060 [+0.058, +0.062], 10 seeds",
        verdict="holds",
        rule="It holds if the whole interval lies above 0.01. " * 3,
        smallest_effect_text="0.002",
    ),
    Verdict(
        "B.", "", "", "-0.1 [-0.2, -0.05], 3 seeds", "does not hold", "It holds above 0.", smallest_effect_text="0.1"
    ),
    Verdict("C.", "", "", "", "undecidable here", "It holds above 0.", why="One seed: no interval \u2013 none."),
]
WORDS = ["holds", "does not hold", "undecidable here"]


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    for key in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_sign_and_a_word_stand_first_in_a_row():
    table = verdict_table(VERDICTS)
    assert [row[0].word for row in table.rows] == WORDS
    assert len({row[0].sign for row in table.rows}) == 3
    first, _, last = table.rows
    assert (first[1].text, first[1].remark) == (VERDICTS[0].claim, VERDICTS[0].source)
    assert first[2:4] == (VERDICTS[0].published, VERDICTS[0].measured)
    assert last[1:] == ("C.", "-", "-", Unfolding("It holds above 0.", "One seed: no interval \u2013 none."), "-")
    assert len(table.columns) == len(first)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_on_a_terminal_it_is_at_most_80_columns_wide(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    print_verdicts(VERDICTS, console)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()).split("\n")
    assert max(map(cell_len, lines)) <= min(width, 80)
    text = " ".join(" ".join(lines).split())
    assert "✓ holds Without batch norm the deviation grows [bold]with depth[/bold]." in text
    assert "✗ does not hold B." in text
    assert "? undecidable here C." in text
    order = [text.index(word) for word in ("source Bjorck", "published +0.05", "measured +0.060", "rule It holds")]
    assert order == sorted(order)


def test_elsewhere_each_part_is_a_line_of_ascii():
    console = Console(file=io.StringIO())
    print_verdicts(VERDICTS, console)
    text = console.file.getvalue()
    assert text.isascii()
    assert text.splitlines() == [
        "holds: Without batch norm the deviation grows [bold]with depth[/bold].",
        "  source: Bjorck et al. 2018, figure 5",
        "  published: +0.05 decades a layer",
        "  measured: +0.060 [+0.058, +0.062], 10 seeds",
        f"  rule: {VERDICTS[0].rule.strip()}",
        "  smallest effect: 0.002",
        "does not hold: B.",
        "  measured: -0.1 [-0.2, -0.05], 3 seeds",
        "  rule: It holds above 0.",
        "  smallest effect: 0.1",
        "undecidable here: C.",
        r"  rule: It holds above 0. One seed: no interval \u2013 none.",
    ]


def test_without_claims_nothing_is_printed():
    console = Console(file=io.StringIO())
    print_verdicts([], console)
    assert console.file.getvalue() == ""


def test_the_clauses_of_a_rule_are_folded_away():
    rule = "The difference must lie above 0.5; 2 runs counted as 10 %. The interval lies on both sides."
    [row] = verdict_table([Verdict("C.", "", "", "", "holds", rule)]).rows
    assert row[4] == Unfolding(
        "The difference must lie above 0.5;", "2 runs counted as 10 %. The interval lies on both sides."
    )


def test_p_values_stand_beside_what_was_measured():
    decided = replace(VERDICTS[0], p=0.0123, adjusted_p=0.0369)
    [[*_, measured, _, _]] = verdict_table([decided]).rows
    assert measured == Remark(decided.measured, "p = 0.012; over all claims together (Holm) 0.037")
    console = Console(file=io.StringIO(), width=200)
    print_verdicts([replace(decided, p=1e-9, adjusted_p=0.08)], console)
    assert "p = below 0.0001; over all claims together (Holm) 0.08, by which it is undecidable here" in (
        " ".join(console.file.getvalue().split())
    )
