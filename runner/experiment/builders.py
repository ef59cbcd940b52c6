"""From a configuration to the things of an experiment: each function takes the node it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.config.options import TARGET, option_label
from runner.config.settings import Settings
from runner.config.text import SettingError, first_line
from runner.data.dataset import CLASSIFICATION, SEGMENTATION, Data, size_text
from runner.experiment.dry_run import watched
from runner.experiment.methods import apply_methods, build_methods, conf_folders_of
from runner.experiment.targets import Builder, builder_of, checked, figure_of, takes_argument, without
from runner.layers.stem import stem_for
from runner.methods.method import Method
from runner.models.initialization import initialize
from runner.models.pretrained import check_weights, fits, load_weights, read_weights
from runner.optim.optimizers import parameter_groups, scaled_lr, states_per_parameter
from runner.optim.schedules import LRLambda, PlateauRule
from runner.training.probing import Probe


def build_data(node: Settings) -> Data:
    """The data set; the jobs of a sweep share the one in memory."""
    try:
        return _load_data(builder_of("dataset", node), node)
    except (ValueError, FileNotFoundError) as error:
        raise SettingError(str(error)) from None


@lru_cache(maxsize=1)
def _load_data(builder: Builder, node: Settings) -> Data:
    return builder(**{key: value for key, value in node.items() if key not in (TARGET, "name")})


def choose_stem(config: Settings, data: Data) -> Settings:
    """The settings with the stem that suits the images in the place of `model.stem=auto`."""
    if config.model.get("stem") != "auto":
        return config
    return config.changed({"model.stem": stem_for(min(data.image_shape[1:]))})


def build_model(node: Settings, *, num_classes: int, in_channels: int = 3) -> nn.Module:
    """The model before any method is applied, without the weights of `model.pretrained`.

    What builds it is given `in_channels` only if that is not 3: a model that knows nothing else need not take it.
    """
    settings = without(node, "name", "initialization", "initialized_layers", "pretrained", "methods_on")
    build = builder_of("model", node)
    if in_channels != 3:
        if not takes_argument(build, "in_channels"):
            raise SettingError(
                f"model={node.name}: it takes images of 3 channels only, since what builds it has no argument "
                f"in_channels, and the images have {in_channels}. Choose another model, or dataset.channels=3."
            )
        settings["in_channels"] = in_channels
    model = build(num_classes=num_classes, **settings)
    initialize(model, node.get("initialization", "default"), layers=node.get("initialized_layers", "conv"))
    return model


def build_optimizer(node: Settings, model: nn.Module, *, global_batch_size: int) -> Optimizer:
    """The optimizer over all parameters of the model, after surgery; its rate scaled to the batch if so set."""
    settings = without(node, "name", "lr_batch_size", "weight_decay", "decay_norm_and_bias")
    lr_batch_size = node.get("lr_batch_size")
    settings["lr"] = scaled_lr(node.lr, global_batch_size=global_batch_size, lr_batch_size=lr_batch_size)
    decay = {key: node.get(key, 0.0) for key in ("weight_decay", "decay_norm_and_bias")}
    return builder_of("optimizer", node)(parameter_groups(model, **decay), **settings)


def count_optimizer_states(node: Settings, *, global_batch_size: int) -> int:
    """How many tensors of a parameter's size the optimizer keeps for it."""
    optimizer = build_optimizer(node, nn.Linear(2, 3), global_batch_size=global_batch_size)
    return checked(states_per_parameter, "optimizer", node[TARGET])(optimizer)


def build_schedule(node: Settings, *, total_steps: int, steps_per_epoch: int) -> LRLambda:
    """The factor of `optimizer.lr` by step."""
    warmup_steps = math.ceil(node.get("warmup_epochs", 0) * steps_per_epoch)
    return builder_of("schedule", node)(total_steps, warmup_steps, **without(node, "name", "warmup_epochs"))


def build_plateau_rule(node: Settings) -> PlateauRule | None:
    """The rule by which the number of epochs is doubled, if the schedule has one."""
    return getattr(build_schedule(node, total_steps=1, steps_per_epoch=1), "rule", None)


def build_probes(node: Settings) -> dict[str, Probe]:
    """The chosen probes by their names."""

    def build(name: str, settings: Settings) -> Probe:
        measure = builder_of(f"probe.{name}", settings)
        return Probe(measure, settings.get("num_batches"), without(settings, "num_batches"), figure_of(name, settings))

    return {name: build(name, settings) for name, settings in node.items()}


@dataclass(frozen=True)
class Built:
    """A model with its methods; how many modules each has changed; and what there is to say of its first weights."""

    model: nn.Module
    methods: dict[str, Method]
    counts: dict[str, int]
    notes: tuple[str, ...] = ()


def build_changed_model(config: Settings, *, num_classes: int, example_input: Tensor, pretrained: bool = True) -> Built:
    """The model, with the weights of `model.pretrained` unless told otherwise, and then its methods.

    Weights that fit the model only once its methods have changed it are loaded after them. Under torch's meta device
    it is checked that they fit, and nothing is copied. Raises ValueError where model, methods, weights and input do
    not fit.
    """
    model = build_model(config.model, num_classes=num_classes, in_channels=example_input.shape[1])
    methods = build_methods(config)
    load = check_weights if example_input.is_meta else load_weights
    source = config.model.get("pretrained") if pretrained else None
    with torch.device("cpu"):
        weights = None if source is None else read_weights(source, config.model.name, config.model.get("architecture"))
    loaded = load(model, weights) if weights and fits(model, weights) else None
    counts = apply_methods(
        methods,
        model,
        example_input,
        config.seed,
        part=config.model.get("methods_on", "all"),
        conf_folders=conf_folders_of(config),
    )
    if weights and loaded is None:
        loaded = load(model, weights)
    return Built(model, methods, counts, loaded.notes if loaded else ())


def build_meta(
    config: Settings, *, num_classes: int, example_input: Tensor, task: str = CLASSIFICATION
) -> tuple[Built, int, int]:
    """The model with its methods on torch's meta device: nothing is computed and no memory is taken.

    Returns it, the multiply-adds of one image and the numbers that a training step keeps of it. Raises SettingError
    where settings and image size do not fit.
    """
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device("meta"):
            built = build_changed_model(
                config,
                num_classes=num_classes,
                example_input=example_input,
                pretrained=config.resume is None,
            )
            with (
                FlopCounterMode(display=False) as counter,
                watched(built.model, config.train) as kept,
                torch.no_grad(),
            ):
                output = built.model.eval()(example_input)
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(f"{error} (model={option_label(config.model)})") from None
    except (RuntimeError, AssertionError) as error:  # layers of torch, asserts of models from elsewhere
        reason = first_line(error)
        raise SettingError(
            f"model={option_label(config.model)}: it does not take images of "
            f"{size_text(example_input.shape[2:])} pixels ({reason})."
        ) from None
    _check_output(config.model, output, example_input, num_classes, task)
    return built, counter.get_total_flops() // (2 * len(example_input)), round(kept.numbers)


def _check_output(model: Settings, output: object, images: Tensor, num_classes: int, task: str) -> None:
    """Raise a SettingError unless the output of a model has the shape of the data set's logits."""
    positions = images.shape[2:] if task == SEGMENTATION else ()
    shape = getattr(output, "shape", None)
    if shape != (len(images), num_classes, *positions):
        gives = f"a {type(output).__name__}" if shape is None else f"an output of shape {tuple(shape)}"
        raise SettingError(
            f"model={option_label(model)}: it gives {gives} for images of shape {tuple(images.shape)}, and the data "
            f"set has one of {num_classes} classes for each {'pixel' if positions else 'image'}. Choose another model "
            "or data set."
        )
