"""A job of a sweep, and the name of its folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from runner.config.text import last_parts, override_key
from runner.files.atomic import CannotWrite, open_unlinked

LONGEST_NAME = 120
OUTPUT = "console.txt"  # in a job's folder
NOT_HASHED = ("wandb", "sweep", "name", "resume")  # beside paths.outputs


@dataclass(frozen=True)
class Job:
    """A job of a sweep: the name of its folder, its number in the sweep and its overrides."""

    name: str
    number: int
    total: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The folder of its run."""
        return self.folder / self.name

    def open_output(self) -> IO[bytes]:
        """The file for what the job prints, to add to. Raises CannotWrite."""
        path = self.path / OUTPUT
        try:
            return os.fdopen(open_unlinked(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
        except OSError as error:
            raise CannotWrite.from_os_error(path, error) from None


def config_hash(config: Mapping) -> str:
    """8 hex digits for a configuration as plain data, equal for equal settings.

    Settings that say where a run lies or how it is watched do not count.
    """
    kept = {key: _without_targets(value) for key, value in config.items() if key not in NOT_HASHED}
    kept["paths"] = {key: value for key, value in config["paths"].items() if key != "outputs"}
    canonical = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def _without_targets(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_targets(each) for key, each in value.items() if key != "_target_"}


def varied_keys(jobs: Collection[Sequence[str]]) -> set[str]:
    """The keys that some of the jobs override otherwise than others, or not at all."""
    common = set.intersection(*map(set, jobs)) if jobs else set()
    return {override_key(word) for words in jobs for word in words if word not in common}


def job_name(overrides: Sequence[str], digits: str, varied: Collection[str] = ()) -> str:
    """A folder name from the overrides and the configuration's hash: `norm=agc,clip=0.01,seed=0-0123abcd`.

    It has the overrides of the keys `varied`, or all of them where there is none: options of groups first, the seed
    last, keys by their last parts where no two end alike. If there are too many, the last ones stay.
    """
    named = {override_key(word): word for word in overrides if not word.startswith(("sweep.", "wandb.", "paths."))}
    keys = sorted({key for key in named if key in varied} or named, key=lambda key: (key == "seed", "." in key, key))
    short = dict(zip(varied := sorted({*varied, *keys}), last_parts(varied), strict=True))
    words = [_as_name(short[key] + named[key][named[key].index(key) + len(key) :]) for key in keys]
    room = LONGEST_NAME - len(digits) - 1
    while len(words) > 1 and len(",".join(words)) > room:
        del words[0]
    return f"{','.join(filter(None, words))[:room].lstrip('._,') or 'job'}-{digits}"


def _as_name(override: str) -> str:
    return re.sub(r"[^A-Za-z0-9._,=+-]+", "_", override.replace("[", "").replace("]", "")).lstrip("._")
