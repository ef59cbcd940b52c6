"""Where a run goes: a new folder, or one to go on with, whose last checkpoint must fit.

A resumed run goes on with the weights that it has, and ends with a test of best.pt, which may be from before. So what
these weights compute must not change on the way, nor the split of the data, nor the place in the epoch. Of a run with
a checkpoint these stay as they are:

- the set of methods;
- the model, the seed, the data set and train.global_batch_size;
- the settings of methods, but for those in `MAY_CHANGE`, which act on training from here on and on nothing else. A
  drop rate of stochastic depth is not among them: evaluation scales the branches by it.

All else may change: train.epochs, learning rate, schedule, precision, device, ... The class of the optimizer may not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import yaml
from torch import nn

from runner.files import CannotWrite, is_disk_fault
from runner.methods.method import Method
from runner.runs.run_folder import RunFolder
from runner.settings.ranges import seconds_of
from runner.settings.text import SettingError, shown
from runner.training.checkpoint import Latest, load_latest

MAY_CHANGE = {
    "agc": ("clip", "eps", "granularity", "exclude", "groups"),
    "clip_by_norm": ("max_norm",),
    "clip_by_value": ("max_value",),
    "cutmix": ("alpha", "portion", "per_image"),
    "dropout": ("rate",),
    "ghost_batchnorm": ("ghost_batch_size", "running_stats"),
    "label_smoothing": ("smoothing",),
    "mixup": ("alpha", "portion", "per_image"),
    "model": ("dropout", "initialization", "initialized_layers", "pretrained"),
    "precise_batchnorm": ("num_batches",),
    "stochastic_depth": ("dropped_update", "use_same_gpu_seed"),
    "dataset": ("root", "download", "num_workers", "max_unreadable", "check_duplicates", "timeout_seconds"),
}


class NothingLeft(ValueError):
    """The run has been trained to its end."""


def new_folder(parent: Path, name: str, outputs: str) -> RunFolder:
    """A new folder for a run. Raises SettingError if none can be made below `outputs`, CannotWrite on a full disk."""
    try:
        return RunFolder.create(parent, name)
    except OSError as error:
        if is_disk_fault(error):
            raise CannotWrite.told(parent / name, error) from None
        raise SettingError(f"paths.outputs={outputs}: no folder can be made there ({error}).") from None


def latest_checkpoint(
    folder: RunFolder, config: Mapping, model: nn.Module, methods: Mapping[str, Method], *, device: torch.device
) -> Latest | None:
    """The newest checkpoint in the folder that can be used, or None if the run was stopped before the first one.

    `config` are the settings as plain data. Raises ValueError if there are damaged checkpoints alone, and if the
    settings are of another run than the checkpoint's (see above); NothingLeft if nothing is left to train.
    """
    latest = load_latest(folder.checkpoint("last"), device)
    if latest is None:
        return None
    checkpoint = latest.checkpoint
    check_methods(checkpoint["methods"], methods)
    if folder.config.is_file():
        check_settings(yaml.safe_load(folder.config.read_text()) or {}, config, methods)
    check_fit(checkpoint, model, config["optimizer"]["name"])
    check_average(checkpoint, config["train"]["ema"])
    check_left(checkpoint["progress"], config["train"], completed=folder.read_summary().get("status") == "completed")
    return latest


def check_methods(before: Iterable[str], now: Iterable[str]) -> None:
    """Raise a ValueError if the run's methods `before` and `now` are not the same.

    >>> from runner.runs.resume import check_methods
    >>> check_methods(["agc", "mixup"], ["mixup", "agc"])
    """
    before, now = set(before), set(now)
    for name in sorted(before - now):
        raise ValueError(
            f"{name} is part of the run: the weights so far were trained with it. Leave out the override that drops "
            "it, or start a run of its own."
        )
    for name in sorted(now - before):
        raise ValueError(
            f"{name} was not part of the run: the weights so far were trained without it. Leave out the override that "
            "adds it, or start a run of its own."
        )


def check_settings(before: Mapping, now: Mapping, methods: Iterable[str]) -> None:
    """Raise a ValueError if a setting differs that a run keeps; a setting that is new since then has no say."""
    kept = {"seed": (before.get("seed"), now["seed"])}
    batch_sizes = (node.get("train", {}).get("global_batch_size") for node in (before, now))
    kept["train.global_batch_size"] = tuple(batch_sizes)
    for node in ("model", "dataset", *methods):
        settings = before.get(node, {})
        for key, value in now.get(node, {}).items():
            if key in settings and key not in MAY_CHANGE.get(node, ()):
                kept[f"{node}.{key}"] = (settings[key], value)
    for key, (earlier, value) in kept.items():
        if earlier != value:
            raise ValueError(
                f"{key}={shown(value)}: the run so far has {key}={shown(earlier)}, which a resumed run keeps. Leave "
                "out the override, or start a run of its own."
            )


def check_fit(checkpoint: Mapping, model: nn.Module, optimizer: str) -> None:
    """Raise a ValueError if the checkpoint is of another model or optimizer than this run's."""
    saved, own = (
        {name: value.shape for name, value in state.items()} for state in (checkpoint["model"], model.state_dict())
    )
    different = [name for name in sorted(saved.keys() | own.keys()) if saved.get(name) != own.get(name)]
    if different:
        raise ValueError(
            f"{len(different)} tensors of its checkpoint, {different[0]} the first, are not those of this model with "
            "these methods. Leave out the overrides that change the model."
        )
    if checkpoint["about"]["optimizer"] != optimizer:
        raise ValueError(
            f"its checkpoint holds the state of {checkpoint['about']['optimizer']}, not of optimizer={optimizer}. "
            "Leave out the override, or start a run of its own."
        )


def check_average(checkpoint: Mapping, ema: float | None) -> None:
    """Raise a ValueError if the weights are to be averaged now and were not so far, or the other way round."""
    if ("ema" in checkpoint) != (ema is not None):
        so_far = "an average of the weights" if ema is None else "no average of the weights"
        raise ValueError(
            f"train.ema={shown(ema)}: the run so far has {so_far}, and a resumed run goes on alike. Leave out the "
            "override, or start a run of its own."
        )


def check_left(progress: Mapping, train: Mapping, *, completed: bool) -> None:
    """Raise NothingLeft if nothing is left to train. A run that was stopped before its test may still be tested.

    `progress` is that of the checkpoint; `train` are the settings train.epochs, train.max_steps and what ends a run
    before these.
    """
    if completed:
        _check_not_stopped(progress, train)
    times = 2 ** progress.get("doublings", 0)  # by a schedule that prolongs the run
    place, end = (progress["epoch"], progress["batch"]), (times * train["epochs"], 0)
    step, max_steps = progress["step"], train["max_steps"] or math.inf
    if place < end and step < max_steps:
        return
    if place <= end and step <= max_steps and not completed:
        return
    key = "epochs" if place >= end else "max_steps"
    least = progress["epoch"] // times + 1 if key == "epochs" else step + 1
    doubled = f" (times {times}: the number was doubled)" if key == "epochs" and times > 1 else ""
    raise NothingLeft(
        f"nothing is left to train: the run has {progress['epoch']} epochs done, {step} steps; set train.{key}={least} "
        f"or more{doubled}."
    )


def _check_not_stopped(progress: Mapping, train: Mapping) -> None:
    """Raise NothingLeft if what ended the run would end it again at once."""
    patience, max_time = train.get("early_stopping_epochs"), train.get("max_time")
    best = progress.get("best", {}).get("epoch")
    if patience is not None and best is not None and progress["epoch"] - best >= patience:
        raise NothingLeft(
            f"nothing is left to train: train.early_stopping_epochs={patience} ended the run, whose best epoch is "
            f"{best} of {progress['epoch']}; set it to {progress['epoch'] - best + 1} or more, or to null."
        )
    if max_time is not None and progress.get("seconds", 0) >= seconds_of(max_time):
        raise NothingLeft(
            f"nothing is left to train: train.max_time={max_time} is over, after {progress['seconds']:.0f} seconds; "
            "set it to more, or to null."
        )
