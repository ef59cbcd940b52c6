"""How long an optimizer step takes here: a few of them on random data of the data set's shape."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from runner.data.dataset import SEGMENTATION
from runner.experiment import builders
from runner.experiment.check import Checked
from runner.experiment.setup import build_state
from runner.training.divergence import FirstNonFinite
from runner.training.step import OptimizerStep

ENOUGH_SECONDS = 2.0  # of timed steps
FIRST_IMAGES = 8  # of the step that shows how many images there is time for


@dataclass(frozen=True)
class StepTime:
    """Seconds for an image of a training step, and of an evaluation; with how many images at a time that was found."""

    training: float
    evaluation: float
    images: int


def measure_step(checked: Checked) -> StepTime:
    """Time optimizer steps of a configuration, a few seconds long, and an evaluation; nothing is written.

    The step is a run's own, but for the reading of images, which are random here, and for train.compile. A micro-batch
    for which there is no time is made smaller, and what is the same for all images counts the more then.
    """
    config = checked.settings
    train, data, device = config.train, checked.data, checked.precision.device
    torch.manual_seed(config.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a run shows them
        built = builders.build_changed_model(
            config, num_classes=data.num_classes, example_input=data.example_input(), pretrained=False
        )
    model = built.model
    step = OptimizerStep(build_state(checked, built), non_finite=FirstNonFinite(device), num_classes=data.num_classes)

    def seconds(images: int, enough_seconds: float) -> float:
        batch = _batch(checked, images)
        return _typical(lambda: step(*batch, number=1, progress=0.5), device, enough_seconds)

    model.train()
    whole = train.global_batch_size // (train.accumulation_steps * train.num_devices)
    few = min(whole, FIRST_IMAGES)
    there_is_time_for = int(few * ENOUGH_SECONDS / seconds(few, 0))
    images = min(whole, max(few, there_is_time_for))
    training = seconds(images, ENOUGH_SECONDS)
    model.eval()
    batch, _ = _batch(checked, images)
    with torch.no_grad(), checked.precision.autocast():
        evaluation = _typical(lambda: model(batch), device, ENOUGH_SECONDS / 4)
    return StepTime(training / images, evaluation / images, images)


def _batch(checked: Checked, images: int) -> tuple[Tensor, Tensor]:
    data, device = checked.data, checked.precision.device
    shape = data.example_input(images).shape
    places = (images, *shape[2:]) if data.task == SEGMENTATION else (images,)
    batch = torch.randn(shape).to(device=device, memory_format=checked.precision.memory_format)
    return batch, torch.randint(data.num_classes, places, device=device)


def _typical(call: Callable[[], object], device: torch.device, enough_seconds: float) -> float:
    """The median time of calls for `enough_seconds`, the first apart, which warms up; its own where it took as long."""
    times: list[float] = []
    while not times or sum(times) < enough_seconds:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:] or times)
