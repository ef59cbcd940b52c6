"""What each method costs: its layer, its clip, and a whole training step of a ResNet over the plain step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from runner import models
from runner.config.validation import CONF, METHOD_GROUPS
from runner.experiment.methods import build_methods
from runner.methods import adaptive_clip_grad_, unitwise_norm
from runner.methods.method import Method
from runner.optim.optimizers import sgd

from .layers import ghost_batch_norm_layer, memory_format, standardized_layer
from .peers import (
    chunk_batch_norms,
    clip_each_parameter,
    standardize_by_batch_norm_calls,
    standardize_by_parametrization,
)
from .timing import Arm, Scale
from .watched_run import composed


@dataclass(frozen=True)
class MethodScale(Scale):
    """How large the measurement of methods is."""

    model: str = "resnet50"
    batch_size: int = 16
    image_size: int = 64
    ghost_batch_size: int = 16
    layer_shapes: tuple[tuple[int, ...], ...] = ((128, 64, 16, 16), (128, 256, 8, 8))
    channels_last: bool = False
    bf16: bool = False


@dataclass(frozen=True)
class Comparison:
    """Arms to be timed in turn; the ratios are over the first. A target is the most that an arm's ratio may be.

    Targets "over" another arm divide by that one; those "added" compare what two arms add to the first.
    """

    title: str
    arms: Callable[[], Mapping[str, Arm]]
    targets: tuple[tuple[str, str, str, float], ...] = ()  # (kind, arm, other, at most)
    repeats: int = 1
    statistic: str = "min"  # of the blocks: min | mean
    blocks: int | None = None  # None: the scale's
    precision: str | None = None  # None: the scale's


def comparisons(scale: MethodScale) -> Iterator[Comparison]:
    """Everything that is measured, in order."""
    on_cpu = scale.device.type == "cpu"
    # on a CPU in both formats and precisions, whatever the scale
    kinds = list(product((False, True), repeat=2)) if on_cpu else [(scale.channels_last, scale.bf16)]
    scales = [replace(scale, channels_last=channels_last, bf16=bf16) for channels_last, bf16 in kinds]
    for shape, each in product(scale.layer_shapes, scales):
        yield Comparison(
            f"ghost batch norm layer, ghost 16, {'x'.join(map(str, shape))}, {_format(each)}, {_precision(each)}",
            partial(ghost_batch_norm_layer, each, shape),
            (
                ("over", "GhostBatchNorm2d", "nn.BatchNorm2d", 1.15),
                ("over", "GhostBatchNorm2d, ReLU", "nn.BatchNorm2d, ReLU", 1.15 if on_cpu else 0.95),
            ),
            repeats=3,
            blocks=3 * scale.blocks,
            precision=_precision(each),
        )
    for share in (1.0, 0.01):
        yield Comparison(
            f"clip of the gradients of {scale.model}, where {share:.0%} of the units are above",
            partial(_adaptive_clipping, scale, share),
            (("over", "ours", "timm", 0.25), ("over", "ours", "Composer's way", 1.1)),
            precision="fp32",  # of gradients
        )
    title = "weight standardization of one layer, 256x256x3x3"
    yield Comparison(title, partial(standardized_layer, scale), repeats=3)
    step, ghost = _step_name(scale), scale.ghost_batch_size
    for each in scales:
        larger = replace(each, batch_size=max(scale.batch_size, 2 * ghost))
        yield Comparison(
            f"{_step_name(larger)}: ghost batch norm of {ghost}",
            partial(_ghost_batch_norm_steps, larger),
            (("over", "ours", "plain", 1.03 if on_cpu else 1.0),),
            precision=_precision(each),
        )
    yield Comparison(
        f"{step}: weight standardization",
        lambda: {
            "plain": _step_arm(scale),
            "ours": _step_arm(scale, {"weight_standardization": {}}),
            "batch norm calls": _step_arm(scale, surgery=standardize_by_batch_norm_calls),
            "parametrize + var_mean": _step_arm(scale, surgery=standardize_by_parametrization),
        },
        (("added", "ours", "batch norm calls", 0.85) if on_cpu else ("over", "ours", "plain", 1.03),),
    )
    yield Comparison(
        f"{step}: stochastic depth by block, drop rate 0.5",
        lambda: {"plain": _step_arm(scale), "ours": _step_arm(scale, {"stochastic_depth": {"drop_rate": 0.5}})},
        (("over", "ours", "plain", 0.80),),
        statistic="mean",
        blocks=max(60, scale.blocks) if scale.blocks > 2 else scale.blocks,
    )
    yield Comparison(
        f"{step}: every method with its defaults",
        partial(_steps_with_each_method, scale),
        () if on_cpu else (("over", "agc", "batchnorm", 1.01),),
    )


def _ghost_batch_norm_steps(scale: MethodScale) -> dict[str, Arm]:
    ghost = scale.ghost_batch_size
    return {
        "plain": _step_arm(scale),
        "ours": _step_arm(scale, {"ghost_batchnorm": {"ghost_batch_size": ghost}}),
        "chunk loop + cat": _step_arm(scale, surgery=partial(chunk_batch_norms, ghost_batch_size=ghost)),
    }


def _adaptive_clipping(scale: MethodScale, share: float) -> dict[str, Arm]:
    from timm.utils.agc import adaptive_clip_grad

    model = _model(scale)
    images, targets = _batch(scale)
    F.cross_entropy(model(images), targets).backward()
    parameters = [parameter for name, parameter in model.named_parameters() if name != "fc.weight"]
    ratios = [
        (unitwise_norm(p.grad) / unitwise_norm(p).clamp(min=1e-3)).detach().flatten()
        for p in parameters
        if p.grad.any()
    ]
    scaling = 0.0101 / torch.cat(ratios).quantile(1 - share).clamp(min=1e-9)  # so that `share` of the units are clipped
    saved = [parameter.grad * scaling for parameter in model.parameters()]
    optimizer = _sgd(model, lr=0.0)
    (method,) = _built(scale, {"agc": {}})
    method.apply(model, images)

    def restore() -> None:  # else nothing clips after the first
        for parameter, grad in zip(model.parameters(), saved, strict=True):
            parameter.grad.copy_(grad)

    ways = {
        "ours": partial(method.transform_gradients, model),
        "ours, as a function": partial(adaptive_clip_grad_, model, clip=0.01),
        "Composer's way": partial(clip_each_parameter, parameters, 0.01),
        "timm": partial(adaptive_clip_grad, parameters, clip_factor=0.01),
        "an SGD step": optimizer.step,
    }
    return {name: Arm(way, restore) for name, way in ways.items()}


def _steps_with_each_method(scale: MethodScale) -> dict[str, Arm]:
    """Every method that acts within a step, plain batch norm first, to which the others are compared."""
    files = [file for group in METHOD_GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
    names = [file.stem for file in files if file.stem != "precise_batchnorm"]  # acts between epochs
    settings = {"ghost_batchnorm": {"ghost_batch_size": scale.batch_size // 2}}
    return {
        name: _step_arm(scale, {name: settings.get(name, {})})
        for name in sorted(names, key=lambda name: name != "batchnorm")
    }


def _step_arm(
    scale: MethodScale,
    methods: Mapping[str, Mapping] | None = None,
    surgery: Callable[[nn.Module], object] | None = None,
) -> Arm:
    """A whole training step: methods, forward, loss, backward, gradient transforms, SGD with momentum."""
    model = _model(scale)
    images, targets = _batch(scale)
    built = _built(scale, methods or {})
    for method in built:
        method.apply(model, torch.zeros(2, 3, scale.image_size, scale.image_size, device=scale.device))
    if surgery is not None:
        surgery(model)
    optimizer = _sgd(model, lr=1e-3)
    loss_options = {key: value for method in built for key, value in method.loss_options().items()}
    if scale.compiled:
        model.compile()

    def step() -> None:
        optimizer.zero_grad()
        x, y = images, targets
        for method in built:
            method.on_step(1.0)
            x, y = method.transform_batch(x, y, 1000)
        with torch.autocast(scale.device.type, torch.bfloat16, enabled=scale.bf16):
            logits = model(x)
        F.cross_entropy(logits.float(), y, **loss_options).backward()
        for method in built:
            method.transform_gradients(model)
        optimizer.step()

    return Arm(step)


def _sgd(model: nn.Module, *, lr: float) -> Optimizer:
    """The runner's own, which is fused."""
    return sgd([{"params": list(model.parameters())}], lr=lr)


def _built(scale: MethodScale, methods: Mapping[str, Mapping]) -> list[Method]:
    """The methods as the command line makes them, with their defaults and these settings."""
    overrides = [f"train.global_batch_size={scale.batch_size}"]
    for group in METHOD_GROUPS:
        chosen = [name for name in methods if (CONF / group / f"{name}.yaml").is_file()]
        overrides.append(f"{group}=[{','.join(chosen)}]")
    overrides += [f"{name}.{key}={value}" for name, node in methods.items() for key, value in node.items()]
    return list(build_methods(composed(overrides)).values())


def _model(scale: MethodScale) -> nn.Module:
    torch.manual_seed(0)
    return getattr(models, scale.model)(num_classes=1000).to(scale.device, memory_format=memory_format(scale))


def _batch(scale: MethodScale) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(scale.batch_size, 3, scale.image_size, scale.image_size, generator=generator)
    targets = torch.randint(1000, (scale.batch_size,), generator=generator)
    return images.to(scale.device).contiguous(memory_format=memory_format(scale)), targets.to(scale.device)


def _step_name(scale: MethodScale) -> str:
    extras = [name for name, on in (("channels last", scale.channels_last), ("bf16", scale.bf16)) if on]
    extras += ["compiled"] if scale.compiled else []
    return ", ".join([f"step of {scale.model}, batch {scale.batch_size}, {scale.image_size} px", *extras])


def _format(scale: MethodScale) -> str:
    return "channels last" if scale.channels_last else "contiguous"


def _precision(scale: MethodScale) -> str:
    return "bf16" if scale.bf16 else "fp32"
