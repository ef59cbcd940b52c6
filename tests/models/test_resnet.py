from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from runner import models
from runner.layers.stem import stem_for

NAMES = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_is_torchvisions(name):
    with torch.device("meta"):
        ours = getattr(models, name)().state_dict()
        theirs = getattr(torchvision.models, name)().state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [(key, value.shape) for key, value in theirs.items()]


def test_equals_torchvisions_resnet18_drawn_from_the_same_seed():
    torch.manual_seed(0)
    ours = models.resnet18(num_classes=7).eval()
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=7).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("stem", "weight_shape", "reduction"),
    [("imagenet", (64, 3, 7, 7), 4), ("strided", (64, 3, 3, 3), 2), ("small", (64, 3, 3, 3), 1)],
)
def test_stem(stem, weight_shape, reduction):
    model = models.resnet18(num_classes=10, stem=stem)
    assert model.conv1.weight.shape == weight_shape
    assert model.conv1.bias is None
    x = model.maxpool(model.conv1(torch.zeros(1, 3, 32, 32)))
    assert x.shape == (1, 64, 32 // reduction, 32 // reduction)
    assert list(model.state_dict()) == list(torchvision.models.resnet18().state_dict())


@pytest.mark.parametrize("stem", ["imagenet", "strided", "small"])
def test_every_convolution_is_drawn_with_variance_2_over_fan_out(stem):
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10, stem=stem)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 20
    for conv in convs:
        fan_out = conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]
        assert conv.weight.var().item() == pytest.approx(2 / fan_out, rel=0.15)


@pytest.mark.parametrize(("name", "last_norm"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_residual(name, last_norm):
    model = getattr(models, name)(num_classes=2, stem="small", zero_init_residual=True)
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock | Bottleneck)]
    assert all(getattr(block, last_norm).weight.abs().sum() == 0 for block in blocks)
    assert blocks[0].bn1.weight.min() == 1


@pytest.mark.parametrize(
    ("image_size", "stem"),
    [
        (8, "wide"),
        (23, "wide"),
        (24, "small"),
        (32, "small"),
        (47, "small"),
        (48, "strided"),
        (127, "strided"),
        (128, "imagenet"),
    ],
)
def test_stem_for_image_size(image_size, stem):
    assert stem_for(image_size) == stem


@pytest.mark.parametrize("name", ["resnet18", "nf_resnet26"])
@pytest.mark.parametrize(
    ("stem", "message"),
    [("auto", r"model\.stem=auto: .*stem_for"), ("smal", r"^stem=smal: .*Did you mean small\?")],
)
def test_refuses_a_stem_that_is_not_one(name, stem, message):
    with pytest.raises(ValueError, match=message):
        getattr(models, name)(stem=stem)


def test_stem_for_refuses_a_tiny_image():
    with pytest.raises(ValueError, match=r"dataset\.image_size=4"):
        stem_for(4)


@pytest.mark.parametrize("build", [models.resnet18, models.resnet50])
def test_width_multiplies_every_number_of_channels(build):
    plain, narrow = build(num_classes=10), build(num_classes=10, width=0.25, stem="small")
    assert list(narrow.state_dict()) == list(plain.state_dict())
    for name, parameter in plain.named_parameters():
        shape = list(parameter.shape)
        expected = [shape[0] // 4, *shape[1:]] if name != "fc.bias" else shape
        if parameter.ndim > 1 and name != "conv1.weight":
            expected[1] = shape[1] // 4
        if name == "fc.weight":
            expected[0] = shape[0]
        found = list(dict(narrow.named_parameters())[name].shape)
        assert found[:2] == expected[:2], name
    assert narrow(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"^width=0"):
        build(width=0)
