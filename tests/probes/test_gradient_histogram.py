"""The distribution of a layer's gradient, against distributions with known moments and tails."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from runner.methods import StdConv2d, apply_ghost_batchnorm, remove_batchnorm
from runner.models import resnet32
from runner.probes.gradient_histogram import gradient_histogram, hill_index


class Weighed(nn.Module):
    """Logits whose sum is sum_i w_i x_i: dL/dw is x for a loss that adds up the logits."""

    def __init__(self, size):
        super().__init__()
        self.conv = nn.Conv2d(size, 1, 1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.conv(x).flatten(1)


def total(logits, _targets):
    return logits.sum()


def measure(*gradients, **settings):
    model = Weighed(len(gradients[0]))
    batches = [(torch.tensor(gradient)[None, :, None, None].float(), None) for gradient in gradients]
    return gradient_histogram(model, batches, total, layer=0, **settings)


@pytest.fixture(scope="module")
def students_t():
    return stats.t(3).rvs(20001, random_state=0).astype(np.float32)


def test_numbers_are_those_of_the_elements(students_t):
    numbers = measure(students_t, tail_share=0.02).numbers
    g = students_t.astype(np.float64)
    assert numbers["std"] == pytest.approx(g.std())
    assert numbers["max_abs"] == pytest.approx(np.abs(g).max())
    assert numbers["range"] == pytest.approx(g.max() - g.min())
    assert numbers["p99_9"] == pytest.approx(np.percentile(np.abs(g), 99.9))
    assert numbers["excess_kurtosis"] == pytest.approx(stats.kurtosis(g))
    k = 400
    largest = np.sort(np.abs(g))[::-1][: k + 1]
    assert numbers["tail_index"] == pytest.approx(k / np.sum(np.log(largest[:k]) - np.log(largest[k])))
    assert numbers["share_finite"] == 1


@pytest.mark.parametrize("index", [1.0, 3.0])
def test_hill_finds_the_index_of_a_pareto_tail(index):
    x = stats.pareto(index).rvs(100_000, random_state=0)
    assert hill_index(x, 0.01) == pytest.approx(index, rel=3 / np.sqrt(1000))


def test_tiny_gradients_keep_their_shape(students_t):
    tiny, plain = measure(students_t * 1e-30).numbers, measure(students_t).numbers
    assert tiny["excess_kurtosis"] == pytest.approx(plain["excess_kurtosis"], rel=1e-4)
    assert tiny["tail_index"] == pytest.approx(plain["tail_index"], rel=1e-4)


def test_batches_are_put_together_and_counted():
    arrays = measure([-4.0, 1.0, 1.0], [0.5, 3.0, -1.0], num_bins=4).arrays
    np.testing.assert_array_equal(arrays["edges"], [-4, -2, 0, 2, 4])
    np.testing.assert_array_equal(arrays["counts"], [1, 1, 3, 1])


def test_the_tail_is_the_share_beyond_a_value(students_t):
    arrays = measure(students_t).arrays
    g = np.abs(students_t)
    share = (g[:, None] >= arrays["tail_value"] * (1 - 1e-6)).mean(axis=0)
    np.testing.assert_allclose(share, arrays["tail_probability"], atol=2 / len(g))


def test_elements_that_are_not_finite_are_counted_apart():
    numbers = measure([1.0, -1.0, np.inf, np.nan]).numbers
    assert numbers["share_finite"] == 0.5
    assert numbers["range"] == 2
    assert np.isnan(measure([np.nan, np.inf]).numbers["std"])


def test_a_gradient_of_zero_has_no_shape():
    measured = measure([0.0] * 500)
    assert measured.arrays["counts"].sum() == 500
    assert np.isnan(measured.numbers["excess_kurtosis"])
    assert np.isnan(measured.numbers["tail_index"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": "relu"}, "layer=relu: a ReLU has no weight"),
        ({"num_bins": 0}, "num_bins=0"),
        ({"tail_share": 1.0}, r"tail_share=1\.0"),
    ],
)
def test_what_cannot_be_measured(settings, message):
    with pytest.raises(ValueError, match=message):
        gradient_histogram(Weighed(3), [(torch.ones(1, 3, 1, 1), None)], total, **settings)


def test_a_frozen_layer_is_measured_and_stays_frozen():
    model = Weighed(3)
    model.conv.weight.requires_grad_(False)
    measured = gradient_histogram(model, [(torch.ones(1, 3, 1, 1), None)], total)
    assert measured.numbers["max_abs"] == 1
    assert not model.conv.weight.requires_grad


def test_the_weight_is_the_one_that_is_trained():
    """Of standardized weights the raw one: its gradient has no component along the weight of a filter."""
    torch.manual_seed(0)
    model = nn.Sequential(StdConv2d(3, 4, 3, eps=0), nn.Flatten())
    images = torch.randn(2, 3, 3, 3)
    measured = gradient_histogram(model, [(images, None)], lambda logits, _: logits.square().sum())
    logits = model(images)
    gradient = torch.autograd.grad(logits.square().sum(), model[0].weight)[0]
    assert abs((gradient * model[0].weight).sum().item()) < 1e-3
    assert measured.numbers["max_abs"] == pytest.approx(float(gradient.abs().max()), rel=1e-5)


def test_gradients_are_larger_and_heavier_tailed_without_batch_norm():
    """The claim of figure 2, for ResNet-32 and noise."""
    batch = (torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10)
    found = []
    for convert in (apply_ghost_batchnorm, remove_batchnorm):
        torch.manual_seed(0)
        model = resnet32()
        convert(model)
        found.append(gradient_histogram(model, [batch], nn.functional.cross_entropy))
    normalized, plain = found
    assert normalized.texts["layer"] == plain.texts["layer"] == "layer2.2.conv1"
    assert plain.numbers["std"] > 10 * normalized.numbers["std"]
    assert plain.numbers["excess_kurtosis"] > 3 * normalized.numbers["excess_kurtosis"]
    assert plain.numbers["tail_index"] < normalized.numbers["tail_index"]
