"""A run's folder: the paths of its files, and writers that replace a file as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from runner.config.secrets import redact
from runner.config.text import visible
from runner.files.atomic import finite, new_folder, write_atomically
from runner.files.readers import is_there
from runner.results.metrics import METRICS, SUMMARY, read_summary
from runner.results.record import CONFIG, RECORD, Record

PREDICTIONS = "predictions.npz"
CHECKPOINTS = ("last", "previous", "best")  # each stands in for those before it


class RunFolder:
    """The files of a run, as the README lists them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG
        self.record = path / RECORD
        self.overrides = path / "overrides.yaml"  # of versions without a record
        self.metrics = path / METRICS
        self.summary = path / SUMMARY
        self.predictions = path / PREDICTIONS
        self.error = path / "error.txt"
        self.checkpoints = path / "checkpoints"
        self.probes = path / "probes"

    @classmethod
    def create(cls, parent: Path, name: str, take: Callable[[Path], object] = lambda path: None) -> RunFolder:
        """Create `parent/name`, or `parent/name-2`, `-3`, ... if the name is taken; see `new_folder` for `take`."""
        return cls(new_folder(parent, name, take))

    def checkpoint(self, name: str) -> Path:
        """The path of the checkpoint `last` or `best`."""
        return self.checkpoints / f"{name}.pt"

    def write_settings(self, record: Record) -> None:
        """Write the record, and its settings as config.yaml for people to read."""
        write_atomically(self.record, record.text)
        write_atomically(self.config, yaml.safe_dump(record.settings, sort_keys=False))
        self.overrides.unlink(missing_ok=True)  # the record replaces it

    def write_summary(self, summary: dict) -> None:
        """Write `summary.json`, with null for numbers that are not finite."""
        write_atomically(self.summary, json.dumps(finite(summary), indent=2, allow_nan=False) + "\n")

    def write_failure(self, reason: str, trace: str, summary: Mapping[str, object]) -> None:
        """Write `error.txt` and the summary of a run that failed before its own; secrets are masked."""
        write_atomically(self.error, visible(f"{redact(trace)}\n", keep="\n\t"))
        self.write_summary({**summary, "status": "failed", "error": redact(reason)})

    def read_summary(self) -> dict:
        """The content of `summary.json`, empty without one that can be read."""
        return read_summary(self.path)

    def check(self) -> None:
        """Raise ValueError if a file of the run is no regular file, or a folder is a link."""
        checkpoints = (self.checkpoint(name) for name in CHECKPOINTS)
        texts = (self.config, self.record, self.overrides, self.metrics, self.summary, self.predictions, self.error)
        for file in (*texts, *checkpoints):
            if is_there(file) and not file.is_symlink() and not file.is_file():
                raise ValueError(f"{file} is no regular file, so the run cannot write it. Remove it.")
        for folder in (self.checkpoints, self.probes):
            if is_there(folder) and (folder.is_symlink() or not folder.is_dir()):
                what = "a symbolic link" if folder.is_symlink() else "no folder"
                raise ValueError(f"{folder} is {what}; a run writes into folders of its own alone. Remove it.")


class ProbeFile(NamedTuple):
    """A file of a probe: probes/<probe>-step<step>, or probes/<probe> and no step if the run measured once."""

    probe: str
    step: int | None
    path: Path


def probe_files(folder: Path, suffix: str) -> list[ProbeFile]:
    """The files of a run's probes that end in `suffix`, by probe and step."""
    files = []
    for path in (folder / "probes").glob(f"*.{suffix}"):
        probe, _, step = path.stem.partition("-step")
        files.append(ProbeFile(probe, int(step) if step.isdigit() else None, path))
    return sorted(files, key=lambda file: (file.probe, -1 if file.step is None else file.step))
