"""NFNets against the paper's table and against timm's port of the official code."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from runner import models
from runner.layers.normalizer_free import GAMMAS
from runner.methods import apply_stochastic_depth
from runner.models import NFBlock, nfnet_f0

# arXiv 2102.06171, table 6: dropout, train and test pixels, multiply-adds at the test resolution (G), parameters (M)
PAPER = [
    (0.2, 192, 256, 12.38, 71.5),
    (0.3, 224, 320, 35.54, 132.6),
    (0.4, 256, 352, 62.59, 193.8),
    (0.4, 320, 416, 114.76, 254.9),
    (0.5, 384, 512, 215.24, 316.1),
    (0.5, 416, 544, 289.76, 377.2),
    (0.5, 448, 576, 377.28, 438.4),
]


@pytest.mark.parametrize(
    ("size", "row"),
    [pytest.param(*each, marks=pytest.mark.slow if each[0] > 3 else ()) for each in enumerate(PAPER)],
)
def test_the_papers_table(size, row):
    dropout, train_size, test_size, multiply_adds, parameters = row
    with torch.device("meta"):
        model = getattr(models, f"nfnet_f{size}")()
        images = torch.empty(1, 3, test_size, test_size)
    assert (model.variant.train_size, model.variant.test_size, model.dropout.p) == (train_size, test_size, dropout)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(images)
    assert counter.get_total_flops() / 2e9 == pytest.approx(multiply_adds, rel=0.01)


@pytest.mark.parametrize(("group_width", "groups", "width"), [(8, 16, 128), (48, 2, 96), (256, 1, 256)])
def test_the_width_of_a_group(group_width, groups, width):
    with torch.device("meta"):
        block = nfnet_f0(group_width=group_width).layer1[0]
    for conv in (block.conv1, block.conv1b):
        assert (conv.groups, conv.in_channels, conv.out_channels) == (groups, width, width)
        assert conv.weight.shape == (width, group_width, 3, 3)


def test_depths_widths_groups_and_expected_deviations():
    with torch.device("meta"):
        model = models.nfnet_f1()
    before = 0  # blocks of the stage before; the variance grows by 0.04 with each and starts anew in every stage
    for stage, (depth, width) in enumerate([(2, 256), (4, 512), (12, 1536), (6, 1536)], start=1):
        blocks = model.get_submodule(f"layer{stage}")
        assert len(blocks) == depth
        for index, block in enumerate(blocks):
            assert block.conv2.out_channels == width
            assert block.conv1.groups == block.conv1b.groups == width // 2 // 128
            assert block.conv1.stride[0] == (2 if index == 0 and stage > 1 else 1)
            assert (block.shortcut is not None) == (index == 0)
            assert block.beta == pytest.approx(math.sqrt(1 + 0.04 * (index or before)))
        before = depth
    assert model.fc.in_features == 3072


class TanhGelu(nn.Module):
    """The official GELU with its gamma; timm's port has the erf form."""

    def forward(self, x):
        return nn.functional.gelu(x, approximate="tanh") * GAMMAS["gelu"]


def with_tanh_gelu(module):
    for name, child in module.named_children():
        if type(child).__name__ == "GammaAct":
            setattr(module, name, TanhGelu())
        else:
            with_tanh_gelu(child)
    return module


def their_name(name):
    """Where timm keeps what we call `name`."""
    parts = name.split(".")
    if parts[0] == "stem":
        return f"stem.conv{int(parts[1][-1]) + 1}.{parts[2]}"
    if not parts[0].startswith("layer"):
        return name.replace("fc.", "head.fc.")
    names = {"conv0": "conv1", "conv1": "conv2", "conv1b": "conv2b", "conv2": "conv3", "shortcut": "downsample"}
    names |= {"se": "attn_last", "fc0": "fc1", "fc1": "fc2"}
    stage, block, *rest = parts[0][-1:], *parts[1:]
    return ".".join(["stages", str(int(stage) - 1), block, *(names.get(part, part) for part in rest)])


@pytest.fixture(scope="module")
def ours_and_timms():
    """An nfnet_f0 of ours and timm's with the same weights."""
    torch.manual_seed(0)
    theirs = with_tanh_gelu(timm.create_model("dm_nfnet_f0", num_classes=10, drop_rate=0.0)).eval()
    ours = nfnet_f0(num_classes=10).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("skipinit_gain"):
                parameter.fill_(0.5 + torch.rand(()).item())
            elif name.endswith(("bias", "gain")):
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "conv" in name:
                parameter.mul_(100)  # neither eps, 1e-6 of the variance there and a floor here, acts any more
    state = dict(theirs.named_parameters())
    ours.load_state_dict({name: state[their_name(name)].reshape(p.shape) for name, p in ours.named_parameters()})
    assert len(state) == len(list(ours.parameters()))
    return ours, theirs


@pytest.mark.parametrize("size", [64, 96])
def test_with_timms_weights_the_outputs_are_timms(ours_and_timms, size):
    ours, theirs = ours_and_timms
    torch.manual_seed(1)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_stochastic_depth_drops_its_blocks():
    torch.manual_seed(0)
    block = NFBlock(256, 256, beta=1.1)
    nn.init.ones_(block.skipinit_gain)
    model = nn.Sequential(block)
    assert apply_stochastic_depth(model, drop_rate=0.5, drop_distribution="uniform") == 1
    x = torch.randn(2, 256, 6, 6)
    block.stochastic_depth._draw = lambda num_gates: torch.zeros(num_gates, dtype=torch.bool)
    assert torch.equal(model(x), x)
    block.stochastic_depth._draw = lambda num_gates: torch.ones(num_gates, dtype=torch.bool)
    assert not torch.allclose(model(x), x)


def test_an_odd_image_is_pooled_as_same_padding_does():
    block = NFBlock(128, 256, stride=2)
    pooled = block.shortcut.pool(torch.arange(9.0).view(1, 1, 3, 3))
    assert pooled.flatten().tolist() == [2.0, 3.5, 6.5, 8.0]
    assert block(torch.randn(1, 128, 7, 7)).shape == (1, 256, 4, 4)
