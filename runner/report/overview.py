"""The facts at the head of a report: what ran, when, on what hardware and with which code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from runner.report.document import Code, Facts
from runner.results.arms import common_overrides
from runner.results.number_text import format_duration
from runner.results.runs import Run

STATUSES = ("completed", "diverged", "running", "interrupted", "failed", "unreadable")
VERSIONS = ("python", "torch", "torchvision")


def overview(runs: Sequence[Run], command: str | None) -> Facts:
    """The facts that the runs' summaries have; if runs differ, each value that occurs."""
    facts = [
        ("Runs", f"{len(runs):,}: {status_counts(runs)}"),
        ("Time", _time(runs)),
        ("Hardware", _each(_hardware(run.section("provenance", "hardware")) for run in runs)),
        ("Code", _each(_code(run.section("provenance", "git")) for run in runs)),
        ("Versions", _each(_versions(run.section("provenance", "versions")) for run in runs)),
        ("Command", Code(command) if command else ""),
        ("In common", Code(" ".join(common)) if (common := common_overrides(runs)) else ""),
    ]
    return Facts(tuple((name, fact) for name, fact in facts if fact))


def status_counts(runs: Sequence[Run]) -> str:
    """`3 completed, 1 diverged`."""
    counts = Counter(run.status for run in runs)
    known = [status for status in STATUSES if counts[status]]
    return ", ".join(f"{counts[status]:,} {status}" for status in [*known, *sorted(counts.keys() - {*STATUSES})])


def _time(runs: Sequence[Run]) -> str:
    """The total time of the runs, and when the first and the last one started."""
    known = [seconds for run in runs if (seconds := run.number("throughput/seconds")) is not None]
    starts = sorted(start for run in runs if (start := _start(run)))
    facts = [f"{format_duration(sum(known))} of run time in all"] if known else []
    if starts:
        first, last = (f"{start:%Y-%m-%d %H:%M %Z}" for start in (starts[0], starts[-1]))
        facts.append(f"started {first}" if first == last else f"first started {first}, last {last}")
    return "; ".join(facts)


def _start(run: Run) -> datetime | None:
    try:
        start = datetime.fromisoformat(str(run.section("provenance").get("time")))
    except ValueError:
        return None
    return start if start.tzinfo else None


def _hardware(hardware: dict) -> str:
    if hardware.get("gpu"):
        return f"{hardware.get('num_gpus') or 1} x {hardware['gpu']}"
    if not hardware.get("cpu"):
        return ""
    counts = [(hardware[name], name) for name in ("cores", "threads") if name in hardware]
    return ", ".join([str(hardware["cpu"]), *(f"{n} {name if n != 1 else name[:-1]}" for n, name in counts)])


def _code(git: dict) -> str:
    if not git.get("commit"):
        return ""
    return f"commit {str(git['commit'])[:12]}" + " with changes that were not committed" * bool(git.get("dirty"))


def _versions(versions: dict) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in VERSIONS if name in versions)


def _each(facts: object) -> str:
    return "; ".join(dict.fromkeys(fact for fact in facts if fact))
