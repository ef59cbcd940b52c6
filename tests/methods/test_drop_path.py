"""Stochastic depth in timm's blocks: the gate in the place of drop_path, beside the blocks computed layer by layer."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn
from torchvision.models.convnext import CNBlock

from runner.layers.stochastic_depth import StochasticDepth
from runner.methods import apply_stochastic_depth
from runner.methods.stochastic_depth import StochasticDepthMethod


def block(block_class=BasicBlock, **settings):
    torch.manual_seed(0)
    expansion = block_class.expansion
    made = nn.Sequential(block_class(4 * expansion, 4, **settings)).double()
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data.uniform_(0.5, 1.5), norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    return made, torch.randn(6, 4 * expansion, 5, 5, dtype=torch.float64)


def branch_of(x, layers):
    """The residual branch of timm's block, from its layers."""
    x = layers.act1(layers.bn1(layers.conv1(x)))
    if isinstance(layers, Bottleneck):
        return layers.bn3(layers.conv3(layers.act2(layers.bn2(layers.conv2(x)))))
    return layers.bn2(layers.conv2(x))


@pytest.mark.parametrize("block_class", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("rescale", ["inference", "training"])
def test_evaluation_scales_the_branch(block_class, rescale):
    model, x = block(block_class)
    keys = list(model.state_dict())
    assert apply_stochastic_depth(model, drop_rate=0.3, rescale=rescale) == 1
    assert list(model.state_dict()) == keys
    expected = torch.relu(x + (0.7 if rescale == "inference" else 1.0) * branch_of(x, model.eval()[0]))
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rescale", ["inference", "training"])
def test_training_drops_the_branch_of_the_mini_batch_or_of_samples(rescale):
    factor = 1.0 if rescale == "inference" else 1 / 0.5
    for method in ("block", "sample"):
        model, x = block()
        reference = copy.deepcopy(model[0])
        generator = torch.Generator().manual_seed(1)
        apply_stochastic_depth(model, drop_rate=0.5, stochastic_method=method, rescale=rescale, generator=generator)
        branch = factor * branch_of(x, reference)
        kept, dropped = torch.relu(x + branch), torch.relu(x)
        seen = set()
        for _ in range(20):
            out = model(x)
            is_kept = [torch.allclose(a, b, atol=1e-9) for a, b in zip(out, kept, strict=True)]
            is_dropped = [torch.equal(a, b) for a, b in zip(out, dropped, strict=True)]
            assert all(a != b for a, b in zip(is_kept, is_dropped, strict=True))
            seen.add(sum(is_kept))
        assert seen == {0, 6} if method == "block" else len(seen) > 2


def test_a_dropped_branch_gets_no_gradient_unless_it_is_to_continue():
    for update in ("rest", "continue"):
        model, x = block()
        method = StochasticDepthMethod(drop_rate=0.9, drop_distribution="uniform", dropped_update=update)
        method.apply(model, x, seed=0)
        for _ in range(8):
            model.zero_grad(set_to_none=True)
            model(x.requires_grad_()).sum().backward()
            method.transform_gradients(model)
            gradient = model[0].conv1.weight.grad
            if gradient is None or not gradient.any():
                break
        assert (gradient is None) == (update == "rest")


@pytest.mark.parametrize(
    ("architecture", "blocks"),
    [
        ("resnet50d", 16),
        ("resnetv2_50", 16),
        ("efficientnet_b0", 9),
        ("convnext_atto", 12),
        ("vit_tiny_patch16_224", 12),
    ],
)
def test_the_rates_grow_linearly_over_the_blocks_of_timms_models(architecture, blocks):
    """Of EfficientNet-B0's 16 blocks 9 have a shortcut."""
    with torch.device("meta"):
        model = timm.create_model(architecture)
        assert apply_stochastic_depth(model, drop_rate=0.2) == blocks
        rates = [gate.drop_rate for gate in model.modules() if isinstance(gate, StochasticDepth)]
        branches = len(rates) // blocks  # a block of a transformer has two
        expected = [0.2 * (index + 1) / blocks for index in range(blocks) for _ in range(branches)]
        assert rates == pytest.approx(expected)
        size = 224 if branches == 2 else 64
        assert model.train()(torch.empty(2, 3, size, size)).shape == (2, 1000)


@pytest.mark.parametrize(("architecture", "blocks"), [("efficientnet_b0", 9), ("convnext_tiny", 18), ("swin_t", 12)])
def test_gates_take_the_place_of_torchvisions_layers(architecture, blocks):
    """Of EfficientNet-B0's 16 blocks 9 have a shortcut; a block of Swin calls its layer for each of two branches."""
    with torch.device("meta"):
        model = torchvision.models.get_model(architecture, weights=None)
        keys = list(model.state_dict())
        assert apply_stochastic_depth(model, drop_rate=0.2) == blocks
        assert list(model.state_dict()) == keys
        rates = [gate.drop_rate for gate in model.modules() if isinstance(gate, StochasticDepth)]
        assert rates == pytest.approx([0.2 * (index + 1) / blocks for index in range(blocks)])
        assert model.train()(torch.empty(2, 3, 64, 64)).shape == (2, 1000)


def test_torchvisions_block_scales_and_drops_its_branch():
    model = nn.Sequential(CNBlock(4, layer_scale=0.3, stochastic_depth_prob=0.9)).double()
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    branch = model[0].layer_scale * model[0].block(x)
    apply_stochastic_depth(model, drop_rate=0.5)
    torch.testing.assert_close(model.eval()(x), x + 0.5 * branch)
    model.train()
    outs = [model(x) for _ in range(20)]
    kept = [torch.allclose(out, x + branch) for out in outs]
    assert set(kept) == {True, False}
    assert all(is_kept or torch.equal(out, x) for out, is_kept in zip(outs, kept, strict=True))


def test_a_second_call_gives_new_gates():
    model, x = block()
    apply_stochastic_depth(model, drop_rate=0.5)
    assert apply_stochastic_depth(model, drop_rate=0.25) == 1
    assert [gate.drop_rate for gate in model.modules() if isinstance(gate, StochasticDepth)] == [0.25]
    torch.testing.assert_close(model.eval()(x), torch.relu(x + 0.75 * branch_of(x, model[0])))


def test_a_block_that_drops_already_is_refused():
    with torch.device("meta"):
        model = timm.create_model("resnet18", drop_path_rate=0.1)
    with pytest.raises(ValueError, match=r"a BasicBlock drops its branch already, with the rate .*drop_path_rate=0"):
        apply_stochastic_depth(model)
    assert not any(isinstance(module, StochasticDepth) for module in model.modules())
