"""Where a run goes: a new folder, or one to go on with, whose last checkpoint must fit.

A resumed run goes on with the weights that it has, and ends with a test of best.pt, which may be from before. So what
these weights compute must not change on the way, nor the split of the data, nor the place in the epoch. Of a run with
a checkpoint these stay as they are:

- the set of methods;
- the model, the seed, the data set and train.global_batch_size;
- the settings of methods, but for those in `MAY_CHANGE`, which act on training from here on and on nothing else. A
  drop rate of stochastic depth is not among them: evaluation scales the branches by it.

The name of a class (`_target_`) is no setting: another version may call the same class otherwise.

All else may change: train.epochs, learning rate, schedule, device, ... The class of the optimizer may not. The number
format and the memory format change only where train.precision or train.channels_last asks for others: on another
device, too, a run goes on in those that it has begun in.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from torch import nn

from runner.config.ranges import seconds_of
from runner.config.text import SettingError, override_key, shortened, to_override
from runner.experiment.check import Checked
from runner.files.atomic import CannotWrite, is_disk_fault
from runner.files.readers import Unreadable, read_yaml_mapping
from runner.methods.method import Method
from runner.optim.optimizers import parameter_groups
from runner.results.record import MISSING, VerifiedRecord, differences, plain, record_in, verified_record
from runner.results.run_folder import RunFolder
from runner.results.run_lock import hold
from runner.training.checkpoint import Latest, load_checkpoint, load_latest
from runner.training.checkpoint_content import check_best, check_buffers_fit, check_last, check_optimizer_fit
from runner.training.formats import Formats, begun_formats

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

FORMER = {"dataset": {"decode": "pil"}}  # what a run had before it was a setting

PLACE_AND_WATCH = {"name", "resume", "wandb", "paths", "sweep", "train.device", "train.num_devices"}


class NothingLeft(ValueError):
    """The run has been trained to its end."""


def new_folder(parent: Path, name: str, outputs: str, lock: ExitStack) -> RunFolder:
    """A new folder for a run, held until `lock` is closed.

    Raises SettingError if none can be made below `outputs`, CannotWrite on a full disk, Taken if another process took
    it at once.
    """
    try:
        return RunFolder.create(parent, name, lambda path: lock.enter_context(hold(path, signed=False)))
    except OSError as error:
        if is_disk_fault(error):
            raise CannotWrite.from_os_error(parent / name, error) from None
        raise SettingError(f"paths.outputs={outputs}: no folder can be made there ({error}).") from None


def latest_checkpoint(
    folder: RunFolder, checked: Checked, overrides: Iterable[str] | None = None
) -> tuple[Latest | None, VerifiedRecord, Formats]:
    """The newest checkpoint in the folder that can be used, None if the run was stopped before the first one; what is
    known of the run; and the formats that it goes on in.

    `overrides` led to the settings where the folder's own are among these. Raises
    ValueError if there are damaged checkpoints alone, and if the settings are of another run than the checkpoint's
    (see above); NothingLeft if nothing is left to train.
    """
    latest = load_latest(folder.checkpoint("last"), checked.precision.device, check=check_last)
    if latest is None:  # the run begins anew, from the folder's overrides or from those of the command line alone
        known = VerifiedRecord(None) if overrides is None else verified_record(folder.path, {})
        return None, known, checked.formats
    model, methods = checked.built.model, checked.built.methods
    checkpoint, best = latest.checkpoint, folder.checkpoint("best")
    checkpoints = {latest.path: checkpoint}
    with suppress(ValueError):  # the best epoch is chosen anew
        checkpoints[best] = load_checkpoint(best, check=check_best)
    known = verified_record(folder.path, checkpoints)
    if known.record is None:  # a run before there was a record
        before = older_settings(folder)
    else:
        before = (record_in(checkpoint, latest.path) or known.record).settings
    begun = begun_formats(_node(before, "train"), checked.precision.device)
    checked = checked.going_on_in(begun)
    config = checked.settings.plain()
    check_methods(checkpoint["methods"], methods)
    check_settings(before, config, methods)
    if overrides is not None:
        before, earlier = (known.record.settings, known.record.overrides) if known.record else (before, ())
        new, old = _by_key(overrides), _by_key(earlier)
        before = {**before, "train": {**_node(before, "train"), **begun._asdict()}}  # earlier versions left them open
        check_unasked(before, config, [key for key, words in new.items() if words != old.get(key)])
    check_fit(checkpoint, model, config["optimizer"]["name"])
    check_optimizer_fit(
        checkpoint, [each for group in parameter_groups(model, weight_decay=0) for each in group["params"]]
    )
    check_buffers_fit(checkpoint, model)
    check_state(checkpoint, methods)
    check_average(checkpoint, config["train"]["ema"])
    check_left(checkpoint["progress"], config["train"], completed=folder.read_summary().get("status") == "completed")
    return latest, known, checked.formats


def check_methods(before: Iterable[str], now: Iterable[str]) -> None:
    """Raise a ValueError if the run's methods `before` and `now` are not the same.

    >>> from runner.experiment.resume import check_methods
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
    batch_sizes = (_node(settings, "train").get("global_batch_size") for settings in (before, now))
    kept["train.global_batch_size"] = tuple(batch_sizes)
    for node in ("model", "dataset", *methods):
        settings = {**FORMER.get(node, {}), **_node(before, node)}
        for key, value in now.get(node, {}).items():
            if key in settings and key not in ("_target_", *MAY_CHANGE.get(node, ())):
                kept[f"{node}.{key}"] = (settings[key], value)
    for key, (earlier, value) in kept.items():
        if earlier != value:
            raise ValueError(
                f"{key}={to_override(value)}: the run so far has {key}={to_override(earlier)}, which a resumed run "
                "keeps. Leave out the override, or start a run of its own."
            )


def _node(settings: Mapping, name: str) -> Mapping:
    node = settings.get(name)
    return node if isinstance(node, Mapping) else {}


def older_settings(folder: RunFolder) -> dict:
    """The settings of a run without a record. Raises Unreadable if config.yaml does not tell them."""
    try:
        return plain(read_yaml_mapping(folder.config), folder.config)
    except Unreadable as error:
        raise Unreadable(
            folder.config,
            f"{error.reason}. An older version made this run, whose checkpoints do not tell its settings; put the file "
            "back",
        ) from None


def _by_key(overrides: Iterable[str]) -> Mapping[str, list[str]]:
    """The overrides of each key, in their order; of several the last one counts."""
    found = defaultdict(list)
    for word in overrides:
        found[override_key(word)].append(word)
    return found


def check_unasked(before: Mapping, now: Mapping, asked: Iterable[str]) -> None:
    """Raise a ValueError if a setting differs from the run so far, and none of the new overrides, with keys `asked`,
    asks for it.

    So it is where a file of overrides was cut, or a default has another value in this version. A setting that is new
    since then has no say.
    """
    asked = set(asked)
    if asked & {"experiment", "case"}:  # which may set anything
        return
    for key, value, earlier in differences(now, before):
        above = {key[:place] for place, letter in enumerate(f"{key}.") if letter == "."}
        if MISSING in (value, earlier) or above & (asked | PLACE_AND_WATCH) or key.endswith("._target_"):
            continue
        so_far, now_set = (f"{key}={shortened(to_override(each))}" for each in (earlier, value))
        raise ValueError(
            f"{now_set}: the run so far has {so_far}, and no override changes it. Add {so_far} to go on as before, or "
            f"{now_set}."
        )


def check_state(checkpoint: Mapping, methods: Mapping[str, Method]) -> None:
    """Raise a ValueError if a method cannot take up its state; `methods` are not used afterwards."""
    for name, method in methods.items():
        try:
            method.load_state_dict(checkpoint["methods"][name])
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError):
            raise ValueError(f"its checkpoint holds no state that {name} can take up.") from None


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
    if "ema" in checkpoint and {name: value.shape for name, value in checkpoint["ema"]["model"].items()} != saved:
        raise ValueError("the average in its checkpoint is that of another model.")
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
            f"train.ema={to_override(ema)}: the run so far has {so_far}, and a resumed run goes on alike. Leave out "
            "the override, or start a run of its own."
        )


def check_left(progress: Mapping, train: Mapping, *, completed: bool) -> None:
    """Raise NothingLeft if nothing is left to train. A run that was stopped before its test may still be tested.

    `progress` is that of the checkpoint; `train` are the settings train.epochs, train.max_steps and what ends a run
    before these.
    """
    if completed:
        _check_not_stopped(progress, train)
    times = 2 ** progress.get("doublings", 0)  # by a schedule that should_extend the run
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
