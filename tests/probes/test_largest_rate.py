"""The largest rate that trains, against the limits of gradient descent on a quadratic loss."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.methods import adaptive_clip_grad_
from runner.probes.largest_rate import largest_rate


def distance(logits, targets):
    return 0.5 * (logits - targets).square().sum()


def quadratic(curvature, start):
    """A model and a batch whose loss is 1/2 h (w - 1)^2, half of h where the logits are 0."""
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(start)
    root = torch.full((1, 1), math.sqrt(curvature), dtype=torch.float64)
    return model, (root, root)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("curvature", [0.1, 30.0])
def test_the_limit_of_heavy_ball_descent(momentum, curvature):
    """It converges below the rate 2 (1 + momentum) / h, and its loss grows without bound above."""
    model, batch = quadratic(curvature, 0.9)
    found = largest_rate(model, [batch] * 400, distance, decades=0.002, momentum=momentum)
    assert found.numbers["rate"] == pytest.approx(2 * (1 + momentum) / curvature, rel=0.03)
    assert found.numbers["log10_rate"] == math.log10(found.numbers["rate"])
    rates, trains = found.arrays["log10_rate"], found.arrays["trains"]
    assert rates[trains].max() == found.numbers["log10_rate"] < rates[~trains].min()
    assert rates[~trains].min() - rates[trains].max() <= 0.002


def test_what_methods_do_to_gradients_counts():
    model, batch = quadratic(10.0, 0.9)

    def tenth(model):
        model.weight.grad.mul_(0.1)

    plain, scaled = (largest_rate(model, [batch] * 100, distance, *extra) for extra in ((), (tenth,)))
    assert scaled.numbers["log10_rate"] - plain.numbers["log10_rate"] == pytest.approx(1, abs=0.06)


def test_adaptive_clipping_lets_a_network_train_at_larger_rates():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    images = torch.randn(256, 8)
    batch = images, images[:, :4].argmax(1)
    plain, clipped = (
        largest_rate(model, [batch] * 40, F.cross_entropy, *extra, decades=0.25)
        for extra in ((), (lambda model: adaptive_clip_grad_(model, clip=0.01),))
    )
    assert clipped.numbers["rate"] > 2 * plain.numbers["rate"]


def test_a_network_that_died_does_not_train():
    """Far beyond the limit every unit is dead after a step, and the loss is that of a constant: not a divergence."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2, bias=False))
    images = torch.rand(64, 2)
    batch = images, (images[:, 0] > images[:, 1]).long()
    found = largest_rate(model, [batch] * 40, F.cross_entropy, exponents=(0, 6), decades=1.0)
    constant = np.isclose(found.arrays["last_loss"], math.log(2), atol=1e-4)
    assert constant.any()
    assert not found.arrays["trains"][constant].any()


@pytest.mark.parametrize(("exponents", "rate"), [((-3, -2), 1e-2), ((3, 5), math.nan)])
def test_the_ends_of_the_range(exponents, rate):
    model, batch = quadratic(1.0, 0.0 if math.isnan(rate) else 0.9)
    found = largest_rate(model, [batch] * 20, distance, exponents=exponents).numbers["rate"]
    assert found == pytest.approx(rate, nan_ok=True)


@pytest.mark.parametrize("settings", [{"exponents": (1, 0)}, {"decades": 0.0}])
def test_settings_without_a_search_are_refused(settings):
    model, batch = quadratic(1.0, 0.9)
    with pytest.raises(ValueError, match="these give no search"):
        largest_rate(model, [batch], distance, **settings)
