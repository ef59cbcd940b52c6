"""Where a run goes, and from which checkpoint: a new folder, one to go on with, the folder of a sweep's job."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from runner.config.options import option_label
from runner.config.settings import Settings
from runner.config.text import SettingError
from runner.config.trust import places_again, resolved, without_places, words_again
from runner.distributed.collectives import broadcast_object
from runner.experiment.check import Checked
from runner.experiment.resume import NothingLeft, latest_checkpoint, new_folder
from runner.experiment.summary import is_noop
from runner.files.atomic import CannotWrite, make_folder, remove_temporary
from runner.files.readers import Unreadable, read_yaml_mapping
from runner.results.job import Job
from runner.results.record import Record, VerifiedRecord, digest, plain
from runner.results.run_folder import RunFolder
from runner.results.run_lock import Taken, hold, sign
from runner.results.run_state import RESULTS
from runner.tracking.metrics_log import MetricsLog
from runner.tracking.wandb_run import new_run_id
from runner.training.checkpoint import Latest
from runner.training.formats import Formats


@dataclass
class Entry:
    """A run's folder, held for this process until `lock` is closed, and its newest checkpoint if it goes on from one.

    `formats` are those in which the run begins, or has begun. `finished_status` is the status of a run that has nothing
    left to do, and is not to be run again.
    """

    folder: RunFolder
    formats: Formats
    latest: Latest | None = None
    known: VerifiedRecord = field(default_factory=VerifiedRecord)
    notes: tuple[str, ...] = ()  # on what is odd in the folder, and no reason to refuse it
    finished_status: str | None = None
    lock: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def checkpoint(self) -> dict | None:
        """What the run goes on from."""
        return self.latest.checkpoint if self.latest else None

    def record(self, settings: Mapping, overrides: Sequence[str], new_id: str) -> Record:
        """The record of the run as it goes on, or under `new_id` as it begins."""
        earlier = self.known.record
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        if self.checkpoint is not None:
            new_id, time = self.checkpoint["about"]["wandb_id"], earlier.time if earlier else time
        try:
            before = digest(plain(read_yaml_mapping(self.folder.config), self.folder.config))
        except Unreadable:
            before = None
        return Record(new_id, time, plain(settings, "the settings"), tuple(overrides), before)

    def begin(self, settings: Settings, overrides: Sequence[str]) -> Record:
        """Clear the folder and write the record of the run into it. Raises CannotWrite."""
        record = self.record(settings.plain(), resolved(overrides, settings), new_run_id(self.folder.path.name))
        try:
            self.clear()
            self.folder.write_settings(record)
        except OSError as error:
            raise CannotWrite.from_os_error(error.filename or self.folder.path, error) from None
        return record

    def passed_over(self, overrides: Sequence[str]) -> list[str]:
        """The overrides of the run so far on where things go that nobody typed again."""
        record = self.known.record
        if record is None or self.checkpoint is None:
            return []
        typed = {word.partition("=")[0] for word in overrides}
        kept = without_places(record.overrides)
        return [word for word in record.overrides if word not in kept and word.partition("=")[0] not in typed]

    def clear(self) -> None:
        """Take away what an attempt that died has left: halves of files, and how it ended. Raises OSError."""
        folder = self.folder
        sign(folder.path)
        make_folder(folder.checkpoints)
        for path in (folder.path, folder.checkpoints, folder.probes):
            remove_temporary(path)
        folder.error.unlink(missing_ok=True)
        folder.summary.unlink(missing_ok=True)
        if self.latest and self.latest.damaged:  # else it would become the generation before the next one
            last = folder.checkpoint("last")
            last.replace(last.with_suffix(".damaged"))


def take_folder(checked: Checked, overrides: Sequence[str], job: Job | None) -> Entry:
    """The run's folder, of which the other ranks are told. Raises SettingError, there too."""
    try:
        entry = _enter(checked, overrides, job)
    except SettingError as error:
        broadcast_object((None, None, None, str(error)))
        raise
    broadcast_object((entry.folder.path, entry.formats, entry.finished_status, None))
    return entry


def follow_rank0() -> tuple[RunFolder, Formats, str | None]:
    """The folder that rank 0 took, `formats` and `finished_status`. Raises the SettingError of rank 0."""
    path, formats, finished_status, refusal = broadcast_object(None)
    if refusal is not None:
        raise SettingError(refusal)
    return RunFolder(path), formats, finished_status


def _enter(checked: Checked, overrides: Sequence[str], job: Job | None) -> Entry:
    """Take a folder for a run; nothing in it is changed yet.

    A new folder gets a number if its name is taken. `overrides` are what led to the settings. Raises SettingError if
    no folder can be made, if another process works on it, and if what lies there does not fit the settings.
    """
    settings, outputs = checked.settings, checked.settings.paths.outputs
    if settings.resume is not None:
        source = f"resume={settings.resume}"
        return _latest(_held(RunFolder(Path(settings.resume)), checked, source), checked, source, overrides=overrides)
    if job is not None:  # whoever runs a sweep holds its jobs' folders
        make_folder(job.path)
        return _latest(Entry(RunFolder(job.path), checked.formats), checked, str(job.path), again=True)
    acting = [name for name in checked.chosen if not is_noop(name, checked.built.counts)]
    name = settings.name or "-".join([option_label(settings.dataset), option_label(settings.model), *acting])
    folder = Path(outputs, "runs", name)
    if settings.train.auto_resume and folder.is_dir():
        source = "train.auto_resume=true"
        return _latest(_held(RunFolder(folder), checked, source), checked, source, again=True)
    lock = ExitStack()
    try:
        return Entry(new_folder(folder.parent, name, outputs, lock), checked.formats, lock=lock)
    except Taken as error:
        raise _is_taken(f"name={name}", error) from None


def _latest(
    entry: Entry, checked: Checked, source: str, *, again: bool = False, overrides: Sequence[str] | None = None
) -> Entry:
    """With the newest checkpoint; `again` says that the run may have come to its end, which is no mistake then."""
    folder = entry.folder
    status = folder.read_summary().get("status")
    try:
        folder.check()
        if again and status == "diverged":
            entry.finished_status = status
            return entry
        entry.latest, entry.known, entry.formats = latest_checkpoint(folder, checked, overrides)
        entry.notes = entry.known.notes
        if entry.latest is None and status in RESULTS:
            raise NothingLeft(f"{folder.checkpoint('last')} is missing, without which a finished run cannot go on.")
        if entry.latest:  # else the run begins anew, and the rows go
            entry.notes = (*entry.notes, *_rows_missing(folder, entry.latest.checkpoint["progress"]))
    except ValueError as error:
        if again and isinstance(error, NothingLeft) and status in RESULTS:
            entry.finished_status = status
            return entry
        entry.lock.close()
        raise SettingError(f"{source}: {error}") from None
    return entry


def _rows_missing(folder: RunFolder, progress: Mapping) -> list[str]:
    """That metrics.jsonl has not the rows that were there at the checkpoint. Raises Unreadable for a damaged line."""
    found, expected = MetricsLog.count(folder.metrics, progress["step"]), progress.get("rows", 0)
    if found == expected or expected == 0:
        return []
    return [f"{folder.metrics} has {found} rows up to step {progress['step']}, where {expected} were written."]


def _held(folder: RunFolder, checked: Checked, source: str) -> Entry:
    entry = Entry(folder, checked.formats)
    try:
        entry.lock.enter_context(hold(folder.path, signed=False))
    except Taken as error:
        raise _is_taken(source, error) from None
    except OSError as error:
        raise SettingError(f"{source}: {folder.path} cannot be used ({error.strerror or error}).") from None
    return entry


def _is_taken(source: str, error: Taken) -> SettingError:
    return SettingError(f"{source}: {error} Wait for it, or name another folder.")


def resume_command(folder: RunFolder, settings: Settings) -> str:
    """The command that goes on with the run from its last checkpoint."""
    words = [f"resume={folder.path}", *words_again(settings.paths), *places_again(settings)]
    return f"python -m runner {shlex.join(words)}"
