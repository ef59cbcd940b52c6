"""Ratios of gradient to weight norms, made by hand and as adaptive gradient clipping itself reports them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.methods import adaptive_clip_grad_
from runner.probes.clipping import clipping


def weighted_sum(logits, coefficients):
    return (logits * coefficients).sum()


def linear_by_hand():
    """With one image (1, 0) and coefficients c the gradient of weight row i is (c_i, 0), and of the bias c."""
    model = nn.Linear(2, 3).double()
    model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.5], [0.0, 0.0]]))
    model.bias.data.copy_(torch.tensor([0.0, 6.0, 8.0]))
    return model


IMAGE = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
COEFFICIENTS = torch.tensor([[0.03, 0.04, 0.0]], dtype=torch.float64)


def test_ratios_by_hand():
    found = clipping(linear_by_hand(), [(IMAGE, COEFFICIENTS)], weighted_sum, clip=0.01, eps=1e-3)
    assert found.texts["parameters"].split("\n") == ["weight", "bias"]
    assert found.arrays["units"].tolist() == [3, 1]
    weight, bias = [0.03 / 5, 0.04 / 0.5, 0.0], 0.05 / 10
    np.testing.assert_allclose(found.arrays["ratio"][0], np.quantile(weight, found.arrays["level"]))
    np.testing.assert_allclose(found.arrays["ratio"][1], bias)
    np.testing.assert_allclose(found.arrays["share_above"], [1 / 3, 0])
    numbers = {"share_above": 1 / 4, "median_ratio": (0.005 + 0.006) / 2, "largest_ratio": 0.08, "clip": 0.01}
    assert found.numbers == pytest.approx(numbers)
    counts, edges = found.arrays["counts"], found.arrays["edges"]
    assert 10 ** edges[[0, -1]] == pytest.approx([0.005, 0.08])
    assert (counts.sum(), counts[0], counts[-1]) == (3, 1, 1)  # the unit without a gradient has no logarithm


def test_weights_at_zero_are_held_to_eps():
    batch = IMAGE, torch.tensor([[0.0, 0.0, 2e-3]], dtype=torch.float64)
    numbers = clipping(linear_by_hand(), [batch], weighted_sum, eps=1e-2).numbers
    assert numbers["largest_ratio"] == pytest.approx(0.2)


def test_units_of_all_batches_are_taken_together():
    batches = [(IMAGE, COEFFICIENTS), (IMAGE, 10 * COEFFICIENTS)]
    found = clipping(linear_by_hand(), batches, weighted_sum)
    assert found.arrays["units"].tolist() == [3, 1]
    np.testing.assert_allclose(found.arrays["share_above"], [3 / 6, 1 / 2])
    np.testing.assert_allclose(found.arrays["ratio"][1, [0, 2, 4]], [0.005, 0.0275, 0.05])
    assert found.numbers["share_above"] == pytest.approx(4 / 8)


@pytest.mark.parametrize("clip", [0.003, 0.03])
def test_agrees_with_the_method(clip):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 2), nn.Conv2d(1, 4, 1)),
        *(nn.Flatten(), nn.Linear(4, 3)),
    )
    batch = torch.randn(16, 3, 4, 4), torch.randint(3, (16,))
    found = clipping(model, [batch], F.cross_entropy, clip=clip, exclude=["6.weight"])
    clipped = copy.deepcopy(model)
    F.cross_entropy(clipped(batch[0]), batch[1]).backward()
    metrics = adaptive_clip_grad_(clipped, clip=clip)
    assert 0 < found.numbers["share_above"] < 1
    assert found.numbers["share_above"] == pytest.approx(metrics["clipped_share"].item())
    assert found.numbers["largest_ratio"] == pytest.approx(metrics["largest_ratio"].item(), rel=1e-5)


def test_parameters_to_leave_out():
    model = nn.Sequential(nn.Linear(2, 2), linear_by_hand().float())
    found = clipping(model, [(IMAGE.float(), COEFFICIENTS)], weighted_sum, exclude=["0", "1.bias"])
    assert found.texts["parameters"] == "1.weight"
    with pytest.raises(ValueError, match=r"exclude=1\.weigth: .*Choose from 1\.weight"):
        clipping(model, [(IMAGE.float(), COEFFICIENTS)], weighted_sum, exclude=["1.weigth"])
    with pytest.raises(ValueError, match="no parameter with a gradient is left"):
        clipping(model, [(IMAGE.float(), COEFFICIENTS)], weighted_sum, exclude=["0", "1"])


def test_parameters_without_a_gradient_are_left_out():
    model = linear_by_hand()
    model.spare = nn.Parameter(torch.ones(2))
    model.bias.requires_grad_(False)
    found = clipping(model, [(IMAGE, COEFFICIENTS)], weighted_sum)
    assert found.texts["parameters"] == "weight"
