"""A run's folder: where each file lies, and how it is written so that a reader never sees half of one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from runner.config.diagnose import chosen_options
from runner.config.grammar import all_parsed, quoted
from runner.config.secrets import redact
from runner.config.text import SettingError, override_key, visible
from runner.config.trust import as_words, check_words, without_places
from runner.config.validation import METHOD_GROUPS
from runner.files.atomic import finite, new_folder, write_atomically
from runner.files.readers import Unreadable, is_there, read_json_object, read_yaml
from runner.results.record import CONFIG, RECORD, SUMMARY, Record, read_record, record_in

CHECKPOINTS = ("last", "previous", "best")  # in the order in which one stands in for another


class RunFolder:
    """The files of one run, as the README lists them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG
        self.record = path / RECORD
        self.overrides = path / "overrides.yaml"  # of runs before there was a record
        self.metrics = path / "metrics.jsonl"
        self.summary = path / SUMMARY
        self.error = path / "error.txt"
        self.checkpoints = path / "checkpoints"
        self.probes = path / "probes"

    @classmethod
    def create(cls, parent: Path, name: str) -> RunFolder:
        """A folder `parent/name`, or `parent/name-2`, `-3`, ... where the name is taken."""
        folder = cls(new_folder(parent, name))
        folder.checkpoints.mkdir()
        return folder

    def checkpoint(self, name: str) -> Path:
        """The path of the checkpoint `last` or `best`."""
        return self.checkpoints / f"{name}.pt"

    def write_settings(self, record: Record) -> None:
        """The record, and its settings once more as config.yaml, to be read by people."""
        write_atomically(self.record, record.text)
        write_atomically(self.config, yaml.safe_dump(record.settings, sort_keys=False))
        self.overrides.unlink(missing_ok=True)  # what it said is in the record now

    def write_summary(self, summary: dict) -> None:
        """`summary.json`; a number that is not finite is written as null, which every reader knows."""
        write_atomically(self.summary, json.dumps(finite(summary), indent=2, allow_nan=False) + "\n")

    def write_failure(self, reason: str, trace: str, summary: Mapping[str, object]) -> None:
        """`error.txt` and the summary of a run that failed and could not write its own; secrets are masked."""
        write_atomically(self.error, visible(f"{redact(trace)}\n", keep="\n\t"))
        self.write_summary({**summary, "status": "failed", "error": redact(reason)})

    def read_summary(self) -> dict:
        """What `summary.json` says; empty where there is none that can be read."""
        try:
            return read_json_object(self.summary)
        except Unreadable:
            return {}

    def check(self) -> None:
        """Raise a ValueError if a file of the run is something else, or a folder leads elsewhere by a link."""
        checkpoints = (self.checkpoint(name) for name in CHECKPOINTS)
        texts = (self.config, self.record, self.overrides, self.metrics, self.summary, self.error)
        for file in (*texts, *checkpoints):
            if is_there(file) and not file.is_symlink() and not file.is_file():
                raise ValueError(f"{file} is no regular file, so the run cannot write it. Remove it.")
        for folder in (self.checkpoints, self.probes):
            if is_there(folder) and (folder.is_symlink() or not folder.is_dir()):
                what = "a symbolic link" if folder.is_symlink() else "no folder"
                raise ValueError(f"{folder} is {what}; a run writes into folders of its own alone. Remove it.")

    def recorded_overrides(self, source: str) -> tuple[list[str], Path]:
        """The overrides that a resumed run starts from, and the file that holds them.

        Where the record cannot be read a checkpoint stands in for it. Raises a SettingError, which begins with
        `source`, if there is none either.
        """
        reason = f"{self.record.name} is missing"
        if is_there(self.record):
            try:
                return list(read_record(self.record).overrides), self.record
            except Unreadable as error:
                reason = str(error)
        for path in (self.checkpoint(name) for name in CHECKPOINTS):
            if path.is_file():
                from runner.training.checkpoint import load_checkpoint
                from runner.training.checkpoint_content import check_weights

                try:
                    record = record_in(load_checkpoint(path, check=check_weights), path)
                except ValueError:  # told when the run goes on
                    continue
                if record is not None:
                    return list(record.overrides), path
        if not is_there(self.overrides):
            raise SettingError(f"{source}: no run lies there ({reason}).")
        try:
            return as_words(read_yaml(self.overrides), f"{source}: {self.overrides.name}"), self.overrides
        except Unreadable as error:
            raise SettingError(f"{source}: {error}.") from None


def earlier_overrides(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments, with those of the folder that `resume=` names put before them.

    An earlier override gives way to a new one of the same key, and to another option of its group: a new
    `schedule=constant` takes the place of `schedule=cosine` and of `schedule.final_lr_share=0.1`. So do the settings
    of a method that a new `norm=...` or `regularization=...` no longer names.
    """
    resume = [override.value() for override in all_parsed(arguments) if override.key_or_group == "resume"]
    if not resume or resume[-1] is None:
        return list(arguments)
    if not isinstance(resume[-1], str):
        raise SettingError(f"resume={resume[-1]}: it must be the folder of a run, as in resume=outputs/runs/NAME.")
    folder = RunFolder(Path(resume[-1]))
    if any(word in ("-m", "--multirun") for word in arguments):
        raise SettingError(f"resume={resume[-1]}: one run goes on, not a sweep; leave out -m.")
    # a job's folder has commas and equals signs in its name, which Hydra takes for its own unless quoted
    arguments = [f"resume={quoted(resume[-1])}" if override_key(word) == "resume" else word for word in arguments]
    new = {override_key(word) for word in arguments}
    earlier, file = folder.recorded_overrides(source=f"resume={resume[-1]}")
    source = f"resume={resume[-1]}: {file.name}"
    before, now = chosen_options(earlier), chosen_options(arguments)
    new |= {method for group in new.intersection(METHOD_GROUPS) for method in {*before[group]} - {*now[group]}}
    kept = [word for word in earlier if new.isdisjoint((override_key(word), override_key(word).partition(".")[0]))]
    check_words(kept, source)
    return [*without_places(kept), *arguments]
