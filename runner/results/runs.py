"""Run folders and a sweep's record, as reports read them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from runner.config.text import canonical, shortened, to_override
from runner.files.readers import Unreadable, is_there, read_json_object, read_yaml, read_yaml_mapping
from runner.results.record import CONFIG, RECORD, known_run, read_record
from runner.results.run_lock import is_held
from runner.results.run_state import INTERRUPTED, RUNNING
from runner.tracking.console import SCORES
from runner.tracking.metrics_log import MetricsLog

UNREADABLE = "unreadable"
MARKS = ("summary.json", "metrics.jsonl", CONFIG, RECORD)
APART = ("seed", "name", "resume")  # keys that do not make another arm, nor do these nodes
NODES_APART = ("wandb", "paths", "sweep")
TEXTS = ("command", "title", "source", "about")  # of sweep.yaml


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it; None stands for what the folder does not say.

    `status` is that of summary.json; without one "running", or "interrupted" by a sudden death; "unreadable" where it
    cannot be read. `error` then has the reason and `has_summary` is false. `settings` are the overrides as key and
    value. `best` is the best metric on the validation split, `final` the one on the test split, both shares of 1,
    with `score` as their name ("accuracy" or "mean_iou"). `on_test` says that the test split stood in for the
    validation split. `summary` is the whole of summary.json, `resolved` the configuration. `notes` say what
    is odd about its files.
    """

    folder: Path
    status: str
    overrides: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    score: str = "accuracy"
    best: float | None = None
    best_loss: float | None = None
    best_epoch: float | None = None
    final: float | None = None
    final_loss: float | None = None
    images_per_second: float | None = None
    error: str | None = None
    on_test: bool = False
    summary: dict = field(default_factory=dict, repr=False)
    seed: int | None = None
    has_summary: bool = True
    resolved: dict = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @cached_property
    def arm(self) -> dict[str, object]:
        """What it has in common with its repetitions: every setting but the seed, names and paths, as `canonical`."""
        return {
            key: canonical(value)
            for key, value in self.settings.items()
            if key not in APART and key.partition(".")[0] not in NODES_APART
        }


@dataclass(frozen=True)
class Sweep:
    """A sweep's record, sweep.yaml: what was swept, and for a study what it asks and how its table is to look.

    `axes` gives each swept key its values in order; `names` says how values are called in tables, by key and value;
    `jobs` are the names of the jobs' folders.
    """

    command: str | None = None
    axes: dict[str, list[str]] = field(default_factory=dict)
    title: str | None = None
    source: str | None = None
    about: str | None = None
    measures: list[str] = field(default_factory=list)
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    claims: list[dict] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)

    def without_run(self, folder: Path) -> list[str]:
        """Its jobs in whose folders no run lies: they have not begun, or were moved, deleted or damaged."""
        return [job for job in self.jobs if not _is_run(folder / job)]


def read_run(folder: str | os.PathLike[str]) -> Run:
    """The run in `folder`, whatever is left of it; see Run."""
    folder = Path(folder)
    if not is_there(folder / "summary.json"):
        if is_held(folder):
            return _without_summary(folder, RUNNING, "it has no summary.json yet: it is running")
        return _without_summary(folder, INTERRUPTED, "it has no summary.json: killed, or running on another machine")
    try:
        summary = read_json_object(folder / "summary.json")
    except Unreadable as error:
        return _without_summary(folder, UNREADABLE, f"its summary.json cannot be read: {error.reason}")
    if not isinstance(summary.get("status"), str):
        return _without_summary(folder, UNREADABLE, "its summary.json has no status")
    best, final, throughput = (section(summary, name) for name in ("best", "metrics", "throughput"))
    score = next((name for name in SCORES if name in best or name in final), "accuracy")
    overrides, error = summary.get("overrides"), summary.get("error")
    overrides = tuple(map(str, overrides)) if isinstance(overrides, list) else ()
    settings = _settings(overrides)
    resolved, notes = _resolved(folder)
    return Run(
        folder=folder,
        status=summary["status"],
        overrides=overrides,
        settings=settings,
        score=score,
        best=_number(best, score),
        best_loss=_number(best, "loss"),
        best_epoch=_number(best, "epoch"),
        final=_number(final, score),
        final_loss=_number(final, "loss"),
        images_per_second=_number(throughput, "images_per_second"),
        error=None if error is None else str(error),
        on_test=section(summary, "data").get("validation_source") == "test",
        summary=summary,
        seed=_seed(settings, resolved),
        resolved=resolved,
        notes=(*notes, *_rows_missing(folder, summary)),
    )


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """The runs of several folders, each a run's or a sweep's, whose jobs come in natural order; each run once.

    Raises ValueError for a folder that does not exist; a folder of a sweep without jobs gives none.
    """
    found = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder. Name the folder of a run or of a sweep.")
        for run in [folder] if _is_run(folder) else sorted(filter(_is_run, folder.iterdir()), key=_natural):
            found.setdefault(run.resolve(), run)
    return [read_run(folder) for folder in found.values()]


def read_sweep(folder: str | os.PathLike[str]) -> Sweep:
    """The record of the sweep in `folder`, an empty one where there is no sweep.yaml.

    Raises ValueError if the file is not what a sweep writes.
    """
    path = Path(folder) / "sweep.yaml"
    if not is_there(path):
        return Sweep()
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
    texts = {key: None if (text := record.get(key)) is None else str(text) for key in TEXTS}
    return Sweep(
        **texts,
        axes={str(key): _texts(values) for key, values in (record.get("axes") or {}).items()},
        measures=[str(name) for name in record.get("measures") or []],
        names={
            str(key): {to_override(value): str(name) for value, name in (called or {}).items()}
            for key, called in names.items()
        },
        claims=list(record.get("claims") or []),
        jobs=[str(name) for name in record.get("jobs") or {}],
    )


def section(summary: dict, name: str) -> dict:
    """A mapping of the summary, empty where there is none."""
    part = summary.get(name)
    return part if isinstance(part, dict) else {}


def _without_summary(folder: Path, status: str, reason: str) -> Run:
    """A run with the settings that it began with if it wrote them."""
    resolved, notes = _resolved(folder)
    overrides = tuple(word for word in _begun_with(folder) if not word.startswith("sweep."))
    settings = _settings(overrides)
    return Run(
        folder,
        status,
        overrides,
        settings,
        error=reason,
        seed=_seed(settings, resolved),
        has_summary=False,
        resolved=resolved,
        notes=notes,
    )


def _begun_with(folder: Path) -> list[str]:
    """The overrides that a run has recorded; one of before there was a record, in overrides.yaml."""
    try:
        return list(read_record(folder / RECORD).overrides)
    except Unreadable:
        pass
    try:
        words = read_yaml(folder / "overrides.yaml")
    except Unreadable:
        words = None
    return [str(word) for word in words] if isinstance(words, list) else []


def _resolved(folder: Path) -> tuple[dict, tuple[str, ...]]:
    """The configuration of a run, and what is odd about the files that tell it."""
    try:
        known = known_run(folder, {})
        if known.record is not None:
            return known.record.settings, known.notes
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
    """That metrics.jsonl has not the rows that the run wrote, or cannot be read."""
    expected = summary.get("rows")
    if not isinstance(expected, int):
        return []
    try:
        found = len(MetricsLog.read(folder / "metrics.jsonl"))
    except Unreadable as error:
        return [str(error)]
    return [] if found == expected else [f"{folder / 'metrics.jsonl'} has {found} rows, where {expected} were written."]


def _settings(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (override.partition("=") for override in overrides if not override.startswith("~"))
    return {key.lstrip("+"): value for key, _, value in pairs}


def _seed(settings: dict[str, str], resolved: dict) -> int | None:
    """The seed among the overrides, else that of the configuration."""
    text = str(settings.get("seed", resolved.get("seed"))).strip()
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else None


def _number(section: dict, key: str) -> float | None:
    """A finite number of a summary's section, else None."""
    value = section.get(key)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def _texts(values: object) -> list[str]:
    """Values as the command line takes them."""
    return [to_override(value) for value in (values if isinstance(values, list) else [values])]


def _is_run(folder: Path) -> bool:
    return any(is_there(folder / mark) for mark in MARKS)


def _natural(folder: Path) -> list[tuple[int, float, str]]:
    """A key that sorts `size=16` before `size=128`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", folder.name)
    return [(0, float(part), "") if number % 2 else (1, 0.0, part) for number, part in enumerate(parts)]
