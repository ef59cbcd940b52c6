"""What can happen to a file or a folder: by accident, by another program, or by somebody who forges it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch

from runner.training.checkpoint import add_checksum
from tortures.survival import SECRET

ESCAPE = "\x1b[31m"
JSON_TEXTS = ["[]", "null", "{}", "3", '"text"', "NaN", '{"a":', "[" * 100_000, "1" * 5000, "1e999", "\ud800", ""]
JSON_TEXTS += ['{"status": []}', '{"status": "completed", "metrics": [], "best": 3, "model": null}']
JSON_TEXTS += ['{"status": "completed", "metrics": {"accuracy": "high"}, "best": {"epoch": {}}, "overrides": 7}']
JSON_TEXTS += [json.dumps({"status": f"{ESCAPE}done", "error": f"{ESCAPE}red"})]
ROWS = ["[]", "3", "null", '{"step": "one"}', '{"split": "steps"}', '{"step": -1, "epoch": 0, "split": "steps"}']
ROWS += ['{"step": 1, "epoch": 0, "split": []}', "{", "not json", '{"step": 1e400, "epoch": 0, "split": "train"}']
YAML_TEXTS = ["[]", "null", "3", "- a", "{", "a: b: c", "\x07", "&a [*a]", "? [a]\n: b", "", "\ud800", "a: &x [*x]"]
YAML_TEXTS += ['!!python/object/apply:os.system ["touch pwned"]', f"a: {ESCAPE}red", "seed: 5", "seed: [1]\nmodel: 3"]
YAML_TEXTS += [
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8))
]
OVERRIDES = ["seed=5", "optimizer.lr=9", "resume=/", "paths.outputs=elsewhere", "hydra.run.dir=elsewhere", "-m", "3"]
OVERRIDES += [f"name=${{oc.env:{SECRET[0]}}}", f"wandb.group=${{oc.env:{SECRET[0]}}}", "--cfg=job", "[a]", "null", "{}"]
OVERRIDES += ["train.num_devices=2", "wandb.mode=online", "train.epochs=9", "norm=agc", "optimizer.lr=${nope}", "a b"]
OVERRIDES += ["dataset.num_images=99", "paths.allowed_packages=[os]", "+hydra.callbacks.x._target_=os.getcwd", ESCAPE]


@dataclass(frozen=True)
class Wound:
    """What was done to a file. `is_forged` if it still says, with a right checksum, something that nobody can doubt."""

    text: str
    is_forged: bool = False


def wound(draw: Random, path: Path, twin: Path) -> Wound:
    """Do something to the file or folder `path`; `twin` is its like in another run, which may not be there."""
    ways = [_deleted, _as_link, _as_loop, _as_pipe, _as_folder if path.is_file() else _as_file]
    if path.is_file():
        ways += [_cut, _flipped, _flipped, _emptied, _random] * 2
        forge = {".json": _json, ".jsonl": _rows, ".yaml": _yaml, ".pt": _checkpoint, ".npz": _arrays}.get(path.suffix)
        ways += [forge] * 12 if forge else []
        ways += [_overrides] * 6 if path.name == "overrides.yaml" else []
        if twin.is_file():
            ways += [lambda draw, path: _swapped(path, twin)] * 4
    return draw.choice(ways)(draw, path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _replaced(text: str, make: Callable[[Path], object]) -> Callable[[Random, Path], Wound]:
    def replace(draw: Random, path: Path) -> Wound:
        _remove(path)
        make(path)
        return Wound(text)

    return replace


_deleted = _replaced("deleted", lambda path: None)
_as_loop = _replaced("replaced by a link to itself", lambda path: path.symlink_to(path.name))
_as_pipe = _replaced("replaced by a named pipe", os.mkfifo)
_as_file = _replaced("replaced by a file", lambda path: path.write_text("x"))


def _as_link(draw: Random, path: Path) -> Wound:
    """A link to a stranger's file, or to nowhere."""
    _remove(path)
    target = path.parents[3] / "stranger.txt"
    if draw.random() < 0.5:
        target.write_text("not yours\n")
    path.symlink_to(target)
    return Wound(f"replaced by a link to {'a strange file' if target.exists() else 'nowhere'}")


def _as_folder(draw: Random, path: Path) -> Wound:
    _remove(path)
    path.mkdir()
    if draw.random() < 0.5:
        (path / "inside").write_text("x")
    return Wound("replaced by a folder")


def _cut(draw: Random, path: Path) -> Wound:
    content = path.read_bytes()
    length = draw.randrange(len(content)) if content else 0
    path.write_bytes(content[:length])
    return Wound(f"cut at byte {length} of {len(content)}")


def _flipped(draw: Random, path: Path) -> Wound:
    content = bytearray(path.read_bytes())
    if not content:
        return Wound("empty as it was")
    places = [draw.randrange(len(content)) for _ in range(draw.choice((1, 1, 8)))]
    for place in places:
        content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))
    # a row of metrics has no checksum: another figure in it is what the file says
    return Wound(
        f"with a bit flipped in byte {', '.join(map(str, places))}", is_forged=path.suffix in (".jsonl", ".csv")
    )


def _emptied(draw: Random, path: Path) -> Wound:
    path.write_bytes(b"")
    return Wound("emptied")


def _random(draw: Random, path: Path) -> Wound:
    path.write_bytes(draw.randbytes(draw.choice((1, 100, 5000))))
    return Wound("replaced by random bytes")


def _swapped(path: Path, twin: Path) -> Wound:
    shutil.copyfile(twin, path)
    return Wound("replaced by that of another run", is_forged=path.suffix in (".json", ".jsonl"))


def _text(draw: Random, path: Path, texts: list[str]) -> Wound:
    text = draw.choice(texts)
    path.write_bytes(text.encode(errors="surrogatepass"))
    return Wound(f"saying {text[:60]!r}")


def _json(draw: Random, path: Path) -> Wound:
    if draw.random() < 0.5:
        return _text(draw, path, JSON_TEXTS)
    content = json.loads(path.read_text())
    key = draw.choice(list(content))
    value = draw.choice([None, [], {}, 3, "text", -1, True, [None], {"a": []}, 10**400, f"{ESCAPE}x", [[[]]]])
    content[key] = value
    path.write_text(json.dumps(content))
    return Wound(f"with {key}: {str(value)[:20]!r}", is_forged=True)


def _rows(draw: Random, path: Path) -> Wound:
    lines = path.read_text().splitlines()
    number = draw.randrange(len(lines))
    way = draw.choice(("said", "missing", "twice", "torn"))
    if way == "said":
        lines[number] = draw.choice(ROWS)
        text = f"with line {number + 1} saying {lines[number]!r}"
    elif way == "missing":
        del lines[number]
        text = f"without line {number + 1}"
    elif way == "twice":
        lines.insert(number, lines[number])
        text = f"with line {number + 1} twice"
    else:
        lines[number] = lines[number][: len(lines[number]) // 2]
        text = f"with half of line {number + 1}"
    path.write_text("".join(f"{line}\n" for line in lines))
    return Wound(text)


def _yaml(draw: Random, path: Path) -> Wound:
    return _text(draw, path, YAML_TEXTS)


def _overrides(draw: Random, path: Path) -> Wound:
    word = draw.choice(OVERRIDES)
    if draw.random() < 0.5:
        path.write_text(path.read_text() + f"- {json.dumps(word)}\n")
        return Wound(f"with {word!r} added")
    lines = path.read_text().splitlines()
    del lines[draw.randrange(len(lines))]
    path.write_text("".join(f"{line}\n" for line in lines))
    return Wound("without one of its lines")


def _arrays(draw: Random, path: Path) -> Wound:
    content = dict(np.load(path))
    key = draw.choice(list(content))
    way = draw.choice(("missing", "objects", "empty", "NaN", "text", "none"))
    if way == "missing":
        del content[key]
    else:
        values = {"objects": np.array([{}, None], dtype=object), "empty": np.empty(0), "NaN": np.full((2, 2), np.nan)}
        values |= {"text": np.array(["x"])}
        content = {} if way == "none" else {**content, key: values[way]}
    np.savez(path, **content)
    return Wound(f"with {key} {way}")


def _checkpoint(draw: Random, path: Path) -> Wound:
    """A checkpoint with a right checksum and a wrong content."""
    checkpoint = torch.load(path, weights_only=True)
    text = draw.choice(_FORGERIES)(draw, checkpoint)
    file = io.BytesIO()
    torch.save(checkpoint, file)
    add_checksum(file)
    path.write_bytes(file.getvalue())
    return Wound(f"forged: {text}", is_forged=True)


def _without_part(draw: Random, checkpoint: dict) -> str:
    key = draw.choice(list(checkpoint))
    del checkpoint[key]
    return f"no {key}"


def _other_part(draw: Random, checkpoint: dict) -> str:
    key = draw.choice(list(checkpoint))
    checkpoint[key] = draw.choice([None, [], {}, 3, "text", torch.zeros(2), {"a": 1}, [None], float("nan")])
    return f"{key} is {str(checkpoint[key])[:20]}"


def _other_value(draw: Random, checkpoint: dict) -> str:
    part = draw.choice([key for key, value in checkpoint.items() if isinstance(value, dict) and value])
    key = draw.choice(list(checkpoint[part]))
    if draw.random() < 0.3:
        del checkpoint[part][key]
        return f"no {part}.{key}"
    values = [None, [], {}, -1, 10**6, 10**12, "text", torch.zeros(2), torch.zeros(0), 0.5, float("nan"), [None]]
    checkpoint[part][key] = draw.choice(values)
    return f"{part}.{key} is {str(checkpoint[part][key])[:20]}"


def _one_more(draw: Random, checkpoint: dict) -> str:
    part = draw.choice([key for key, value in checkpoint.items() if isinstance(value, dict)])
    checkpoint[part]["stranger"] = draw.choice([None, 3, torch.zeros(2)])
    return f"{part}.stranger is {checkpoint[part]['stranger']}"


_FORGERIES: list[Callable[[Random, dict], str]] = [_without_part, _other_part, _other_value, _other_value, _one_more]
