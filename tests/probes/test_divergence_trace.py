"""Activations through SGD steps, against a linear network in closed form and torch's optimizer."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.probes.divergence_trace import divergence_trace


def squared_error(logits, targets):
    return 0.5 * (logits[:, 0] - targets).square().mean()


def linear_network(weights, dtype=torch.float64):
    """y = w_L ... w_1 x, a 1x1 convolution of one channel for each weight."""
    model = nn.Sequential(*(nn.Conv2d(1, 1, 1, bias=False) for _ in weights), nn.Flatten()).to(dtype)
    for layer, weight in zip(model, weights, strict=False):
        layer.weight.data.fill_(weight)
    return model


IMAGES = torch.tensor([1.0, 2.0, -0.5, 3.0]).view(4, 1, 1, 1)
TARGETS = torch.tensor([0.5, -1.0, 0.0, 2.0])


def test_a_linear_network_in_closed_form():
    x, t = IMAGES.flatten().numpy().astype(float), TARGETS.numpy()
    w, lr, parts = np.array([0.8, -1.1, 1.3]), 0.05, 2
    model = linear_network(w)
    found = divergence_trace(model, [(IMAGES.double(), TARGETS.double())], squared_error, lr=lr, steps=2, parts=parts)
    rows = [w]
    for _ in range(2):
        error = ((w.prod() * x - t) * x).mean()
        gradient = error * w.prod() / w
        rows += [w - lr * share * gradient for share in (0.5, 1.0)]
        w = rows[-1]
    factors = np.cumprod(rows, axis=1)  # the output of layer l is x times the first l weights
    np.testing.assert_allclose(found.arrays["progress"], [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(found.arrays["channel_mean"], factors * x.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.arrays["mean"], abs(factors * x.mean()), rtol=1e-12)
    np.testing.assert_allclose(found.arrays["variance"], factors**2 * x.var(), rtol=1e-12)
    losses = [0.5 * ((factor * x - t) ** 2).mean() for factor in factors[:, -1]]
    np.testing.assert_allclose(found.arrays["loss"], losses, rtol=1e-12)
    assert found.numbers["loss_before"] == pytest.approx(losses[0])
    assert found.numbers["loss_after"] == pytest.approx(losses[-1])
    assert found.numbers["diverged_after"] == math.inf
    assert found.numbers["rms_growth_last_layer"] == pytest.approx(max(abs(factors[:, 2] / factors[0, 2])))
    assert found.texts["layers"].split("\n") == ["0", "1", "2"]


@pytest.mark.parametrize("parts", [1, 8])
def test_it_ends_with_the_loss_that_is_not_finite(parts):
    """The weights of this float32 network overflow within a few steps; the statistics do not where outputs do not."""
    model = linear_network([2.0] * 5, torch.float32)
    found = divergence_trace(model, [(IMAGES, TARGETS)], squared_error, lr=1.0, steps=50, parts=parts)
    losses = found.arrays["loss"]
    assert np.isfinite(losses[:-1]).all()
    assert not np.isfinite(losses[-1])
    assert found.numbers["diverged_after"] == found.arrays["progress"][-1] == (len(losses) - 1) / parts < 50
    assert found.numbers["rms_growth_last_layer"] > 1e15
    finite = np.isfinite(found.arrays["channel_mean"])
    assert np.isfinite(found.arrays["channel_variance"][finite]).all()
    assert found.arrays["channel_variance"][finite].max() > torch.finfo(torch.float32).max


def test_steps_are_those_of_plain_sgd():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 2)),
        *(nn.Dropout(0.0), nn.Flatten(), nn.Linear(6, 3)),
    )
    batches = [(torch.randn(8, 3, 4, 4), torch.randint(3, (8,))) for _ in range(2)]
    found = divergence_trace(model, iter(batches), F.cross_entropy, lr=0.3, steps=3)
    trained = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.3)
    for images, targets in (*batches, batches[0]):
        optimizer.zero_grad()
        F.cross_entropy(trained(images), targets).backward()
        optimizer.step()
    outputs = trained[:1](batches[0][0]), trained[:4](batches[0][0])
    means = torch.cat([out.double().mean((0, 2, 3)) for out in outputs])
    variances = torch.cat([out.double().var((0, 2, 3), correction=0) for out in outputs])
    np.testing.assert_allclose(found.arrays["channel_mean"][-1], means.detach(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.arrays["channel_variance"][-1], variances.detach(), rtol=1e-5)
    assert found.arrays["num_channels"].tolist() == [4, 6]
    layers = [found.arrays["channel_variance"][:, :4].mean(1), found.arrays["channel_variance"][:, 4:].mean(1)]
    np.testing.assert_allclose(found.arrays["variance"], np.stack(layers, 1))


def test_a_model_that_has_diverged_is_recorded_once():
    found = divergence_trace(linear_network([math.nan]), [(IMAGES.double(), TARGETS)], squared_error, lr=1.0)
    assert found.arrays["progress"].tolist() == [0.0]
    assert found.numbers["diverged_after"] == 0


def test_a_layer_that_overflows_has_grown_without_bound():
    found = divergence_trace(linear_network([2.0] * 5, torch.float32), [(IMAGES, TARGETS)], squared_error, lr=1e6)
    assert found.arrays["loss"][-1] == math.inf
    assert found.numbers["rms_growth_last_layer"] == math.inf
    assert found.numbers["rms_growth_first_layer"] < math.inf


@pytest.mark.parametrize("settings", [{"steps": 0}, {"parts": 0}])
def test_wrong_settings(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=0"):
        divergence_trace(linear_network([1.0]), [(IMAGES.double(), TARGETS)], squared_error, lr=1.0, **settings)
