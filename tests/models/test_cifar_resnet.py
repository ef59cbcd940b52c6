"""The CIFAR ResNets against their published sizes and a plain formula."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner import models
from runner.methods import apply_stochastic_depth
from runner.models import CifarResNet
from runner.models.cifar_resnet import ZeroPadShortcut

# He et al. 2015, table 6, gives 0.27, 0.46, 0.66, 0.85 and 1.7 M; exact counts, by hand: see `counted`
PUBLISHED = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}


def counted(depth, shortcut, num_classes=10):
    """Convolutions, two parameters a normalized channel, and the classifier."""
    blocks = (depth - 2) // 6
    total = 3 * 9 * 16 + 2 * 16
    channels = 16
    for width in (16, 32, 64):
        for index in range(blocks):
            total += 9 * channels * width + 9 * width * width + 4 * width
            if shortcut == "projection" and index == 0 and channels != width:
                total += channels * width + 2 * width
            channels = width
    return total + channels * num_classes + num_classes


@pytest.mark.parametrize("shortcut", ["zero_pad", "projection"])
@pytest.mark.parametrize(("name", "millions"), list(PUBLISHED.items()))
def test_sizes(name, millions, shortcut):
    model = getattr(models, name)(shortcut=shortcut)
    number = sum(p.numel() for p in model.parameters())
    depth = int(name.removeprefix("resnet"))
    assert number == counted(depth, shortcut)
    assert number / 1e6 == pytest.approx(millions, abs=0.035)
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    projections = 2 if shortcut == "projection" else 0
    assert len(weighted) - projections == depth


@pytest.mark.parametrize("shortcut", ["zero_pad", "projection"])
def test_outputs_are_those_of_the_formula(shortcut):
    torch.manual_seed(0)
    model = models.resnet20(num_classes=7, shortcut=shortcut).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2.0)
    model.eval()
    state = model.state_dict()

    def norm(name, x):
        mean, var, weight, bias = (
            state[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    x = norm("bn1", F.conv2d(x, state["conv1.weight"], padding=1)).clamp(min=0)
    for stage in (1, 2, 3):
        for index in range(3):
            name, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            out = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = norm(f"{name}.bn1", out).clamp(min=0)
            out = norm(f"{name}.bn2", F.conv2d(out, state[f"{name}.conv2.weight"], padding=1))
            if stride == 2 and shortcut == "zero_pad":
                zeros = torch.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
            elif stride == 2:
                x = norm(f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=2))
            x = (x + out).clamp(min=0)
    expected = x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(model(images), expected)


def test_the_zero_padded_shortcut_takes_odd_images_and_channels():
    x = torch.randn(1, 3, 5, 5)
    y = ZeroPadShortcut(3, 8, 2)(x)
    assert y.shape == (1, 8, 3, 3)
    assert torch.equal(y[:, 2:5], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 5:].any()


def test_stochastic_depth_zero_init_and_wrong_settings():
    model = models.resnet110(zero_init_residual=True)
    assert apply_stochastic_depth(model, drop_rate=0.5) == 54
    assert not any(model.get_parameter(f"layer2.{i}.bn2.weight").any() for i in range(18))
    with pytest.raises(ValueError, match=r"^shortcut=conv: it must be one of zero_pad, projection"):
        CifarResNet(3, shortcut="conv")
