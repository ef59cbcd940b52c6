"""What the claims of a study will need, for `runner plan`: seeds, time, and whether the budget suffices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from runner.claims.needed_seeds import Need, needed_seeds
from runner.claims.verdict import Verdict
from runner.config.ranges import seconds_of
from runner.results.number_text import format_duration
from runner.results.runs import Run, read_sweep
from runner.sweeps.decision import Decision
from runner.tracking.console import is_plain
from runner.tracking.terminal import ascii_line, terminal

WIDTH = 80


def print_needs(decision: Decision, console: Console | None = None) -> None:
    """Print how many seeds and how much time each claim will need, from the runs that are there."""
    console = console or terminal()
    plain = is_plain(console)
    for line in needs(decision):
        width = None if plain else min(console.width, WIDTH)
        console.print(Text(ascii_line(line) if plain else line), soft_wrap=plain, width=width)


def needs(decision: Decision) -> list[str]:
    """A line for each claim, and one on the budget."""
    runs = decision.runs()
    verdicts = decision.verdicts(runs)
    if not runs:
        return ["What the claims need shows when the first seeds have run."]
    claims = read_sweep(decision.folder).claims
    lines, missing, within = ["What the claims need, with a power of 80 %:"], {}, 0
    for number, (claim, verdict) in enumerate(zip(claims, verdicts, strict=True), start=1):
        if verdict.is_decided:
            lines.append(f"{number}. {verdict.verdict}, {verdict.measured}: {verdict.claim}")
            continue
        if not verdict.lacking:
            lines.append(f"{number}. more seeds would not decide it: {verdict.claim} {verdict.why}")
            continue
        need = needed_seeds(claim, number, runs)
        arms = {frozenset(arm.items()): max(need.seeds - need.there, 1) for arm in verdict.lacking}
        lines.append(f"{number}. {_of_claim(need, arms, decision, runs)}: {verdict.claim}")
        if need.seeds - need.there <= _seeds_left(verdict, decision, runs):
            within += 1
            missing |= {arm: max(number, missing.get(arm, 0)) for arm, number in arms.items()}
    return [*lines, *_of_budget(decision, verdicts, missing, within, runs)]


def _of_claim(need: Need, arms: Mapping[frozenset, float], decision: Decision, runs: Sequence[Run]) -> str:
    if math.isnan(need.seeds):
        return "not known before two seeds judge it"
    if math.isinf(need.seeds):
        return f"no number of seeds, for {need.supposed} that lies on the threshold or too near to it"
    text = f"{need.seeds} seeds ({need.there} are there), for {need.supposed}"
    if need.seeds > len(decision.seeds):
        text += f", more than sweep.max_seeds={len(decision.seeds)}"
    seconds = _seconds(arms, decision, runs)
    return f"{text}, {format_duration(seconds)} more" if seconds else text


def _of_budget(
    decision: Decision, verdicts: Sequence[Verdict], missing: Mapping, within: int, runs: Sequence[Run]
) -> list[str]:
    """Whether what is left of the budget decides the claims that `sweep.max_seeds` lets be decided."""
    spent, undecided = decision.spent(runs), sum(not verdict.is_decided for verdict in verdicts)
    if not undecided:
        return ["Every claim is decided."]
    lines = []
    if within < undecided:
        lines.append(f"{undecided - within} of {undecided} claims will not be decided by {len(decision.seeds)} seeds.")
    if not missing:
        return lines
    seconds = _seconds(missing, decision, runs)
    if decision.budget is None:
        return [*lines, f"{within} can be decided in {format_duration(seconds)} more."]
    left = seconds_of(decision.budget) - spent
    needed = f"{format_duration(seconds)} for {within} claim{'s' * (within != 1)}"
    if seconds <= left:
        return [*lines, f"The budget suffices: {needed}, {format_duration(left)} left of {decision.budget}."]
    whole, left = math.ceil((spent + seconds) / 60), format_duration(max(left, 0))
    text = f"The budget does not suffice: {needed}, {left} left of {decision.budget}."
    return [*lines, f"{text} It takes sweep.budget={whole}min."]


def _seeds_left(verdict: Verdict, decision: Decision, runs: Sequence[Run]) -> int:
    """How many seeds the claim's arms may still get."""
    there = [len({run.seed for run in runs if run.arm == arm}) for arm in verdict.lacking]
    return len(decision.seeds) - max(there, default=0)


def _seconds(arms: Mapping[frozenset, float], decision: Decision, runs: Sequence[Run]) -> float:
    """The time of so many seeds of each arm."""
    return sum((decision.seconds_of_arm(dict(arm), runs) or 0.0) * n for arm, n in arms.items()) / decision.at_once
