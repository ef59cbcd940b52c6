"""What it means to survive an attack. Every kind of attack is held to these rules, and to nothing else.

1. **No traceback**: whatever is wrong is told in words. No warning and no "Error executing job" stands before them.
2. **The right exit code**: 0 done (also diverged), 1 failed, 2 refused, 130 interrupted. An attack says which of them
   are right, and why; a death by a signal is right only where the attack sent it.
3. **A short message**: a refusal says something, in less than `LONGEST_MESSAGE` characters, however long a value is,
   and no control character reaches the terminal.
4. **Nothing written on a refusal**: after exit code 2 every file and folder is as it was before, byte for byte. Lock
   files are left out: they say which process looked.
5. **Nothing lost**: what an attack has not touched, and a command is not to change, is there and the same; of the last
   checkpoint and the one before it one can be loaded at every moment since the first was written.
6. **Nothing silently different**: a run that was killed, or met a full disk, and went on has the weights, optimizer
   state, rows and results of a run that was left alone, bit for bit. What is damaged is without effect on the
   result, or told: its name stands in the output. Junk beside data is without effect.
7. **An end**: within the deadline, with no process left behind.
8. **No leak**: the value of the environment variable `SECRET` is in no file and in no output.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from runner.training.checkpoint import load_checkpoint
from tortures.processes import Ended

SECRET = ("TORTURE_SECRET", "hunter2-in-the-environment")
LONGEST_MESSAGE = 4000  # the options of a group take about half of it
NOISE = ("Warning: ", "Error executing job", "HYDRA_FULL_ERROR")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# of rows and of a checkpoint's progress; they differ between any two runs
ERROR = re.compile(r"[\w.]+(?:Error|Exception|Interrupt|CannotWrite)\b: .*")
TIMINGS = ("images_per_second", "seconds", "train_seconds", "first_step_seconds", "first_step_images")
STATE = ("model", "ema", "optimizer", "scaler", "methods", "random", "ranks", "sums", "logged", "progress")
RESULTS = ("status", "metrics", "best", "last")  # of a summary
LOCKS = (".lock",)

Tree = dict[str, str]  # each path below a folder, and what is there


def faults(ended: Ended, allowed: Mapping[int, str], *, is_quiet: bool = False) -> list[str]:
    """How the end of a command breaks rules 1, 2, 3, 7 and 8; `allowed` gives a reason for each right exit code.

    `is_quiet` if a refusal stands alone in the output, as where nothing has begun.
    """
    found = []
    if ended.code is None:
        found.append(f"no end within the deadline: {_last_line(ended.text)}")
    if "Traceback (most recent call last)" in ended.text:
        errors = ERROR.findall(ended.text)
        found.append(f"traceback: {errors[-1][:160] if errors else _last_line(ended.text)}")
    elif ended.code is not None and ended.code not in allowed:
        right = " or ".join(f"{code} ({reason})" for code, reason in allowed.items())
        found.append(f"exit code {ended.code}, not {right}: {_last_line(ended.text)}")
    if ended.code in (1, 2):
        if not ended.text.strip():
            found.append(f"exit code {ended.code} without a word")
        if noise := next((word for word in NOISE if word in ended.text), None):
            found.append(f"{noise.strip()!r} beside the message")
    if ended.code == 2 and is_quiet and len(ended.text) > LONGEST_MESSAGE:
        found.append(f"a message of {len(ended.text):,} characters")
    if control := CONTROL.search(ended.text):
        found.append(f"the control character {control.group()!r} in the output")
    if ended.left:
        found.append(f"left behind: {', '.join(ended.left)}")
    if SECRET[1] in ended.text:
        found.append("the value of a secret in the output")
    return found


def leaks(folder: Path) -> list[str]:
    """The files below a folder that hold the secret: rule 8."""
    secret = SECRET[1].encode()
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [f"the value of a secret in {path.relative_to(folder)}" for path in files if secret in path.read_bytes()]


def tree(folder: Path) -> Tree:
    """What lies below a folder: for each path its kind and its content."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if name not in LOCKS or path.is_symlink():
                found[str(path.relative_to(folder))] = _content(path)
    return found


def changes(before: Tree, after: Tree, what: Iterable[str] | None = None) -> list[str]:
    """What differs between two trees, of the paths `what` or of all: rules 4 and 5."""
    found = []
    for path in sorted(before.keys() | after.keys()) if what is None else what:
        if before.get(path) != after.get(path):
            found.append(f"{path} {'is gone' if path not in after else 'is new' if path not in before else 'changed'}")
    return found[:3] + ([f"and {len(found) - 3} more"] if len(found) > 3 else [])


def result(folder: Path) -> dict[str, object]:
    """What a run came to, without what takes time or names a place: rule 6 compares two of these."""
    checkpoints = sorted((folder / "checkpoints").glob("*.pt"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        **{path.name: _weights(path) for path in checkpoints if path.name != "previous.pt"},
        "rows": [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows],
        **{key: summary.get(key) for key in RESULTS},
    }


def differences(expected: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    """The parts of two results that are not the same."""
    return [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]


def checkpoint_fault(folder: Path) -> str | None:
    """Why a run that has had a checkpoint could not go on; None if it could: rule 5."""
    told = []
    for name in ("last", "previous"):
        try:
            load_checkpoint(folder / "checkpoints" / f"{name}.pt")
        except ValueError as error:
            told.append(str(error))
        else:
            return None
    return f"no checkpoint can be loaded: {' '.join(told)}"


def _weights(path: Path) -> str:
    """A hash of every tensor and number of a checkpoint's training state, but for times."""
    digest, checkpoint = hashlib.sha256(), load_checkpoint(path)
    _feed(digest, "", {part: checkpoint[part] for part in STATE if part in checkpoint})
    return digest.hexdigest()[:16]


def _feed(digest: hashlib._Hash, name: str, value: object) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in TIMINGS:
                _feed(digest, f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _feed(digest, f"{name}.{number}", item)
    elif isinstance(value, torch.Tensor):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    else:
        digest.update(f"{name} {value!r}".encode())


def _content(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {os.readlink(path)}"
    if stat.S_ISREG(mode):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return "folder" if stat.S_ISDIR(mode) else "special file"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else "(no output)"
