"""The record of a run: id, settings and overrides with their SHA-256, in the folder and in each checkpoint.

If one copy is missing or damaged, another stands in for it. If copies contradict each other, a file was changed or
comes from another run, and the run cannot go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from runner.config.text import SettingError, shortened, to_override
from runner.files.readers import Unreadable, is_there, parse_json, read_text, read_yaml_mapping
from runner.results.metrics import SUMMARY, read_summary

RECORD, CONFIG = "record.json", "config.yaml"
MISSING = object()


@dataclass(frozen=True)
class Record:
    """A run as it was started or last resumed.

    `id` is that of the W&B run and stays the same when the run is resumed. `settings` is the configuration as plain
    data; a resumed run starts from `overrides`. `before` is the digest of the previous config.yaml, which is still
    there if the process was killed after it wrote the record.
    """

    id: str
    time: str
    settings: dict
    overrides: tuple[str, ...]
    before: str | None = None

    @property
    def text(self) -> str:
        """The record as JSON, with its digest."""
        return json.dumps({**asdict(self), "sha256": digest(asdict(self))}, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, path: str | Path) -> Record:
        """Parse `text`, from `path`. Raises Unreadable if it was changed or is no record."""
        content = parse_json(text, path)
        types = {"id": str, "time": str, "settings": dict, "overrides": list, "before": str | None}
        if not isinstance(content, dict) or content.pop("sha256", None) != digest(content):
            raise Unreadable(path, "it is damaged or was changed (its checksum does not match)")
        if content.keys() != types.keys() or not all(isinstance(content[key], kind) for key, kind in types.items()):
            raise Unreadable(path, "not the record of a run")
        if not all(isinstance(word, str) for word in content["overrides"]):
            raise Unreadable(path, "not the record of a run: its overrides are no texts")
        return cls(**{**content, "overrides": tuple(content["overrides"])})


@dataclass(frozen=True)
class VerifiedRecord:
    """The record of a folder's run, None for runs of older versions.

    `notes` are sentences on damaged files for which another copy of the record stands in.
    """

    record: Record | None = None
    notes: tuple[str, ...] = ()


def digest(value: object) -> str:
    """The SHA-256 of plain data: of its canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_record(path: Path) -> Record:
    """Read a record's file. Raises Unreadable."""
    return Record.parse(read_text(path), path)


def record_in(checkpoint: Mapping, path: Path) -> Record | None:
    """The record in a checkpoint, None in those of older versions. Raises Unreadable."""
    text = checkpoint["about"].get("record")
    record = None if text is None else Record.parse(text, path)
    if record is not None and record.id != checkpoint["about"]["wandb_id"]:
        raise Unreadable(path, "its record is that of another run")
    return record


def verified_record(folder: Path, checkpoints: Mapping[Path, Mapping]) -> VerifiedRecord:
    """The record of the run in `folder`, compared with its config.yaml and with the given checkpoints.

    Raises ValueError, with the file and both values, if a checkpoint is of another run or config.yaml was changed.
    """
    own, notes = None, []
    file, config = folder / RECORD, folder / CONFIG
    if is_there(file):
        try:
            own = read_record(file)
        except Unreadable as error:
            notes.append(str(error))
    ids = {file: own.id} if own else {folder / SUMMARY: _summary_id(folder)}
    ids |= {path: checkpoint["about"]["wandb_id"] for path, checkpoint in checkpoints.items()}
    expected = next(filter(None, ids.values()), None)
    for path, id in ids.items():
        if id and id != expected:
            raise SettingError(f"{path} is of another run, {id}, than the folder, {expected}. Put the run's own back.")
    records = {path: record_in(checkpoint, path) for path, checkpoint in checkpoints.items()}
    source, record = next(((path, each) for path, each in {file: own, **records}.items() if each), (file, None))
    if record is None:
        if notes:
            raise Unreadable(file, f"{notes[0].partition(': ')[2]}, and no checkpoint stands in for it")
        return VerifiedRecord(None)
    if not is_there(config):
        return VerifiedRecord(record, tuple(notes))
    try:
        notes += _compare(read_yaml_mapping(config), record, config, source)
    except Unreadable as error:
        notes.append(str(error))
    stand_in = f"{source.name} stands in for it."
    return VerifiedRecord(record, tuple(f"{note}; {stand_in}" for note in notes))


def _summary_id(folder: Path) -> str | None:
    id = read_summary(folder).get("wandb_id")
    return id if isinstance(id, str) else None


def _compare(config: dict, record: Record, path: Path, source: Path) -> list[str]:
    """A sentence if config.yaml lacks settings of the record. Raises SettingError if it has other values."""
    config = plain(config, path)
    if record.before is not None and digest(config) == record.before:
        return []
    missing = []
    for key, here, there in differences(config, record.settings):
        if here is MISSING:
            missing.append(key)
            continue
        there = "nothing" if there is MISSING else shortened(to_override(there))
        raise SettingError(
            f"{path} was changed after the run: {key}={shortened(to_override(here))} here, {there} in {source.name}. "
            f"Undo the change, or remove {path.name}, for which {source.name} stands in. Settings are "
            "changed by overrides."
        )
    return [f"{path}: it lacks {missing[0]} and {len(missing) - 1} more settings"] if missing else []


def plain(settings: Mapping, path: str | Path) -> dict:
    """Settings as JSON keeps them. Raises Unreadable for values that no configuration has, such as a date."""
    try:
        return json.loads(json.dumps(settings))
    except (TypeError, ValueError):
        raise Unreadable(path, "it holds values that are no settings") from None


def differences(a: Mapping, b: Mapping, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """The dotted key of each setting that differs, with both values; MISSING if one lacks the key."""
    for key in dict.fromkeys([*a, *b]):
        one, other = a.get(key, MISSING), b.get(key, MISSING)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from differences(one, other, f"{prefix}{key}.")
        elif one != other or isinstance(one, bool) != isinstance(other, bool):
            yield f"{prefix}{key}", one, other
