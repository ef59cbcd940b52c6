"""Looking at a model leaves no trace: the context that probes work in, and every probe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import StochasticDepth as TorchvisionStochasticDepth

from runner.figures import NAMES, draw
from runner.layers.normalizer_free import NormalizerFreeNet, ScaledActivation, normalizer_free_stages
from runner.layers.preserve_state import preserve_state, use_batch_statistics
from runner.layers.scaled_std_conv import ScaledStdConv2d
from runner.layers.stochastic_depth import StochasticDepth
from runner.methods import apply_ghost_batchnorm, apply_stochastic_depth, apply_weight_standardization
from runner.models.nf_resnet import NFResBlock
from runner.probes.activation_statistics import activation_statistics
from runner.probes.class_gradients import class_gradients
from runner.probes.clipping import clipping
from runner.probes.divergence_trace import divergence_trace
from runner.probes.gradient_histogram import gradient_histogram
from runner.probes.gradient_terms import gradient_terms
from runner.probes.largest_rate import largest_rate
from runner.probes.loss_landscape import loss_landscape
from runner.probes.sharpness import sharpness
from runner.probes.signal_propagation import signal_propagation
from runner.probes.train_eval_discrepancy import train_eval_discrepancy
from runner.results.measurement import Measurement

PROBES: dict[str, Callable[..., Measurement]] = {
    "activation_statistics": activation_statistics,
    "signal_propagation": signal_propagation,
    "signal_propagation, gain 1": partial(signal_propagation, skipinit_gain=1.0),
    "gradient_histogram": partial(gradient_histogram, loss=F.cross_entropy),
    "gradient_terms": partial(gradient_terms, loss=F.cross_entropy),
    "class_gradients": partial(class_gradients, loss=F.cross_entropy),
    "largest_rate": partial(largest_rate, loss=F.cross_entropy, exponents=(-2, 1), decades=0.5),
    "loss_landscape": partial(loss_landscape, loss=F.cross_entropy, num_steps=3),
    "divergence_trace": partial(divergence_trace, loss=F.cross_entropy, lr=10.0),
    "clipping": partial(clipping, loss=F.cross_entropy),
    "train_eval_discrepancy": partial(train_eval_discrepancy, loss=F.cross_entropy),
    "sharpness": partial(sharpness, loss=F.cross_entropy, max_iterations=3),
}


def converted(generator: torch.Generator) -> nn.Module:
    """Ghost batch norm, weight standardization, stochastic depth of whole blocks and dropout."""
    stem = (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 5))
    model = nn.Sequential(*stem, BasicBlock(8, 8), BasicBlock(8, 8), *head)
    apply_ghost_batchnorm(model, ghost_batch_size=4)
    apply_weight_standardization(model)
    apply_stochastic_depth(model, drop_rate=0.5, generator=generator)
    return model


def normalizer_free(generator: torch.Generator) -> nn.Module:
    """Stochastic depth of samples and dropout."""
    stem = nn.Sequential(ScaledStdConv2d(3, 8, 3, padding="same"))
    stages = normalizer_free_stages(NFResBlock, (1, 1, 1, 1), (8, 16, 16, 16), in_channels=8, alpha=0.2)
    activation = ScaledActivation("relu")
    model = NormalizerFreeNet(stem, stages, activation, out_channels=16, num_classes=5, dropout=0.5)
    apply_stochastic_depth(model, drop_rate=0.5, stochastic_method="sample", generator=generator)
    return model


BUILDERS = {"converted": converted, "normalizer_free": normalizer_free}


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 5) for _ in range(count)]


def in_use(name: str) -> tuple[nn.Module, torch.Generator]:
    """A model in the midst of training: gradients, a hook, running statistics, a frozen layer, mixed modes."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(7)
    model = BUILDERS[name](generator)
    model.register_forward_hook(lambda *_: None)
    images, targets = batches()[0]
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.warm_up(0.5)
    F.cross_entropy(model(images), targets).backward()
    first, second, *_ = model.parameters()
    first.requires_grad_(False)
    second.grad = None
    next(iter(model.children())).eval()
    return model, generator


def trace(model: nn.Module, generator: torch.Generator) -> Iterator[tuple[str, Any]]:
    """Everything that could tell that the model was used, each with a name; tensors as copies, objects as ids."""
    yield "torch's generator", torch.get_rng_state()
    yield "the gates' generator", generator.get_state()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, dict):
                for inner, entry in value.items():
                    yield f"{name} {key} {inner}", id(entry)
                yield f"{name} {key}", (id(value), len(value))
            else:
                yield f"{name} {key}", id(value)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        yield f"{name} value", tensor.detach().clone()
        yield f"{name} storage", tensor.data_ptr()
        yield f"{name} requires_grad", tensor.requires_grad
        yield f"{name} grad is", id(tensor.grad)
        yield f"{name} grad", None if tensor.grad is None else tensor.grad.clone()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    kept = [name for name in before if name in after and same(before[name], after[name])]
    return sorted(set(before) ^ set(after) | set(before) - set(kept))


NOT_FOR = {("signal_propagation, gain 1", "converted"), ("train_eval_discrepancy", "normalizer_free")}
CASES = [(probe, builder) for probe in PROBES for builder in BUILDERS if (probe, builder) not in NOT_FOR]


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad])
@pytest.mark.parametrize(("probe", "builder"), CASES)
def test_a_probe_leaves_no_trace_and_gives_the_same_again(probe, builder, mode):
    model, generator = in_use(builder)
    data = batches()
    before, images = dict(trace(model, generator)), [images.clone() for images, _ in data]
    with mode():
        measured = PROBES[probe](model, data)
    assert differences(before, dict(trace(model, generator))) == []
    assert all(torch.equal(one, other) for one, (other, _) in zip(images, data, strict=True))
    again = PROBES[probe](model, data)
    assert measured.numbers == pytest.approx(again.numbers, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize(("name", "builder"), dict(reversed(CASES)).items())
def test_what_is_read_back_is_drawn(name, builder, tmp_path):
    model, _ = in_use(builder)
    probe = PROBES[name]
    measured = probe(model, batches())
    measured.save(tmp_path / "probe.npz")
    for arms in (Measurement.load(tmp_path / "probe.npz"), [("first", measured), ("second", measured)]):
        drawn = draw(name.split(",")[0], arms)
        drawn.draw_without_rendering()
        assert any(axes.get_xlabel() or axes.get_ylabel() for axes in drawn.axes)
        assert drawn.get_suptitle() or any(axes.get_title() for axes in drawn.axes)


def test_every_probe_of_a_model_is_among_these():
    assert set(NAMES) - {"learning_curves"} == {name.split(",")[0] for name in PROBES}  # that one reads a file


def mutations() -> dict[str, Callable[[nn.Module, torch.Generator], Any]]:
    def attribute(model: nn.Module, _: Any) -> None:
        model[3].stochastic_depth.current_rate = 0.0
        model[4].conv1.stride = (2, 2)
        model.note = "new"

    def method(model: nn.Module, _: Any) -> None:
        model[3].forward = lambda x: x

    def hooks(model: nn.Module, _: Any) -> None:
        model[0].register_forward_hook(lambda *_: None)
        model[0].register_full_backward_hook(lambda *_: None)
        model._forward_hooks.clear()

    def structure(model: nn.Module, _: Any) -> None:
        model[3].bn1 = nn.Identity()
        model.append(nn.ReLU())
        del model[0]

    def parameters(model: nn.Module, _: Any) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        model[0].weight = nn.Parameter(torch.zeros(1))

    def gradients(model: nn.Module, _: Any) -> None:
        assert all(parameter.grad is None for parameter in model.parameters())
        model.requires_grad_(True)
        model(batches()[0][0]).sum().backward()

    def chance(model: nn.Module, generator: torch.Generator) -> None:
        torch.rand(3)
        torch.rand(3, generator=generator)

    return {
        "forward": lambda model, _: model.train()(batches()[0][0]),
        "modes": lambda model, _: use_batch_statistics(model),
        "attribute": attribute,
        "method": method,
        "hooks": hooks,
        "structure": structure,
        "parameters": parameters,
        "gradients": gradients,
        "chance": chance,
    }


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("mutation", mutations())
def test_whatever_is_done_inside_is_undone(mutation, raises):
    model, generator = in_use("converted")
    before = dict(trace(model, generator))
    with contextlib.suppress(KeyboardInterrupt), preserve_state(model):
        mutations()[mutation](model, generator)
        changed = differences(before, dict(trace(model, generator)))
        if raises:
            raise KeyboardInterrupt
    assert changed
    assert differences(before, dict(trace(model, generator))) == []


def test_a_hook_made_before_can_still_be_removed():
    model, _ = in_use("converted")
    calls = []
    handle = model[0].register_forward_hook(lambda *_: calls.append("run"))
    with preserve_state(model):
        model(batches()[0][0])
    handle.remove()
    model(batches()[0][0])
    assert calls == ["run"]


def test_a_backward_that_waits_still_works():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    value = model(torch.ones(1, 3)).sum()
    with preserve_state(model):
        model(torch.ones(2, 3)).sum().backward()
    value.backward()
    torch.testing.assert_close(model[0].weight.grad, model[1].weight.detach().sum(0)[:, None].expand(4, 3))


def test_gradients_are_recorded_inside_no_grad():
    model = nn.Linear(2, 2)
    with torch.no_grad(), preserve_state(model):
        assert model(torch.ones(1, 2)).requires_grad


def test_batch_statistics_without_chance():
    model, _ = in_use("converted")
    model.append(TorchvisionStochasticDepth(0.9, "row"))
    model.eval()
    images = batches()[0][0]
    with preserve_state(model):
        use_batch_statistics(model)
        assert model[1].training
        assert all(torch.equal(model(images), model(images)) for _ in range(9))
        gates = [module for module in model.modules() if isinstance(module, StochasticDepth)]
        for gate in gates:
            gate.warm_up(1.0)
        assert not all(torch.equal(model(images), model(images)) for _ in range(9))
    assert [gate.current_rate for gate in gates] == [0.5 * gate.drop_rate for gate in gates]
