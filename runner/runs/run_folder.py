"""A run's folder: where each file lies, and how it is written so that a reader never sees half of one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from runner.command_line.grammar import all_parsed, quoted
from runner.command_line.remedies import chosen_options
from runner.config import METHOD_GROUPS
from runner.files import finite, write_atomically
from runner.readers import Unreadable, is_there, read_json_object
from runner.safety.allowed import as_words, check_words
from runner.safety.secret_values import without_secrets
from runner.settings.text import SettingError


class RunFolder:
    """The files of one run, as DESIGN and README list them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.overrides = path / "overrides.yaml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.error = path / "error.txt"
        self.checkpoints = path / "checkpoints"
        self.probes = path / "probes"

    @classmethod
    def create(cls, parent: Path, name: str) -> RunFolder:
        """Make `parent/name`, or `parent/name-2`, `-3`, ... where the name is taken: nothing is overwritten."""
        number = 1
        while True:
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                number += 1
                continue
            folder = cls(path)
            folder.checkpoints.mkdir()
            return folder

    def checkpoint(self, name: str) -> Path:
        """The path of the checkpoint `last` or `best`."""
        return self.checkpoints / f"{name}.pt"

    def write_settings(self, config: dict, overrides: Sequence[str]) -> None:
        """The resolved configuration, and the overrides that a resumed run starts from."""
        write_atomically(self.config, yaml.safe_dump(config, sort_keys=False))
        write_atomically(self.overrides, yaml.safe_dump(list(overrides)))

    def write_summary(self, summary: dict) -> None:
        """`summary.json`; a number that is not finite is written as null, which every reader knows."""
        write_atomically(self.summary, json.dumps(finite(summary), indent=2, allow_nan=False) + "\n")

    def write_failure(self, reason: str, trace: str, summary: Mapping[str, object]) -> None:
        """`error.txt` and the summary of a run that failed and could not write its own; secrets are masked."""
        write_atomically(self.error, f"{without_secrets(trace)}\n")
        self.write_summary({**summary, "status": "failed", "error": without_secrets(reason)})

    def read_summary(self) -> dict:
        """What `summary.json` says; empty where there is none that can be read."""
        try:
            return read_json_object(self.summary)
        except Unreadable:
            return {}

    def check(self) -> None:
        """Raise a ValueError if a file of the run is something else, or a folder leads elsewhere by a link."""
        for file in (self.config, self.overrides, self.metrics, self.summary, self.error):
            if is_there(file) and not file.is_symlink() and not file.is_file():
                raise ValueError(f"{file} is no regular file, so the run cannot write it. Remove it.")
        for folder in (self.checkpoints, self.probes):
            if is_there(folder) and (folder.is_symlink() or not folder.is_dir()):
                what = "a symbolic link" if folder.is_symlink() else "no folder"
                raise ValueError(f"{folder} is {what}; a run writes into folders of its own alone. Remove it.")


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
    if not folder.overrides.is_file():
        raise SettingError(f"resume={resume[-1]}: no run lies there ({folder.overrides.name} is missing).")
    if any(word in ("-m", "--multirun") for word in arguments):
        raise SettingError(f"resume={resume[-1]}: one run goes on, not a sweep; leave out -m.")
    # a job's folder has commas and equals signs in its name, which Hydra takes for its own unless quoted
    arguments = [f"resume={quoted(resume[-1])}" if _key(word) == "resume" else word for word in arguments]
    new = {_key(word) for word in arguments}
    source = f"resume={resume[-1]}: {folder.overrides.name}"
    earlier = as_words(yaml.safe_load(folder.overrides.read_text()), source)
    before, now = chosen_options(earlier), chosen_options(arguments)
    new |= {method for group in new.intersection(METHOD_GROUPS) for method in {*before[group]} - {*now[group]}}
    kept = [word for word in earlier if new.isdisjoint((_key(word), _key(word).partition(".")[0]))]
    check_words(kept, source)
    return [*kept, *arguments]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
