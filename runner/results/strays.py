"""Runs that do not belong to the others of a sweep, as where most of a command was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from runner.config.text import override_key
from runner.results.runs import NODES_NOT_IN_ARM, NOT_IN_ARM, Run

KIND = ("dataset", "model")


def shared_overrides(runs: Sequence[Run]) -> list[str]:
    """The overrides that more than half of the runs have, but for seeds, names and places."""
    counts = Counter(word for run in runs for word in dict.fromkeys(run.overrides))
    keys = {word: override_key(word) for word in counts}
    return [
        word
        for word, count in counts.items()
        if 2 * count > len(runs)
        and keys[word] not in NOT_IN_ARM
        and keys[word].partition(".")[0] not in NODES_NOT_IN_ARM
    ]


def strays(candidates: Sequence[Run], runs: Sequence[Run]) -> list[Run]:
    """The candidates with none of the overrides that most runs share, and with a data set or a model of their own.

    So an added baseline is none, nor a run on other data that was given the same settings.
    """
    shared = {*shared_overrides(runs)}
    alike = [run for run in runs if not shared.isdisjoint(run.overrides)]
    return [
        run
        for run in candidates
        if alike
        and shared.isdisjoint(run.overrides)
        and any(_option(run, group) not in {_option(each, group) for each in alike} for group in KIND)
    ]


def _option(run: Run, group: str) -> object:
    node = run.resolved.get(group)
    return node.get("name") if isinstance(node, dict) else None
