"""A job of a sweep, and the name of its folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST_NAME = 120
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


def job_name(overrides: Sequence[str], digits: str, varied: Collection[str] = ()) -> str:
    """A folder name from the overrides and the configuration's hash: `norm=agc,agc.clip=0.01-0123abcd`.

    If there are too many, the last ones stay; those of the keys `varied` are put last.
    """
    named = [word for word in overrides if not word.startswith(("sweep.", "wandb.", "paths."))]
    room = LONGEST_NAME - len(digits) - 1
    if len(_as_name(named)) > room:
        named.sort(key=lambda word: word.partition("=")[0].lstrip("+") in varied)
        while len(named) > 1 and len(_as_name(named)) > room:
            del named[0]
    return f"{_as_name(named)[:room] or 'job'}-{digits}"


def _as_name(overrides: Sequence[str]) -> str:
    name = ",".join(overrides).replace("[", "").replace("]", "")
    return re.sub(r"[^A-Za-z0-9._,=+-]+", "_", name).lstrip("._")
