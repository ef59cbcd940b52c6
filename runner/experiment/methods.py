"""The chosen methods of an experiment: made from their nodes, and applied in their order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from inspect import signature, unwrap
from pathlib import Path

import torch
from torch import Tensor, nn

from runner.config.extensions import extensions_folder
from runner.config.options import TARGET
from runner.config.overrides import method_group
from runner.config.settings import Settings
from runner.config.text import SettingError
from runner.config.validation import CONF, method_nodes
from runner.experiment.targets import builder_of, without
from runner.layers.preserve_state import preserve_state
from runner.methods.method import Method
from runner.methods.sync_batchnorm import SyncBatchNormMethod
from runner.methods.trained_parameters import TrainedParameters

NOTHING_TO_CHANGE = "nothing to change"  # how runner.layers.surgery begins the one message that has no remedy
CHANGES_LAYERS = 40  # methods of a lower order replace norms or change layers


def build_methods(config: Settings) -> dict[str, Method]:
    """The selected methods in the order in which they are applied. Raises SettingError where one cannot be made."""
    methods = {}
    for name, node in method_nodes(config).items():
        build = builder_of(name, node)
        missing = [place for place in vars(Method) if not place.startswith("_") and not hasattr(unwrap(build), place)]
        if missing:
            lacks = f"it lacks {', '.join(missing)}; derive the class from runner.methods.method.Method"
            raise SettingError(f"{name}.{TARGET}={node[TARGET]}: {lacks}.")
        try:
            methods[name] = build(**without(node))
        except SettingError:
            raise
        except ValueError as error:
            raise SettingError(_with_key(name, without(node), error, conf_folders_of(config))) from None
    if config.train.sync_batchnorm:
        methods["sync_batchnorm"] = SyncBatchNormMethod()
    if config.train.trained_parameters != "all":
        methods["trained_parameters"] = TrainedParameters(config.train.trained_parameters)
    return dict(sorted(methods.items(), key=lambda item: (item[1].order, item[0])))


def apply_methods(
    methods: dict[str, Method],
    model: nn.Module,
    example_input: Tensor,
    seed: int,
    *,
    part: str = "all",
    conf_folders: Sequence[Path] = (CONF,),
) -> dict[str, int]:
    """Apply each method to the model; returns how many modules each has changed.

    `part` of a model that has a `backbone` and a `head` is where norms and other layers are changed; "all" is both.
    Methods that act elsewhere see the whole model. ValueError, with the choice of the method, where it does not suit
    the model.
    """
    counts = {}
    for name, method in methods.items():
        try:
            if part == "all" or method.order >= CHANGES_LAYERS:
                counts[name] = method.apply(model, example_input, seed)
            elif part == "backbone":
                counts[name] = method.apply(model.backbone, example_input, seed)
            else:
                counts[name] = method.apply(model.head, _features(model, example_input), seed)
        except ValueError as error:
            raise ValueError(_with_key(name, signature(type(method)).parameters, error, conf_folders)) from None
    return counts


def _features(model: nn.Module, example_input: Tensor) -> tuple[Tensor, ...]:
    """What the head is given; the model is as it was."""
    with preserve_state(model.backbone), torch.no_grad():
        model.backbone.eval()
        return model.backbone(example_input)


def conf_folders_of(config: Settings) -> list[Path]:
    """The folders in which an option's YAML file may lie."""
    return [CONF, *([extensions_folder(config.paths.extensions)] if config.paths.extensions else [])]


def _with_key(method: str, settings: Iterable[str], error: ValueError, conf_folders: Sequence[Path]) -> str:
    """The message with keys in the place of arguments, as `agc.clip=0` of `clip=0`.

    If it does not begin with one, the choice of the method goes in front, and a remedy behind.
    """
    either = "|".join(map(re.escape, settings)) or "(?!)"
    keys = re.sub(rf"^(?:{either})(?=[.:])|(?<![\w.])(?:{either})(?==)", rf"{method}.\g<0>", str(error))
    message = keys.removesuffix(".")
    if message.startswith(f"{method}."):
        return keys
    remedy = "Choose a method that suits the model." if message.startswith(NOTHING_TO_CHANGE) else ""
    return f"{_choice(method, conf_folders)}: {message.removeprefix(f'{method}: ')}. {remedy}".rstrip()


def _choice(method: str, conf_folders: Sequence[Path]) -> str:
    """How the command line chose a method, as in `norm=agc`."""
    if method == "sync_batchnorm":
        return "train.sync_batchnorm=true"
    if method == "trained_parameters":
        return "train.trained_parameters"
    group = method_group(method, conf_folders)
    return f"{group}={method}" if group else method
