"""What a checkpoint must hold, so that whoever takes it up finds what it looks for: files may be forged or old."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from runner.settings import limits
from runner.training.plan import Progress
from runner.training.sums import Totals

LARGEST_COUNT = 2**53
MOST_DOUBLINGS = 32


def check_weights(content: object) -> None:
    """Raise a ValueError, in a few words, unless `content` is that of a best.pt or a last.pt."""
    content = _mapping(content, "it")
    model = _part(content, "model", dict)
    for name, value in model.items():
        _require(isinstance(name, str) and isinstance(value, Tensor), "its model holds more than named tensors")
        _check_storage(value, name)
    for name, state in _part(content, "methods", dict).items():
        _require(isinstance(name, str) and isinstance(state, dict), "its methods are no states by name")
    about = _part(content, "about", dict)
    for key in ("wandb_id", "optimizer"):
        _require(isinstance(about.get(key), str), f"about.{key} is no text")
    _require(isinstance(about.get("record"), str | None), "its record is no text")
    for key in ("num_classes", "image_size"):
        _require(_is_count(about.get(key)) and about[key] > 0, f"about.{key} is no number of 1 or more")
    limits.check("dataset", image_size=max(about["image_size"], 8), num_classes=max(about["num_classes"], 2))
    for key in ("mean", "std"):
        values = about.get(key)
        is_list = isinstance(values, list) and all(isinstance(value, float) for value in values)
        _require(is_list and len(values) in (1, 3), f"about.{key} is no list of a number a channel")
    if "ema" in content:
        average = _part(content, "ema", dict)
        _require(_is_count(average.get("updates")), "ema.updates is no count")
        for name, value in _part(average, "model", dict).items():
            _require(isinstance(value, Tensor), "its average holds more than tensors")
            _check_storage(value, name)


def check_best(content: object) -> None:
    """Raise a ValueError unless `content` is that of a best.pt."""
    check_weights(content)
    _require(_is_count(content.get("epoch")) and _is_count(content.get("step")), "it has no epoch and step")


def check_last(content: object) -> None:
    """Raise a ValueError unless `content` is that of a last.pt, from which a training can go on."""
    check_weights(content)
    _check_fields(_part(content, "progress", dict), Progress(), "progress")
    progress = content["progress"]
    _require({"epoch", "batch", "step"} <= progress.keys(), "its progress does not say how far it is")
    _require(progress.get("doublings", 0) <= MOST_DOUBLINGS, "progress.doublings is too large")
    for entry in [*progress.get("kept", []), *filter(None, [progress.get("best")])]:
        is_entry = isinstance(entry, dict) and {"epoch", "loss"} <= entry.keys()
        _require(is_entry and all(_is_number(value) for value in entry.values()), "progress.best holds no scores")
    _check_fields(_part(content, "logged", dict), Totals(), "logged")
    pairs = content["logged"].get("methods", {}).values()
    counts = content["logged"].get("counts", ())
    fits = all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)
    _require(fits and all(_is_number(value) for pair in [*pairs, counts] for value in pair), "logged holds no sums")
    _part(content, "scaler", dict)
    optimizer = _part(content, "optimizer", dict)
    shapes = {value.shape for value in content["model"].values()} | {torch.Size([]), torch.Size([1])}
    for number, state in _part(optimizer, "state", dict).items():
        _require(_is_count(number) and isinstance(state, dict), "its optimizer's state is none")
        for value in state.values():
            _require(not isinstance(value, Tensor) or value.shape in shapes, "its optimizer's state has other shapes")
    sums = _part(content, "sums", dict)
    tensors = [sums.get("loss"), sums.get("counts"), *_part(sums, "methods", dict).values()]
    _require(all(isinstance(value, Tensor) for value in tensors), "its sums are no tensors")
    _require(
        tensors[0].numel() == 1 and all(value.shape == (2,) for value in tensors[2:]), "its sums have other shapes"
    )
    _require(_is_count(sums.get("images")) and _is_count(sums.get("steps")), "its sums are no counts")
    _check_random(_part(content, "random", dict))
    for own in _part(content, "ranks", list) if "ranks" in content else ():
        _check_random(_part(_mapping(own, "ranks"), "random", dict))
        for part in ("buffers", "ema_buffers"):
            _require(
                all(isinstance(value, Tensor) for value in _part(own, part, dict).values()), f"{part} are no tensors"
            )


def _check_random(state: Mapping) -> None:
    """The state of torch's generators, which says itself whether it is one."""
    try:
        torch.Generator().set_state(state["cpu"].cpu())
    except (KeyError, AttributeError, TypeError, RuntimeError):
        raise ValueError("its random state is none") from None
    _require(isinstance(state.get("cuda"), Tensor | None), "its random state is none")


def _check_storage(value: Tensor, name: str) -> None:
    """A view may stretch one number over terabytes."""
    _require(value.layout == torch.strided, f"{name} is no dense tensor")
    _require(
        value.numel() * value.element_size() <= value.untyped_storage().nbytes(), f"{name} is larger than its file"
    )


def _check_fields(values: Mapping, default: Progress | Totals, place: str) -> None:
    """The values must be fields of the default's class and of their types; numbers are not negative."""
    known = {field.name: getattr(default, field.name) for field in fields(default)}
    for name, value in values.items():
        _require(name in known, f"{place}.{name} is unknown here; a newer version wrote it")
        kind = type(known[name])
        if kind is int:
            fits = _is_count(value)
        elif kind is float:
            fits = _is_number(value)
        else:
            fits = isinstance(value, list | tuple if kind in (list, tuple) else kind)
        _require(fits, f"{place}.{name} is no {kind.__name__}")


def _part(content: Mapping, name: str, kind: type) -> dict | list:
    _require(isinstance(content.get(name), kind), f"it has no {name}")
    return content[name]


def _mapping(content: object, what: str) -> dict:
    _require(isinstance(content, dict), f"{what} holds no names")
    return content


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise ValueError(fault)
