"""Signal propagation: blocks with known sums, and what normalizer-free nets expect."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from runner.layers.normalizer_free import normalizer_free_stages
from runner.methods import apply_stochastic_depth, remove_batchnorm
from runner.models import resnet20
from runner.models.nf_resnet import NFResBlock
from runner.probes.signal_propagation import signal_propagation


class Doubling(nn.Module):
    """y = x + factor * x, the branch being what `conv1` gives."""

    def __init__(self, factor, channels=2):
        super().__init__()
        self.downsample = None
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv1.weight.data = factor * torch.eye(channels)[:, :, None, None]

    def forward(self, x):
        return self.conv1(x).add_(x)  # in place, as torchvision's blocks do it


class Reversed(nn.Module):
    """Registers its blocks in the other order than it runs them."""

    def __init__(self):
        super().__init__()
        self.second, self.first = Doubling(2.0), Doubling(1.0)

    def forward(self, x):
        return self.second(self.first(x)).mean((2, 3))


def batch(size=64, channels=2, pixels=6, seed=0):
    images = torch.randn(size, channels, pixels, pixels, generator=torch.Generator().manual_seed(seed))
    return images + 0.5, torch.zeros(size, dtype=torch.long)


def test_measures_of_known_sums():
    data = [batch(seed=seed) for seed in (0, 1)]
    measured = signal_propagation(Reversed(), data).arrays
    moments = [(x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)) for x, _ in data]
    sq_mean = np.mean([float(mean.square().mean()) for mean, _ in moments])
    var = np.mean([float(variance.mean()) for _, variance in moments])
    np.testing.assert_allclose(measured["avg_sq_mean"], sq_mean * np.array([1, 4, 36]), rtol=1e-5)
    np.testing.assert_allclose(measured["avg_var"], var * np.array([1, 4, 36]), rtol=1e-5)
    np.testing.assert_allclose(measured["res_avg_var"], var * np.array([np.nan, 1, 16]), rtol=1e-5)
    assert np.isnan(measured["expected_avg_var"]).all()
    assert not measured["resets"].any()


def test_blocks_are_named_in_the_order_of_execution():
    measured = signal_propagation(Reversed(), [batch()])
    assert measured.texts["places"] == "stem\nfirst\nsecond"
    assert measured.numbers == {"final_avg_var": measured.arrays["avg_var"][-1]}


@pytest.fixture(scope="module")
def normalizer_free():
    torch.manual_seed(0)
    stages = normalizer_free_stages(NFResBlock, (3, 2), (64, 128), in_channels=64, alpha=0.5)
    return nn.Sequential(*stages)


def test_a_normalizer_free_net_keeps_to_what_it_expects(normalizer_free):
    """From unit variance: 1 + alpha^2 after the first block, alpha^2 more with each, and a reset in a transition."""
    measured = signal_propagation(normalizer_free, [(batch(32, 64, 16)[0] - 0.5, None)], skipinit_gain=1.0)
    expected = measured.arrays["expected_avg_var"]
    np.testing.assert_allclose(expected, [1, 1.25, 1.5, 1.75, 1.25, 1.5])
    np.testing.assert_array_equal(measured.arrays["resets"], [False, False, False, False, True, False])
    np.testing.assert_allclose(measured.arrays["avg_var"], expected, rtol=0.15)
    np.testing.assert_allclose(measured.arrays["res_avg_var"][1:], 1, rtol=0.3)
    largest = np.exp(np.abs(np.log(measured.arrays["avg_var"] / expected)[1:]).max())  # of the blocks, not the stem
    assert measured.numbers["largest_factor_off"] == pytest.approx(largest)


def test_a_closed_skip_gain_hides_the_branch_but_not_its_variance(normalizer_free):
    images = batch(16, 64, 8)[0]
    closed = signal_propagation(normalizer_free, [(images, None)]).arrays
    np.testing.assert_allclose(closed["avg_var"][0], closed["avg_var"][1:4], rtol=1e-5)
    branch = normalizer_free[0][0].residual_branch(normalizer_free[0][0].activation(images)).detach()
    assert closed["res_avg_var"][1] == pytest.approx(float(branch.var((0, 2, 3), correction=0).mean()), rel=1e-4)


@pytest.mark.parametrize("gated", [False, True])
def test_the_branch_of_a_torchvision_block_ends_with_its_last_norm(gated):
    torch.manual_seed(0)
    model = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
    if gated:
        apply_stochastic_depth(model, drop_rate=0.9, drop_distribution="uniform")
    measured = signal_propagation(model, [batch(16, 8, 8)]).arrays
    np.testing.assert_allclose(measured["res_avg_var"][1:], 1, rtol=1e-3)


@pytest.mark.parametrize("gated", [False, True])
def test_the_branch_is_measured_before_its_skip_gain(gated):
    torch.manual_seed(0)
    model = resnet20()
    remove_batchnorm(model, skipinit=True)
    if gated:
        apply_stochastic_depth(model)
    measured = signal_propagation(model, [batch(8, 3, 8)]).arrays
    assert (measured["res_avg_var"][1:] > 0).all()
    assert measured["resets"].sum() == 2


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match="looked for residual blocks"):
        signal_propagation(nn.Conv2d(2, 2, 1), [batch()])
    with pytest.raises(ValueError, match=r"skipinit_gain=1\.0: a Reversed has no skip gains"):
        signal_propagation(Reversed(), [batch()], skipinit_gain=1.0)
