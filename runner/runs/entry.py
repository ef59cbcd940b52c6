"""Where a run goes, and from which checkpoint: a new folder, one to go on with, the folder of a sweep's job."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from runner.files import remove_temporary
from runner.methods.method import Method
from runner.readers import is_there
from runner.runs.job import Job
from runner.runs.resume import NothingLeft, latest_checkpoint, new_folder
from runner.runs.run_folder import RunFolder
from runner.runs.run_lock import Taken, hold, sign
from runner.runs.run_state import RESULTS
from runner.settings.text import SettingError
from runner.tracking.metrics_log import MetricsLog
from runner.training.checkpoint import Latest


@dataclass
class Entry:
    """A run's folder, held for this process until `held` is closed, and its newest checkpoint if it goes on from one.

    `done` is the status of a run that has nothing left to do, and is not to be run again.
    """

    folder: RunFolder
    latest: Latest | None = None
    done: str | None = None
    held: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def checkpoint(self) -> dict | None:
        """What the run goes on from."""
        return self.latest.checkpoint if self.latest else None

    def clear(self) -> None:
        """Take away what an attempt that died has left: halves of files, and the word of how it ended."""
        folder = self.folder
        sign(folder.path)
        folder.checkpoints.mkdir(exist_ok=True)
        for path in (folder.path, folder.checkpoints):
            remove_temporary(path)
        folder.error.unlink(missing_ok=True)
        folder.summary.unlink(missing_ok=True)
        if self.latest and self.latest.damaged:  # else it would become the generation before the next one
            last = folder.checkpoint("last")
            last.replace(last.with_suffix(".damaged"))


def enter(
    settings: Mapping, job: Job | None, name: str, model: nn.Module, methods: Mapping[str, Method], device: torch.device
) -> Entry:
    """Take a folder for a run; nothing in it is changed yet.

    `settings` is the configuration as plain data; `name` is that of a new folder, to which a number is added if it is
    taken. `model` and `methods` are what a checkpoint must fit. Raises SettingError if no folder can be made, if
    another process works on it, and if what lies there does not fit the settings.
    """
    outputs, resume = settings["paths"]["outputs"], settings["resume"]
    runs = Path(outputs) / "runs"
    if resume is not None:
        found = _held(Entry(RunFolder(Path(resume))), f"resume={resume}")
        return _latest(found, settings, model, methods, device, source=f"resume={resume}")
    if job is not None:  # whoever runs a sweep holds its jobs' folders
        job.path.mkdir(parents=True, exist_ok=True)
        found = Entry(RunFolder(job.path))
        return _latest(found, settings, model, methods, device, source=str(job.path), again=True)
    if settings["train"]["auto_resume"] and (runs / name).is_dir():
        found = _held(Entry(RunFolder(runs / name)), "train.auto_resume=true")
        return _latest(found, settings, model, methods, device, source="train.auto_resume=true", again=True)
    return _held(Entry(new_folder(runs, name, outputs)), f"name={name}")


def _latest(
    entry: Entry,
    settings: Mapping,
    model: nn.Module,
    methods: Mapping[str, Method],
    device: torch.device,
    *,
    source: str,
    again: bool = False,
) -> Entry:
    """With the newest checkpoint; `again` says that the run may have come to its end, which is no mistake then."""
    folder = entry.folder
    status = folder.read_summary().get("status")
    try:
        folder.check()
        if again and status == "diverged":
            entry.done = status
            return entry
        entry.latest = latest_checkpoint(folder, settings, model, methods, device=device)
        if entry.latest is None and status in RESULTS:
            raise NothingLeft(f"{folder.checkpoint('last')} is missing, without which a finished run cannot go on.")
        if entry.latest and is_there(folder.metrics):  # else the run begins anew, and the rows go
            MetricsLog.read(folder.metrics)
    except ValueError as error:
        if again and isinstance(error, NothingLeft) and status in RESULTS:
            entry.done = status
            return entry
        entry.held.close()
        raise SettingError(f"{source}: {error}") from None
    return entry


def _held(entry: Entry, source: str) -> Entry:
    try:
        entry.held.enter_context(hold(entry.folder.path, signed=False))
    except Taken as error:
        raise SettingError(f"{source}: {error} Wait for it, or name another folder.") from None
    except OSError as error:
        raise SettingError(f"{source}: {entry.folder.path} cannot be used ({error.strerror or error}).") from None
    return entry
