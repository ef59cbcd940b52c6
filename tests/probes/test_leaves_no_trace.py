"""Probes of the loss leave a model as it was, whatever has been done to it; `untouched` itself is tested elsewhere."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from runner.layers.stochastic_depth import StochasticDepth
from runner.methods import apply_ghost_batchnorm, apply_stochastic_depth
from runner.models.nf_resnet import NFResBlock
from runner.probes.clipping import clipping
from runner.probes.divergence_trace import divergence_trace
from runner.probes.largest_rate import largest_rate
from runner.probes.loss_landscape import loss_landscape
from runner.probes.sharpness import sharpness
from runner.probes.train_eval_discrepancy import train_eval_discrepancy

PROBES = {
    loss_landscape: {"num_steps": 3},
    largest_rate: {"exponents": (-2, 1), "decades": 0.5},
    divergence_trace: {"lr": 1e4, "steps": 3},
    train_eval_discrepancy: {},
    sharpness: {"max_iterations": 3},
    clipping: {},
}


def with_ghost_batch_norm():
    stem = (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(*stem, BasicBlock(8, 8), nn.Dropout(0.5), nn.Flatten(), nn.Linear(32, 4))
    apply_ghost_batchnorm(model, ghost_batch_size=4)
    return model


def normalizer_free():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), NFResBlock(8, 16), NFResBlock(16, 16), nn.Flatten(), nn.Linear(64, 4))
    apply_stochastic_depth(model, drop_rate=0.5)
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.generator = torch.Generator().manual_seed(3)
    return model


def state_of(model):
    """All that a probe could leave behind, in a form that can be compared."""
    return {
        "values": [tensor.clone() for tensor in model.state_dict().values()],
        "gradients": [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None],
        "flags": [module.training for module in model.modules()],
        "needs": [parameter.requires_grad for parameter in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "rates": [m.current_rate for m in model.modules() if isinstance(m, StochasticDepth)],
        "generators": [m.generator.get_state() for m in model.modules() if isinstance(m, StochasticDepth)],
        "random": [torch.get_rng_state()],
    }


@pytest.mark.parametrize("make", [with_ghost_batch_norm, normalizer_free])
@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_the_model_is_as_before_and_the_measurement_the_same_again(probe, make):
    torch.manual_seed(0)
    model = make()
    batch = torch.randn(8, 3, 4, 4), torch.randint(4, (8,))
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    before = state_of(model)
    with torch.no_grad():
        first, second = (probe(model, [batch], F.cross_entropy, **PROBES[probe]) for _ in range(2))
    after = state_of(model)
    for kind, values in before.items():
        assert len(values) == len(after[kind]), kind
        same = [
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
            for a, b in zip(values, after[kind], strict=True)
        ]
        assert all(same), kind
    assert first.numbers == pytest.approx(second.numbers, rel=0, abs=0, nan_ok=True)
    for name, values in first.arrays.items():
        np.testing.assert_array_equal(values, second.arrays[name])


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_without_batches_there_is_nothing_to_measure(probe):
    with pytest.raises(ValueError, match="batches: there is none"):
        probe(with_ghost_batch_norm(), [], F.cross_entropy, **PROBES[probe])
