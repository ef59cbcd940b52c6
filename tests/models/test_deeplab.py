"""DeepLabv3+ against torchvision's dilated networks and the counts of Composer's head."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from runner.methods import apply_stochastic_depth, apply_weight_standardization
from runner.models import deeplabv3plus_resnet18, deeplabv3plus_resnet50, deeplabv3plus_resnet101

BUILDERS = {18: deeplabv3plus_resnet18, 50: deeplabv3plus_resnet50, 101: deeplabv3plus_resnet101}


def with_statistics(model):
    """Batch norms that are not the identity, so that a wrong order shows."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1), nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


@pytest.mark.parametrize(("depth", "output_stride"), [(18, 8), (18, 16), (50, 8), (50, 16)])
def test_the_backbone_holds_the_strided_networks_features_at_every_place_of_its_own(depth, output_stride):
    """Dilation in the place of a stride only adds positions: every k-th is that of the plain network (a trous)."""
    plain = with_statistics(torchvision.models.get_model(f"resnet{depth}")).double()
    model = BUILDERS[depth](num_classes=3, output_stride=output_stride, head_channels=8).double().eval()
    missing, unexpected = model.backbone.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, set(unexpected)) == ([], {"fc.weight", "fc.bias"})
    images = torch.randn(1, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        low, high = model.backbone(images)
        x = plain.maxpool(plain.relu(plain.bn1(plain.conv1(images))))
        expected_low = plain.layer1(x)
        expected = plain.layer4(plain.layer3(plain.layer2(expected_low)))
    assert torch.equal(low, expected_low)
    step = 32 // output_stride
    assert high.shape[2:] == (96 // output_stride, 128 // output_stride)
    torch.testing.assert_close(high[:, :, ::step, ::step], expected)


@pytest.mark.parametrize(("output_stride", "dilated"), [(8, [False, True, True]), (16, [False, False, True])])
def test_the_backbone_is_torchvisions_dilated_one(output_stride, dilated):
    plain = with_statistics(torchvision.models.resnet50(replace_stride_with_dilation=dilated))
    model = deeplabv3plus_resnet50(num_classes=3, output_stride=output_stride, head_channels=8).eval()
    model.backbone.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(1, 3, 65, 70)
    with torch.no_grad():
        x = plain.layer1(plain.maxpool(plain.relu(plain.bn1(plain.conv1(images)))))
        expected = plain.layer4(plain.layer3(plain.layer2(x)))
        assert torch.equal(model.backbone(images)[1], expected)


@pytest.mark.parametrize(("separable", "convolutions"), [(True, 15), (False, 10)])
def test_the_head_has_the_convolutions_that_weight_standardization_is_to_leave_out(separable, convolutions):
    model = deeplabv3plus_resnet50(num_classes=5, separable=separable, head_channels=16).eval()
    assert sum(isinstance(module, nn.Conv2d) for module in model.head.modules()) == convolutions
    images = torch.randn(1, 3, 32, 32)
    assert apply_weight_standardization(model, n_last_layers_ignore=convolutions, example_input=images) == 53
    assert all(type(module) is not nn.Conv2d for module in model.backbone.modules())
    assert all(type(module) is nn.Conv2d for module in model.head.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize(("output_stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18])])
def test_rates_and_channels_of_the_published_head(output_stride, rates):
    with torch.device("meta"):
        model = deeplabv3plus_resnet101(output_stride=output_stride)
    dilations = [module.dilation[0] for module in model.head.modules() if isinstance(module, nn.Conv2d)]
    assert [dilation for dilation in dilations if dilation > 1] == rates
    assert (model.head.bottleneck[0].in_channels, model.head.bottleneck[0].out_channels) == (2560, 512)
    assert (model.head.low_level[0].in_channels, model.head.low_level[0].out_channels) == (256, 48)
    assert model.head.classifier.out_channels == 150


def test_the_papers_head_joins_the_branches_by_a_1x1_convolution_of_256_channels():
    """The pyramid and the decoder of arXiv 1802.02611, from the layers one by one."""
    torch.manual_seed(0)
    model = with_statistics(deeplabv3plus_resnet50(num_classes=3, head="paper")).double()
    head = model.head
    assert head.bottleneck[0].weight.shape == (256, 5 * 256, 1, 1)
    low, high = torch.randn(1, 256, 12, 10, dtype=torch.float64), torch.randn(1, 2048, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        pooled = head.image_pool(high.mean((2, 3), keepdim=True)).expand(-1, -1, 6, 5)
        joined = torch.cat([pooled, *(branch(high) for branch in head.aspp)], 1)
        weight, norm = head.bottleneck[0].weight[:, :, 0, 0], head.bottleneck[1]
        x = torch.einsum("oc,nchw->nohw", weight, joined)
        mean, var, gain, shift = (
            t.view(-1, 1, 1) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        x = ((x - mean) / (var + norm.eps).sqrt() * gain + shift).clamp(min=0)
        x = nn.functional.interpolate(x, (12, 10), mode="bilinear", align_corners=False)
        expected = head.classifier(head.decoder(torch.cat([x, head.low_level(low)], 1)))
        torch.testing.assert_close(head(low, high), expected)


def test_of_the_papers_head_the_channels_can_be_chosen_and_composers_is_the_default():
    with torch.device("meta"):
        heads = [deeplabv3plus_resnet50(**settings).head for settings in ({}, {"head": "paper", "head_channels": 8})]
    assert [tuple(head.bottleneck[0].weight.shape) for head in heads] == [(512, 2560, 3, 3), (8, 40, 1, 1)]
    with pytest.raises(ValueError, match=r"^head=papers: it must be one of composer, paper"):
        deeplabv3plus_resnet50(head="papers")


@pytest.mark.parametrize("size", [(33, 47), (64, 64), (1, 40)])
def test_any_image_gives_logits_of_its_own_size_and_everything_trains(size):
    torch.manual_seed(0)
    model = deeplabv3plus_resnet18(num_classes=4, head_channels=8, dropout=0.0)
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 4, *size)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_methods_apply_to_the_backbone_alone():
    model = deeplabv3plus_resnet50(num_classes=4, head_channels=8)
    assert apply_stochastic_depth(model, drop_rate=0.5) == 16
    assert apply_weight_standardization(model.backbone) == 53
    assert model.train()(torch.randn(2, 3, 32, 32)).shape == (2, 4, 32, 32)


@pytest.mark.parametrize(("depth", "last_norm"), [(18, "bn2"), (50, "bn3")])
def test_zero_init_residual_is_for_the_backbones_branches(depth, last_norm):
    for zero in (False, True):
        model = BUILDERS[depth](num_classes=3, head_channels=8, zero_init_residual=zero)
        blocks = [module for module in model.modules() if isinstance(module, BasicBlock | Bottleneck)]
        assert {bool(getattr(block, last_norm).weight.any()) for block in blocks} == {not zero}
        assert all(block.bn1.weight.min() == 1 for block in blocks)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"^output_stride=4: it must be one of 8, 16"):
        deeplabv3plus_resnet18(output_stride=4)


def test_autocast_on_a_gpu_moves_two_bytes_a_number(cuda_autocast, inputs_of_convolutions):
    """Autocast interpolates in float32: of the features that would double what the decoder reads."""
    with torch.device("meta"):
        model = deeplabv3plus_resnet18(num_classes=4)
    seen = inputs_of_convolutions(model)
    with cuda_autocast():
        logits = model.to_empty(device="cuda")(torch.empty(2, 3, 64, 64, device="cuda"))
    assert logits.dtype == torch.float32  # for the loss
    assert {name for name, dtype in seen if dtype == torch.float32} == {"backbone.conv1"}
