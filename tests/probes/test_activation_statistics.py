"""Channel means and deviations by depth."""

import numpy as np
import pytest
import torch
from torch import nn

from runner.methods import apply_ghost_batchnorm, remove_batchnorm
from runner.models import resnet32
from runner.probes import Measurement
from runner.probes.activation_statistics import activation_statistics, merge, slope_log10


def chain(*scales, channels=3):
    """1x1 convolutions that multiply by `scales` one after the other."""
    model = nn.Sequential(*(nn.Conv2d(channels, channels, 1) for _ in scales))
    for conv, scale in zip(model, scales, strict=True):
        conv.weight.data = scale * torch.eye(channels)[:, :, None, None]
        conv.bias.data.zero_()
    return model


def batches(*sizes, channels=3):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(size, channels, 5, 4, generator=generator) * 2 + 1 for size in sizes]
    return [(each, torch.zeros(len(each), dtype=torch.long)) for each in images]


def test_moments_are_those_of_all_batches_together():
    data = batches(4, 7, 1)
    measured = activation_statistics(chain(3.0, 10.0), data)
    x = torch.cat([images for images, _ in data]).double().numpy()
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    np.testing.assert_allclose(measured.arrays["channel_mean"], [[*(3 * mean), *(30 * mean)]], rtol=1e-5)
    np.testing.assert_allclose(measured.arrays["channel_std"], [[*(3 * std), *(30 * std)]], rtol=1e-5)
    np.testing.assert_allclose(
        measured.arrays["mean"], [[3 * np.abs(mean).mean(), 30 * np.abs(mean).mean()]], rtol=1e-5
    )
    np.testing.assert_allclose(measured.arrays["std"], [[3 * std.mean(), 30 * std.mean()]], rtol=1e-5)
    assert measured.numbers["slope_log10_std"] == pytest.approx(1)
    assert measured.numbers["slope_log10_mean"] == pytest.approx(1)
    assert np.isnan(measured.numbers["slope_log10_std_spread"])
    assert measured.texts["layers"] == "0\n1"
    assert list(measured.arrays["num_channels"]) == [3, 3]


def test_several_models_one_at_a_time():
    scales = (10.0, 100.0, 1000.0)
    together = activation_statistics((chain(1.0, scale) for scale in scales), batches(4))
    merged = merge([activation_statistics(chain(1.0, scale), batches(4)) for scale in scales])
    assert together.arrays["std"].shape == (3, 2)
    assert together.numbers == merged.numbers
    for name, array in together.arrays.items():
        np.testing.assert_array_equal(array, merged.arrays[name])
    assert together.numbers["slope_log10_std"] == pytest.approx(2)  # of 1, 2 and 3
    assert together.numbers["slope_log10_std_spread"] == pytest.approx(1)


def test_chosen_layers_keep_their_depth():
    measured = activation_statistics(chain(*[10.0] * 5), batches(4), layers=[0, 2, 1.0])
    assert list(measured.arrays["depth"]) == [0, 2, 4]
    assert measured.numbers["slope_log10_std"] == pytest.approx(1)


def test_squares_beyond_float32_are_counted():
    measured = activation_statistics(chain(1e10, 1e10, 1e10), batches(4))
    assert measured.numbers["slope_log10_std"] == pytest.approx(10)


@pytest.mark.parametrize(
    ("values", "slope"),
    [([1, 10, 100], 1), ([1, 0, 100], 1), ([np.inf, 10, 1], -1), ([1, np.nan, 0], np.nan)],
)
def test_values_that_have_no_logarithm_do_not_count(values, slope):
    assert slope_log10(np.arange(3), np.array(values, dtype=float)) == pytest.approx(slope, nan_ok=True)


def test_what_cannot_be_measured():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=r"layers=1: no convolution outside shortcuts that the model runs"):
        activation_statistics(model, batches(4), layers=["0", "1"])
    with pytest.raises(ValueError, match="different layers"):
        activation_statistics([chain(1.0), chain(1.0, 1.0)], batches(4))
    with pytest.raises(ValueError, match="no model was measured"):
        activation_statistics([], batches(4))


def initialized(normalized, seed):
    torch.manual_seed(seed)
    model = resnet32()
    if normalized:
        apply_ghost_batchnorm(model, ghost_batch_size=4)
    else:
        remove_batchnorm(model)
    return model


def test_activations_grow_with_depth_only_without_batch_norm():
    """The claim of figure 5, for ResNet-32 and noise."""
    torch.manual_seed(0)
    data = [(torch.randn(8, 3, 16, 16), torch.zeros(8, dtype=torch.long))]
    slopes = {
        normalized: activation_statistics([initialized(normalized, seed) for seed in (0, 1)], data).numbers
        for normalized in (True, False)
    }
    assert slopes[False]["slope_log10_std"] > 0.03
    assert abs(slopes[True]["slope_log10_std"]) < 0.015


def test_it_is_read_back(tmp_path):
    measured = activation_statistics(chain(1.0, 5.0), batches(4))
    measured.save(tmp_path / "a.npz")
    assert merge([Measurement.load(tmp_path / "a.npz")]).numbers == pytest.approx(measured.numbers, nan_ok=True)
