"""No step makes the host wait for its device. Found without a GPU: a fake tensor has a device and a shape, no values.

The device is one that torch knows by name only, for of CUDA it wants a driver. Its tensors say that they are on CUDA:
so the code takes its branches for a GPU. Our own kernels in Triton are not among them, since they need real memory.
"""

import sys
from dataclasses import replace
from functools import lru_cache
from itertools import cycle

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from runner.config.validation import CONF, METHOD_GROUPS
from runner.experiment import builders
from runner.methods import ghost_batchnorm, norm_replacement, stochastic_depth, weight_standardization
from runner.training import ema
from runner.training.divergence import FirstNonFinite
from runner.training.metrics import MetricAccumulator
from runner.training.precision import Precision
from runner.training.state import State
from runner.training.step import OptimizerStep
from runner.training.tasks import Segmentation, task_of

DEVICE = torch.device("lazy", 0)
SETTINGS = {
    "ghost_batchnorm": ["ghost_batchnorm.ghost_batch_size=4"],
    "precise_batchnorm": ["precise_batchnorm.num_batches=2"],
    "stochastic_depth": ["stochastic_depth.drop_rate=0.5"],
}
OPTIONS = sorted((group, path.stem) for group in METHOD_GROUPS for path in (CONF / group).glob("*.yaml"))
CASES = {option: [f"{group}=[{option}]", *SETTINGS.get(option, [])] for group, option in OPTIONS}
CASES |= {
    "agc of layers": ["norm=agc", "agc.granularity=layer"],
    "each image mixed by itself": ["regularization=[mixup,cutmix]", "mixup.per_image=true", "cutmix.per_image=true"],
    "gates of samples": ["regularization=stochastic_depth", "stochastic_depth.stochastic_method=sample"],
    "dropped blocks go on": ["regularization=stochastic_depth", "stochastic_depth.dropped_update=continue"],
    "average of the weights, micro-batches": ["train.ema=0.9", "train.accumulation_steps=2"],
    **{optimizer: [f"optimizer={optimizer}"] for optimizer in ("sgd", "adamw", "lars")},
    **{f"{optimizer}, loss scale": [f"optimizer={optimizer}"] for optimizer in ("sgd", "adamw", "lars")},
}


class Values(TorchDispatchMode):
    """What is needed of values: those on the CPU are 1 and 0 by turns. Fused optimizers, which read none, pass."""

    def __init__(self):
        super().__init__()
        self.on_cpu = cycle((1, 0))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "cpu":
            return next(self.on_cpu)
        if func._opname in ("_fused_sgd_", "_fused_adamw_"):
            return None
        return func(*args, **(kwargs or {}))


class Waits(Values):
    """Raises where the device is waited for: at a copy to or from it that blocks. Reading a value fails anyway."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten.copy_.default:
            target, source, non_blocking = args[0].device, args[1].device, (*args[2:], kwargs.get("non_blocking"))[0]
        elif func is torch.ops.aten._to_copy.default:
            source, non_blocking = args[0].device, kwargs.get("non_blocking")
            target = kwargs.get("device") or source
        else:
            return super().__torch_dispatch__(func, types, args, kwargs)
        if (source.type, target.type) == (DEVICE.type, "cpu") or (source.type != target.type and not non_blocking):
            raise AssertionError(f"a copy from {source.type} to {target.type} for which the host waits")
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.fixture
def fake_tensors(monkeypatch):
    """The mode in which all tensors are fake, and what stands in its way."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.device.type == DEVICE.type))
    monkeypatch.setattr(
        sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: [DEVICE.type]
    )
    # counted before a model is on its device
    monkeypatch.setattr(stochastic_depth, "branch_costs", lambda model, gates, example_input: [0.1] * len(gates))
    for module in (norm_replacement, weight_standardization):  # reads running statistics, before a run
        monkeypatch.setattr(module, "was_trained", lambda module: False)
    # the weights of running statistics are made once and kept; fake ones must not be kept for other tests
    monkeypatch.setattr(ghost_batchnorm, "_weights_of_updates", lru_cache(ghost_batchnorm._weights_of_updates))
    return FakeTensorMode(allow_non_fake_inputs=True)


def step_of(config, data, scaled, monkeypatch):
    """The step that the loop takes, on the fake device."""
    config = builders.choose_stem(config, data)
    train, task = config.train, task_of(data, config.train)
    precision = Precision("fp32", DEVICE)
    precision.scaler = torch.amp.GradScaler(DEVICE.type, enabled=scaled)
    with DEVICE:
        built, other = (
            builders.build_changed_model(config, num_classes=data.num_classes, example_input=data.example_input())
            for _ in range(2)
        )
    monkeypatch.setattr(ema, "deepcopy", lambda model: other.model)  # of fake tensors there is no copy
    optimizer = builders.build_optimizer(config.optimizer, built.model, global_batch_size=train.global_batch_size)
    average = None if train.ema is None else ema.Ema(built.model, decay=train.ema)
    state = State(built.model.train(), optimizer, built.methods, task, precision, average)
    steps = {"num_classes": data.num_classes, "accumulation_steps": train.accumulation_steps}
    return OptimizerStep(state, non_finite=FirstNonFinite(DEVICE), **steps)


@pytest.fixture
def take_steps(composed, fake_tensors, fake_kernels, monkeypatch):
    """Three steps with these overrides, the second and third under `Waits`: the first one may set up."""

    def call(*overrides, scaled=False):
        config = composed(*overrides, "train.global_batch_size=8")
        data = builders.build_data(config.dataset)
        data = replace(data, train=data.train.on(torch.device("cpu")))  # a fake device has no generator
        with fake_tensors, fake_kernels:
            step = step_of(config, data, scaled, monkeypatch)
            batches = data.train_batches(batch_size=8, seed=0, device=DEVICE, channels_last=True).epoch(0)
            with Values():
                step(*next(batches), number=1, progress=0.0)
            with Waits():
                for number in (2, 3):
                    step(*next(batches), number=number, progress=number / 4)

    return call


@pytest.mark.usefixtures("small_model")
@pytest.mark.parametrize("case", CASES)
def test_a_step_reads_nothing_from_its_device(take_steps, case):
    take_steps("dataset=random", "dataset.image_size=16", *CASES[case], scaled="loss scale" in case)


@pytest.mark.slow
def test_a_step_of_a_normalizer_free_network_reads_nothing_from_its_device(take_steps):
    take_steps("dataset=random", "model=nf_resnet26", "norm=agc")


def test_loss_and_counts_of_segmentation_read_nothing_from_their_device(fake_tensors):
    task = Segmentation(5, dice_weight=0.5)
    with fake_tensors, Waits():
        sums = MetricAccumulator(task, DEVICE)
        logits = torch.zeros(4, 5, 6, 6, device=DEVICE, requires_grad=True)
        masks = torch.zeros(4, 6, 6, dtype=torch.int64, device=DEVICE)
        loss = task.loss(logits, masks, label_smoothing=0.1) * task.loss_weight(masks[:2], masks)
        loss.backward()
        sums.add(loss.detach(), logits.detach(), masks)


READINGS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "list": lambda x: x.tolist(),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "to the host": lambda x: x.to("cpu", non_blocking=True),
    "from the host": lambda x: x + torch.ones(4).to(x.device),
    "a list from the host": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "into place": lambda x: x.copy_(torch.ones(4)),
}


@pytest.mark.parametrize("reading", READINGS)
def test_every_kind_of_reading_would_be_found(fake_tensors, reading):
    with fake_tensors, Waits():
        x = torch.zeros(4, device=DEVICE)
        assert x.is_cuda
        with pytest.raises((AssertionError, DataDependentOutputException, DynamicOutputShapeException)):
            READINGS[reading](x)
        x.copy_(torch.ones(4), non_blocking=True)
        assert [bool(torch.rand(1) > 0.5) for _ in range(2)] == [True, False]
