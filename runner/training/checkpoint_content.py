"""Checks of a checkpoint's content, which may be forged or from another version."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn

from runner.config import limits
from runner.distributed.collectives import floating_buffers
from runner.optim.optimizers import OPTIMIZER_STATES
from runner.training.metrics import Snapshot
from runner.training.plan import Progress

MAX_COUNT = 2**53
MAX_DOUBLINGS = 32
SCALER_KEYS = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}  # torch's


def check_weights(content: object) -> None:
    """Raise a ValueError unless `content` is that of a best.pt or a last.pt."""
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
    sides = about["image_size"] if isinstance(about.get("image_size"), tuple) else (about.get("image_size"),) * 2
    for key, values in (("num_classes", [about.get("num_classes")]), ("image_size", sides)):
        _require(all(_is_count(value) and value > 0 for value in values), f"about.{key} is no number of 1 or more")
    _require(len(sides) == 2, "about.image_size is no number, nor a height and a width")
    limits.check(
        "dataset", limits.LIMITS["dataset"], image_size=max(*sides, 8), num_classes=max(about["num_classes"], 2)
    )
    for key in ("mean", "std"):
        values = about.get(key)
        is_list = isinstance(values, list) and all(isinstance(value, float) for value in values)
        _require(is_list and 0 < len(values) <= 2**16, f"about.{key} is no list of a number a channel")
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
    """Raise a ValueError unless `content` is that of a last.pt."""
    check_weights(content)
    _check_progress(_part(content, "progress", dict))
    _check_optimizer(_part(content, "optimizer", dict), content["about"]["optimizer"])
    _check_sums(_part(content, "sums", dict), _part(content, "logged", dict), content["about"]["num_classes"])
    scaler = _part(content, "scaler", dict)
    known = scaler.keys() == SCALER_KEYS and all(map(_is_number, scaler.values()))
    _require(not scaler or known, "its scaler is none")  # empty but under fp16
    _check_random(_part(content, "random", dict))
    for own in _part(content, "ranks", list) if "ranks" in content else ():
        _check_random(_part(_mapping(own, "ranks"), "random", dict))
        for part in ("buffers", "ema_buffers"):
            for name, value in _part(own, part, dict).items():
                _require(isinstance(value, Tensor), f"{part} are no tensors")
                _check_storage(value, name)
        _require("ema" in content or not own["ema_buffers"], "its ranks have an average that it has not")


def check_optimizer_fit(content: Mapping, parameters: Sequence[Tensor]) -> None:
    """Raise a ValueError unless the optimizer state of a last.pt fits these parameters, in order."""
    state, name = content["optimizer"]["state"], content["about"]["optimizer"]
    numbers = set(range(len(parameters)))
    _require(state.keys() <= numbers, "its optimizer's state is of more parameters")
    whole = name == "lars" or (name == "sgd" and any(state.values()))  # AdamW initializes what is missing
    _require(
        not whole or (state.keys() == numbers and all(state.values())), "its optimizer's state is of fewer parameters"
    )
    if name not in OPTIMIZER_STATES:
        return
    shapes = ((parameters[number].shape, value.shape) for number in state for value in state[number].values())
    _require(
        all(shape in (expected, torch.Size([])) for expected, shape in shapes), "its optimizer's state has other shapes"
    )


def check_buffers_fit(content: Mapping, model: nn.Module) -> None:
    """Raise a ValueError unless the saved buffers of each rank fit the model."""
    shapes = {name: buffer.shape for name, buffer in floating_buffers(model).items()}
    for own in content.get("ranks", ()):
        saved = [*own["buffers"].items(), *own["ema_buffers"].items()]
        _require(
            all(shapes.get(name) == value.shape for name, value in saved), "its ranks have buffers of another model"
        )


def _check_progress(progress: dict) -> None:
    _check_fields(progress, Progress(), "progress")
    _require({"epoch", "batch", "step"} <= progress.keys(), "its progress does not say how far it is")
    _require(progress.get("doublings", 0) <= MAX_DOUBLINGS, "progress.doublings is too large")
    for name, value in progress.items():
        _require(not isinstance(value, float) or 0 <= value < math.inf, f"progress.{name} is no time")
    _require(
        all(isinstance(name, str) for name in progress.get("probes_left", ())), "progress.probes_left are no names"
    )
    for entry in [*progress.get("kept", []), *filter(None, [progress.get("best")])]:
        is_entry = isinstance(entry, dict) and {"epoch", "loss"} <= entry.keys() and _is_count(entry["epoch"])
        _require(is_entry and all(_is_number(value) for value in entry.values()), "progress.best holds no scores")


def _check_optimizer(optimizer: dict, name: str) -> None:
    for number, state in _part(optimizer, "state", dict).items():
        _require(_is_count(number) and isinstance(state, dict), "its optimizer's state is none")
        if name not in OPTIMIZER_STATES:  # from outside: what it keeps is its own
            continue
        _require(not state or state.keys() == OPTIMIZER_STATES[name], f"its optimizer's state is none of {name}")
        for part, value in state.items():
            is_numbers = isinstance(value, Tensor) and value.is_floating_point()
            _require(is_numbers, f"{part} of its optimizer is no tensor of numbers")
            _check_storage(value, part)


def _check_sums(sums: dict, logged: dict, num_classes: int) -> None:
    """Check the sums of a MetricAccumulator, and the last logged Snapshot."""
    loss, counts, methods = sums.get("loss"), sums.get("counts"), _part(sums, "methods", dict)
    _require(_is_count(sums.get("images")) and _is_count(sums.get("steps")), "its sums are no counts")
    for name, value in {"loss": loss, "counts": counts, **methods}.items():
        _require(isinstance(name, str) and isinstance(value, Tensor), "its sums are no tensors")
        _check_storage(value, name)
    _require(all(value.is_floating_point() for value in (loss, *methods.values())), "its sums are no numbers")
    shapes = [value.shape for value in (loss, *methods.values())]
    _require(shapes == [torch.Size([]), *[torch.Size([2])] * len(methods)], "its sums have other shapes")
    fits = counts.dtype == torch.int64 and counts.shape in ((2,), (1 + num_classes**2,))
    _require(fits, "sums.counts are no counts of a task")
    _check_fields(logged, Snapshot(), "logged")
    pairs, before = logged.get("methods", {}), logged.get("counts", ())
    are_pairs = all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs.values())
    _require(are_pairs and all(isinstance(name, str) for name in pairs), "logged holds no sums")
    _require(all(_is_number(value) for pair in pairs.values() for value in pair), "logged holds no sums")
    _require(all(map(_is_count, before)) and len(before) in (0, len(counts)), "logged.counts are no counts of a task")


def _check_random(state: Mapping) -> None:
    """Check the state of torch's generators; that of the CPU by loading it."""
    try:
        torch.Generator().set_state(state["cpu"].cpu())
    except (KeyError, AttributeError, TypeError, RuntimeError):
        raise ValueError("its random state is none") from None
    on_gpu = state.get("cuda")
    is_bytes = isinstance(on_gpu, Tensor) and on_gpu.dtype == torch.uint8
    _require(on_gpu is None or is_bytes, "its random state is none")


def _check_storage(value: Tensor, name: str) -> None:
    """Check that a tensor is dense, and no view that stretches one number over terabytes."""
    _require(not value.is_complex(), f"{name} holds complex numbers")
    _require(value.layout == torch.strided and not value.is_meta, f"{name} is no dense tensor")
    _require(
        value.numel() * value.element_size() <= value.untyped_storage().nbytes(), f"{name} is larger than its file"
    )


def _check_fields(values: Mapping, default: Progress | Snapshot, place: str) -> None:
    """Check that the values are fields of the default's class, of their types, and that counts are not negative."""
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
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) <= MAX_COUNT)


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise ValueError(fault)
