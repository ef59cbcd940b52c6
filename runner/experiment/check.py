"""The check of a configuration against what it names: the data, the model, its methods, the device."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from runner.config.extensions import extensions_folder, use_folder
from runner.config.options import TARGET
from runner.config.settings import Settings
from runner.config.text import SettingError
from runner.config.validation import check_task, method_nodes
from runner.data.dataset import Data, check_batch_size, size_text
from runner.data.memory import check_memory
from runner.experiment import builders
from runner.experiment.methods import build_methods
from runner.probes.layers import pick
from runner.training.class_weights import check_class_weights
from runner.training.cuda_graph import why_not_graphed
from runner.training.formats import Formats, choose_formats
from runner.training.precision import Precision, choose_device
from runner.training.tasks import Task, task_of

FLOAT = 4  # bytes
# settings of train.*
BUILT_BY = ("num_devices", "global_batch_size", "accumulation_steps", "sync_batchnorm", "trained_parameters")


@dataclass(frozen=True)
class Checked:
    """Settings that can be run, and what their check found out on the way."""

    settings: Settings  # with what was chosen in the place of `model.stem=auto`, `train.precision=auto`, ...
    data: Data
    task: Task
    precision: Precision
    built: builders.Built  # on torch's meta device, without memory; a run makes its own
    multiply_adds: int
    memory: float  # bytes that the weights and a training step take on a device, at the least
    chosen: list[str]  # the names of the chosen methods in the order in which they are applied
    open_formats: tuple[str, ...] = ()  # train.precision and train.channels_last, where the settings left them open

    @property
    def num_params(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.built.model.parameters())

    @property
    def formats(self) -> Formats:
        """The number format and the memory format."""
        return Formats(self.precision.name, self.precision.channels_last)

    def going_on_in(self, begun: Formats) -> Checked:
        """With the formats of a run that has begun, where the settings left these open. ValueError as of Precision."""
        train = {f"train.{key}": getattr(begun, key) for key in self.open_formats}
        settings = self.settings.changed(train)
        name, channels_last = (settings.train[key] for key in Formats._fields)
        return replace(self, settings=settings, precision=Precision(name, self.precision.device, channels_last))


def check(config: Settings) -> Checked:
    """Everything that can be wrong with a configuration before a run begins. Raises SettingError; writes nothing."""
    use_folder(config.paths.extensions and extensions_folder(config.paths.extensions))
    if config.train.deterministic:
        # Else cuBLAS may add in any order. It reads this once in a process: before the first job of a sweep begins.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        device = choose_device(config.train.device)
        if config.train.precision != "auto":
            Precision(config.train.precision, device)
    except ValueError as error:
        raise SettingError(str(error)) from None
    _check_num_devices(config.train.num_devices, device)
    # the jobs of a sweep share the data, and each finds its own unreadable files
    data = builders.build_data(config.dataset)
    data = replace(data, unreadable=dict(data.unreadable))
    check_task(config, data.task)
    config = builders.choose_stem(config, data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the run applies the methods again, and shows them
            built, multiply_adds, kept = _build_meta(_BuildKey.of(config, data))
        check_batch_size(config.train.global_batch_size, data)
        check_class_weights(config.train.class_weights, data)
        num_states = builders.count_optimizer_states(config.optimizer, global_batch_size=config.train.global_batch_size)
        builders.build_schedule(config.schedule, total_steps=1, steps_per_epoch=1)(0)
        builders.build_probes(config.probe)
    except ValueError as error:
        raise SettingError(str(error)) from None
    config, precision, open_formats = _with_formats(config, device, multiply_adds)
    _check_cuda_graph(config, built, precision)
    memory = _check_step(config, data, built, kept, num_states, precision)
    _check_probes(config.probe, built.model)
    chosen = [name for name in built.methods if name in method_nodes(config)]
    task = task_of(data, config.train)
    return Checked(config, data, task, precision, built, multiply_adds, memory, chosen, open_formats)


def _with_formats(config: Settings, device: torch.device, multiply_adds: int) -> tuple[Settings, Precision, tuple]:
    """The settings with the formats that they left open, and the names of those."""
    train, family = config.train, config.model[TARGET].rpartition(".")[0]
    formats = choose_formats(train.precision, train.channels_last, device, family=family, multiply_adds=multiply_adds)
    left_open = tuple(key for key in Formats._fields if train[key] in ("auto", None))
    config = config.changed({f"train.{key}": value for key, value in formats._asdict().items()})
    return config, Precision(formats.precision, device, formats.channels_last), left_open


@dataclass(frozen=True)
class _BuildKey:
    """What a build on the meta device depends on; the jobs of a sweep that share it share the build."""

    written: str  # of the settings: 1 and true are equal, and two settings
    makers: tuple[Any, ...]
    shape: tuple[int, ...]
    num_classes: int
    task: str
    settings: Settings = field(compare=False)

    @classmethod
    def of(cls, config: Settings, data: Data) -> _BuildKey:
        train = {key: config.train[key] for key in BUILT_BY}
        nodes = {key: config[key] for key in ("model", "paths", *method_nodes(config))}
        settings = Settings({**nodes, "train": train, "seed": 0, "resume": config.resume and "a run"})
        methods = map(type, build_methods(settings).values())
        with torch.device("meta"):
            shape = tuple(data.example_input().shape)
        makers = (builders.builder_of("model", config.model), *methods)
        return cls(repr(settings), makers, shape, data.num_classes, data.task, settings)


@lru_cache(maxsize=16)
def _build_meta(key: _BuildKey) -> tuple[builders.Built, int, int]:
    example_input = torch.zeros(key.shape, device="meta")
    return builders.build_meta(key.settings, num_classes=key.num_classes, example_input=example_input, task=key.task)


def _check_num_devices(number: int, device: torch.device) -> None:
    """Raise a SettingError if this machine has fewer GPUs than the run's processes here."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", number))  # torchrun may have started others elsewhere
    if device.type == "cuda" and here > torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise SettingError(
            f"train.num_devices={number}: torch sees {count} GPU{'s' if count > 1 else ''} here. Choose at most "
            f"{count}, or train.device=cpu."
        )


def _check_cuda_graph(config: Settings, built: builders.Built, precision: Precision) -> None:
    """Raise a SettingError if `train.cuda_graph=true` and the step cannot be one."""
    if config.train.cuda_graph is not True:
        return
    optimizer = builders.build_optimizer(config.optimizer, nn.Linear(2, 3), global_batch_size=1)
    about = {"device": precision.device, "precision": precision.name, "methods": built.methods, "optimizer": optimizer}
    reason = why_not_graphed(config.train, **about)
    if reason is not None:
        raise SettingError(f"train.cuda_graph=true: {reason}, or train.cuda_graph=false.")


def _check_step(
    config: Settings, data: Data, built: builders.Built, kept: int, num_states: int, precision: Precision
) -> float:
    """The bytes that the weights and a training step take on a device, at the least.

    Raises SettingError if the device has less.
    """
    train, device = config.train, precision.device
    num_params = sum(parameter.numel() for parameter in built.model.parameters())
    weights = FLOAT * num_params * (2 + num_states + (train.ema is not None))  # with gradients and the average
    size = f"model={config.model.name}"
    if isinstance(config.model.get("width"), float):
        size += f" with model.width={config.model.width:g}"
    check_memory(f"{size} and {data.num_classes} classes", weights, device, "Choose a smaller model.")
    batch = train.global_batch_size // train.num_devices
    image = FLOAT * math.prod(data.image_shape)
    activations = (2 if precision.name in ("bf16", "fp16") else FLOAT) * kept
    needed = weights + batch * image + batch // train.accumulation_steps * activations
    check_memory(
        f"train.global_batch_size={train.global_batch_size} of {size_text(data.image_shape[1:])} pixels",
        needed,
        device,
        "Choose fewer images, smaller ones, or more train.accumulation_steps.",
    )
    return needed


def _check_probes(probes: Settings, model: nn.Module) -> None:
    """Raise a SettingError for a layer of a probe that the model does not have."""
    for name, settings in probes.items():
        for key in ("layer", "layers"):
            layers = settings.get(key)
            for layer in layers if isinstance(layers, tuple) else [layers]:
                try:
                    _ = layer is None or pick(model, layer)
                except ValueError as error:
                    raise SettingError(f"probe.{name}.{key}: {error}") from None
