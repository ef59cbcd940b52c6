"""Runs and sweeps as their folders record them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from runner.config.text import canonical, shortened, to_override
from runner.files.readers import Unreadable, is_there, read_json_object, read_yaml, read_yaml_mapping
from runner.results.metrics import METRICS, SCORES, SUMMARY, read_rows, score_of, section, summary_number
from runner.results.record import CONFIG, RECORD, read_record, verified_record
from runner.results.run_lock import is_held
from runner.results.run_state import INTERRUPTED, RUNNING

UNREADABLE = "unreadable"
RUN_FILES = (SUMMARY, METRICS, CONFIG, RECORD)  # a folder with one of these holds a run
NOT_IN_ARM = ("seed", "name", "resume")  # keys in which repetitions of one arm may differ
NODES_NOT_IN_ARM = ("wandb", "paths", "sweep")


@dataclass(frozen=True)
class Run:
    """A run as its folder records it.

    `status` is that of summary.json. Without the file it is "running", or "interrupted" if the run was killed; if the
    file cannot be read it is "unreadable". In these cases `summary` is empty and `error` has the reason. `settings`
    maps the key of each override to its value, `resolved` is the whole configuration. `notes` are sentences on files
    that are not as the run wrote them.
    """

    folder: Path
    status: str
    overrides: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    error: str | None = None
    summary: dict = field(default_factory=dict, repr=False)
    resolved: dict = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @cached_property
    def score(self) -> str:
        """The metric that chooses best.pt: "accuracy" or "mean_iou"."""
        return score_of(self.section("best"), self.section("metrics")) or "accuracy"

    @property
    def on_test(self) -> bool:
        """Whether the test split stood in for the validation split."""
        return self.section("data").get("validation_source") == "test"

    @cached_property
    def arm(self) -> dict[str, object]:
        """The `canonical` settings that it shares with its repetitions: all but the seed, names and paths."""
        return {
            key: canonical(value)
            for key, value in self.settings.items()
            if key not in NOT_IN_ARM and key.partition(".")[0] not in NODES_NOT_IN_ARM
        }

    def number(self, name: str) -> float | None:
        """A number of summary.json, as `test/score`, `validation/loss` or `model/num_params`; None without one."""
        split, _, metric = name.partition("/")
        return summary_number(self.summary, f"{split}/{self.score}" if metric == "score" else name)

    def section(self, *names: str) -> dict:
        """The mapping under these nested names of summary.json, empty without one."""
        return section(self.summary, *names)


@dataclass(frozen=True)
class SweepRecord:
    """The content of sweep.yaml: what was swept, and for a study its claims and the look of its table.

    `axes` has the values of each swept key in order, `names` their names in tables by key and value, `jobs` the names
    of the jobs' folders, `decide` that seeds are added until the claims are decided.
    """

    command: str | None = None
    title: str | None = None
    source: str | None = None
    about: str | None = None
    axes: dict[str, list[str]] = field(default_factory=dict)
    measures: list[str] = field(default_factory=list)
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    claims: list[dict] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    decide: bool = False

    def without_run(self, folder: Path) -> list[str]:
        """The jobs whose folders hold no run: not begun, moved, deleted or damaged."""
        return [job for job in self.jobs if not holds_run(folder / job)]


def read_run(folder: str | os.PathLike[str]) -> Run:
    """The run in `folder`, as far as its files can be read; see Run."""
    folder = Path(folder)
    summary, status, error = {}, UNREADABLE, "its summary.json has no status"
    try:
        content = read_json_object(folder / SUMMARY)
        if isinstance(content.get("status"), str):
            summary, status = content, content["status"]
            error = None if content.get("error") is None else str(content["error"])
    except Unreadable as unreadable:
        error = f"its summary.json cannot be read: {unreadable.reason}"
        if not is_there(folder / SUMMARY) and is_held(folder):
            status, error = RUNNING, "it has no summary.json yet: it is running"
        elif not is_there(folder / SUMMARY):
            status, error = INTERRUPTED, "it has no summary.json: killed, or running on another machine"
    resolved, notes = _resolved(folder)
    overrides = _overrides(folder, summary)
    settings = _settings(overrides)
    return Run(
        folder=folder,
        status=status,
        overrides=overrides,
        settings=settings,
        seed=_seed(settings, resolved),
        error=error,
        summary=summary,
        resolved=resolved,
        notes=(*notes, *_rows_missing(folder, summary)),
    )


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """The runs in several folders of runs or sweeps, each run once, a sweep's jobs in natural order.

    A sweep without jobs gives none. Raises ValueError for a folder that does not exist.
    """
    run_folders = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder. Name the folder of a run or of a sweep.")
        for run in [folder] if holds_run(folder) else sorted(filter(holds_run, folder.iterdir()), key=_natural):
            run_folders.setdefault(run.resolve(), run)
    return [read_run(folder) for folder in run_folders.values()]


def score_title(runs: Sequence[Run]) -> str:
    """The title of the runs' score, as "mean IoU"; "score" if they have different ones."""
    scores = {run.score for run in runs if run.summary}
    return SCORES[scores.pop()] if len(scores) == 1 else "score"


def read_sweep(folder: str | os.PathLike[str]) -> SweepRecord:
    """The content of sweep.yaml in `folder`, empty without the file. Raises ValueError if it is damaged."""
    path = Path(folder) / "sweep.yaml"
    if not is_there(path):
        return SweepRecord()
    remedy = "Mend it, or delete it to have a report without titles and claims."
    try:
        record = read_yaml_mapping(path)
        for key, kind in (("axes", dict), ("names", dict), ("jobs", dict), ("measures", list), ("claims", list)):
            if not isinstance(record.get(key) or kind(), kind):
                form = {dict: "a mapping", list: "a list"}[kind]
                raise Unreadable(path, f"{key}={shortened(to_override(record[key]))}: it must be {form}")
        names = record.get("names") or {}
        if not all(isinstance(called or {}, dict) for called in names.values()):
            raise Unreadable(path, "names: each axis must have a mapping of values to names")
    except Unreadable as error:
        raise ValueError(f"{error}. {remedy}") from None
    texts = {key: str(record[key]) for key in ("command", "title", "source", "about") if record.get(key) is not None}
    return SweepRecord(
        **texts,
        axes={str(key): _texts(values) for key, values in (record.get("axes") or {}).items()},
        measures=[str(name) for name in record.get("measures") or []],
        names={
            str(key): {to_override(value): str(name) for value, name in (called or {}).items()}
            for key, called in names.items()
        },
        claims=list(record.get("claims") or []),
        jobs=[str(name) for name in record.get("jobs") or {}],
        decide=record.get("decide") is True,
    )


def holds_run(folder: Path) -> bool:
    """Whether a file of a run lies in the folder."""
    return any(is_there(folder / name) for name in RUN_FILES)


def _overrides(folder: Path, summary: dict) -> tuple[str, ...]:
    """The overrides in summary.json; those in the record, or in an older version's overrides.yaml, without it."""
    if summary:
        words = summary.get("overrides")
        return tuple(map(str, words)) if isinstance(words, list) else ()
    try:
        words = list(read_record(folder / RECORD).overrides)
    except Unreadable:
        try:
            words = read_yaml(folder / "overrides.yaml")
        except Unreadable:
            words = ()
    return tuple(str(word) for word in words if not str(word).startswith("sweep.")) if isinstance(words, list) else ()


def _resolved(folder: Path) -> tuple[dict, tuple[str, ...]]:
    """The configuration of a run, and sentences on the files that should hold it and do not."""
    try:
        verified = verified_record(folder, {})
        if verified.record is not None:
            return verified.record.settings, verified.notes
        notes = ()
    except ValueError as error:
        notes = (str(error),)
    try:
        return read_record(folder / RECORD).settings, notes
    except Unreadable:
        pass
    try:
        return read_yaml_mapping(folder / CONFIG), notes
    except Unreadable as error:
        return {}, (*notes, str(error)) if is_there(folder / CONFIG) else notes


def _rows_missing(folder: Path, summary: dict) -> list[str]:
    """A sentence if metrics.jsonl cannot be read or lacks rows of the run."""
    expected = summary.get("rows")
    if not isinstance(expected, int):
        return []
    try:
        count = len(read_rows(folder))
    except Unreadable as error:
        return [str(error)]
    return [] if count == expected else [f"{folder / METRICS} has {count} rows, where {expected} were written."]


def _settings(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (override.partition("=") for override in overrides if not override.startswith("~"))
    return {key.lstrip("+"): value for key, _, value in pairs}


def _seed(settings: dict[str, str], resolved: dict) -> int | None:
    """The seed among the overrides, else that of the configuration."""
    text = str(settings.get("seed", resolved.get("seed"))).strip()
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else None


def _texts(values: object) -> list[str]:
    """Values as the command line takes them."""
    return [to_override(value) for value in (values if isinstance(values, list) else [values])]


def _natural(folder: Path) -> list[tuple[int, float, str]]:
    """A key that sorts `size=16` before `size=128`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", folder.name)
    return [(0, float(part), "") if number % 2 else (1, 0.0, part) for number, part in enumerate(parts)]
