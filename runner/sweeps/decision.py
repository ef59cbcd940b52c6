"""`sweep.decide`: seeds are added to a study until its claims are decided or the budget is spent.

All seeds up to `sweep.max_seeds` are jobs of the sweep, seed by seed. Each process asks before a job of an added seed
whether an undecided claim still lacks it. The answer comes from the runs in the folder alone, so it is the same after
an interruption, for several processes and for two commands on one folder; and since the intervals hold at all looks
together (runner.claims.sequential), it does not matter who looks, or how often.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf, flag_override

from runner.config.ranges import seconds_of
from runner.config.settings import Settings
from runner.config.text import SettingError, override_key
from runner.results.job import Job
from runner.results.metrics import METRICS, SUMMARY
from runner.results.number_text import format_duration
from runner.results.record import RECORD
from runner.results.run_state import INTERRUPTED, RESULTS, RUNNING, TO_DO, read_state
from runner.results.runs import Run, holds_run, read_run, read_sweep

if TYPE_CHECKING:
    from runner.claims.verdict import Verdict

DECIDE, SEED = "sweep.decide", "seed"
IN_ORDER = ("BasicLauncher", "JoblibLauncher")  # launchers that start a job when another has ended
FILES = (RECORD, METRICS, SUMMARY)
PAUSE_SECONDS = 10.0  # between two runs, as for a report, that count as work
Jobs = Sequence[tuple[tuple[str, ...], Settings]]


@dataclass
class Decision:
    """What a study's claims need. `asked` are the jobs of the seeds that were asked for, which run in any case."""

    folder: Path
    asked: frozenset[str]
    seeds: tuple[int, ...]
    budget: str | None
    at_once: int = 1
    _finished: dict[Path, Run] = field(default_factory=dict, repr=False)
    _spans: dict[Path, tuple[float, float]] = field(default_factory=dict, repr=False)  # of finished runs
    _judged: tuple = ((), [])  # the runs at the last look, and its verdicts
    _told: tuple = ()

    @classmethod
    def of(cls, folder: Path, jobs: Mapping[Job, Settings], asked: Iterable[Job], budget: str | None) -> Decision:
        """The decision of a sweep's jobs."""
        seeds = tuple(dict.fromkeys(settings.seed for settings in jobs.values()))
        return cls(folder, frozenset(job.name for job in asked), seeds, budget)

    def __getstate__(self) -> dict:
        return {**vars(self), "_finished": {}, "_spans": {}, "_judged": ((), [])}

    def wants(self, job: Job) -> bool:
        """Whether a job is to run, or has run."""
        if read_state(job.path).status in (*RESULTS, RUNNING):
            return True
        runs = self.runs()
        if self.budget is not None and self.spent(runs) + self._seconds(job, runs) > seconds_of(self.budget):
            return False
        return job.name in self.asked or any(self._lacks(verdict, job, runs) for verdict in self.verdicts(runs))

    def verdicts(self, runs: Sequence[Run] | None = None) -> list[Verdict]:
        """The verdicts of the runs in the folder."""
        runs = self.runs() if runs is None else runs
        known = tuple(sorted((run.folder.name, run.status) for run in runs))
        if known != self._judged[0]:
            from runner.claims.verdict import judge  # imports scipy

            self._judged = known, judge(read_sweep(self.folder).claims, runs, sequential=True)
        return self._judged[1]

    def is_open(self) -> bool:
        """Whether more seeds may decide a claim, and there is time for them."""
        is_over = self.budget is not None and self.spent() >= seconds_of(self.budget)
        return not is_over and any(verdict.lacking for verdict in self.verdicts())

    def next_jobs(self, jobs: Iterable[Job]) -> list[Job]:
        """The first job of each arm that still lacks a seed."""
        wanted = [job for job in jobs if read_state(job.path).status not in RESULTS and self.wants(job)]
        return list({arm_key(job): job for job in reversed(wanted)}.values())

    def spent(self, runs: Sequence[Run] | None = None) -> float:
        """The seconds in which at least one run of the folder was at work."""
        total, until = 0.0, -float("inf")
        for start, end in sorted(self._span(run) for run in (self.runs() if runs is None else runs)):
            total += max(end - (until if start < until + PAUSE_SECONDS else start), 0.0)
            until = max(until, end)
        return total

    def seconds_of_arm(self, arm: Mapping[str, object], runs: Sequence[Run]) -> float | None:
        """How long a run of the arm takes: the median of those that are there, else of all; None without one."""
        done = [run for run in runs if run.status in RESULTS]
        own = [run for run in done if run.arm == arm] or done
        return statistics.median(end - start for start, end in map(self._span, own)) if own else None

    def news(self) -> list[str]:
        """What the last look has decided and what is still open, if there was one since this was asked.

        There was one if a claim was decided, or each of those that lack seeds has got another.
        """
        runs = self.runs()
        verdicts = self.verdicts(runs)
        lacking = [verdict for verdict in verdicts if verdict.lacking]
        now = tuple(verdict.is_decided for verdict in verdicts), min((len(each.looks) for each in lacking), default=0)
        if now == self._told or not any(verdict.looks for verdict in verdicts):
            return []
        before, self._told = self._told[0] if self._told else [False] * len(verdicts), now
        arms = {frozenset(arm.items()) for verdict in lacking for arm in verdict.lacking}
        parts = [f"{sum(now[0])} of {len(verdicts)} claims decided"]
        parts += [f"{len(arms)} arm{'s need' if len(arms) != 1 else ' needs'} more seeds"] if arms else []
        lines = [f"Look: {'; '.join([*parts, self._time(runs)])}"]
        for verdict, was_decided in zip(verdicts, before, strict=True):
            if not was_decided:
                word = verdict.verdict if verdict.is_decided else "open"
                lines.append(f"{word}, {verdict.measured or verdict.why}: {verdict.claim}")
        return lines

    def ending(self) -> str:
        """Why no more seeds are added."""
        runs = self.runs()
        verdicts = self.verdicts(runs)
        undecided = [verdict for verdict in verdicts if not verdict.is_decided]
        count = f"{len(undecided)} of {len(verdicts)} claims {'is' if len(undecided) == 1 else 'are'} not decided"
        if not undecided:
            return f"Every claim is decided; {self._time(runs)}."
        is_spent = self.budget is not None and self.spent(runs) >= seconds_of(self.budget)
        if not is_spent and not any(verdict.lacking for verdict in undecided):
            return f"{count}, and more seeds would not change that; {self._time(runs)}."
        if not is_spent and self._is_full(undecided, runs):
            return f"{count} with {len(self.seeds)} seeds (sweep.max_seeds); {self._time(runs)}."
        return f"{count}; {self._time(runs)}, too little for another seed. Give more with sweep.budget=TIME."

    def _is_full(self, undecided: Sequence[Verdict], runs: Sequence[Run]) -> bool:
        done = {(frozenset(run.arm.items()), run.seed) for run in runs}
        lacking = {frozenset(arm.items()) for verdict in undecided for arm in verdict.lacking}
        return all((arm, self.seeds[-1]) in done for arm in lacking)

    def _lacks(self, verdict: Verdict, job: Job, runs: Sequence[Run]) -> bool:
        """Whether the job is of an arm of which the claim lacks seeds, and no earlier one of these was cut short."""
        own = _arm(job)
        if own not in verdict.lacking:
            return False
        cut = [run for run in runs if run.status == INTERRUPTED and run.arm in verdict.lacking]
        return not any(run.seed is not None and run.seed < _seed(job) for run in cut)

    def _seconds(self, job: Job, runs: Sequence[Run]) -> float:
        """How long the job's seed takes, in all arms that still lack it; of a seed that was asked for nothing."""
        if job.name in self.asked:
            return 0.0
        done = {frozenset(run.arm.items()) for run in runs if run.seed == _seed(job) and run.status in RESULTS}
        arms = {frozenset(arm.items()): arm for verdict in self.verdicts(runs) for arm in verdict.lacking}
        seconds = [self.seconds_of_arm(arm, runs) or 0.0 for key, arm in arms.items() if key not in done]
        return max(sum(seconds) / self.at_once, max(seconds, default=0.0))

    def _time(self, runs: Sequence[Run]) -> str:
        spent = format_duration(self.spent(runs))
        return f"{spent} spent" if self.budget is None else f"{spent} of {self.budget} spent"

    def runs(self) -> list[Run]:
        """The runs in the folder; one that has a result is read once."""
        runs = []
        for folder in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if folder in self._finished:
                runs.append(self._finished[folder])
            elif folder.is_dir() and holds_run(folder):
                state = read_state(folder)
                run = read_run(folder)
                if state.status == RUNNING:  # it may go on from an interruption, whose summary is still there
                    run = Run(folder, RUNNING, run.overrides, run.settings, run.seed)
                runs.append(run)
                if run.status in RESULTS:
                    self._finished[folder] = run
        return runs

    def _span(self, run: Run) -> tuple[float, float]:
        """When the run was started, or last resumed, and when it ended: seconds since the epoch."""
        if run.folder in self._spans:
            return self._spans[run.folder]
        times = {name: os.path.getmtime(path) for name in FILES if (path := run.folder / name).is_file()}
        start, end = times.get(RECORD, 0.0), max(times.values(), default=0.0)  # the record is written first
        with suppress(TypeError, ValueError):
            start = datetime.fromisoformat(run.section("provenance").get("time")).timestamp()
        span = start, max(start, time.time() if run.status == RUNNING else end)
        if run.status in RESULTS:
            self._spans[run.folder] = span
        return span


def decides(config: DictConfig, sweep: Settings, jobs: Jobs) -> bool:
    """Whether the sweep is one that decides. Raises SettingError where `sweep.decide` cannot do what it says."""
    if not sweep.decide:
        return False
    if not config.sweep.claims:
        raise SettingError(f"{DECIDE}=true: there is no claim to decide; add sweep.claims, or leave it out.")
    if any(not any(_is_seed(word) for word in overrides) for overrides, _ in jobs):
        raise SettingError(f"{DECIDE}=true: seeds are added to those of sweep.axes; add seed there, or leave it out.")
    launcher = str(config.hydra.launcher._target_)
    if not launcher.endswith(IN_ORDER):
        raise SettingError(
            f"{DECIDE}=true with {launcher}: whether a job is needed shows when those before it have ended, and this "
            f"launcher starts all at once. Take sweep.jobs_at_once, or {DECIDE}=false."
        )
    return True


def added_jobs(jobs: Jobs, max_seeds: int, typed: Sequence[str]) -> list[tuple[tuple[str, ...], Settings]]:
    """The jobs of the seeds that may be added to those of `jobs`, seed by seed, each in all arms.

    A seed on the command line is all that was asked for: none is added then.
    """
    if any(_is_seed(word) for word in typed):
        return []
    arms = {tuple(word for word in words if not _is_seed(word)): (words, settings) for words, settings in jobs}
    seeds = {settings.seed for _, settings in jobs}
    added = range(max(seeds) + 1, max(seeds) + 1 + max_seeds - len(seeds))
    return [
        (tuple(f"{SEED}={seed}" if _is_seed(word) else word for word in words), settings.changed({SEED: seed}))
        for seed in added
        for words, settings in arms.values()
    ]


def with_totals(jobs: Mapping[Job, Settings], asked: int) -> dict[Job, Settings]:
    """The jobs with as many as there are when all of their seed have run, in the place of all that there may be."""
    arms = len({arm_key(job) for job in jobs})
    return {
        replace(job, total=asked if job.number <= asked else asked + -(-(job.number - asked) // arms) * arms): settings
        for job, settings in jobs.items()
    }


def sweep_seeds(config: DictConfig, seeds: Sequence[int]) -> None:
    """Have Hydra make the jobs of these seeds from `config`, and all of one seed before those of the next."""
    words = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    with flag_override(config, ["readonly", "struct"], False):
        config.hydra.overrides.task = [
            f"{SEED}={','.join(map(str, seeds))}",
            *(word for word in words if not _is_seed(word)),
        ]


def arm_key(job: Job) -> tuple[str, ...]:
    """The job's overrides without its seed."""
    return tuple(word for word in job.overrides if not _is_seed(word))


def _is_seed(word: str) -> bool:
    return override_key(word) == SEED


def _seed(job: Job) -> int:
    return next(int(word.partition("=")[2]) for word in job.overrides if _is_seed(word))


def _arm(job: Job) -> dict[str, object]:
    """The job's settings as `Run.arm` has them."""
    pairs = (word.partition("=") for word in job.overrides if not word.startswith("~"))
    return Run(job.path, TO_DO, settings={key.lstrip("+"): value for key, _, value in pairs}).arm
