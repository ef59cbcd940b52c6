"""Fused normalization, sum and ReLU in the models' blocks, beside torchvision's own forward functions."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from runner.layers import residual_blocks
from runner.layers.norm_relu import can_fuse
from runner.methods import apply_ghost_batchnorm, apply_stochastic_depth, remove_batchnorm
from runner.methods.ghost_batchnorm import GhostBatchNorm2d
from runner.models import deeplabv3plus_resnet18, resnet18, resnet20, resnet50

pytestmark = pytest.mark.usefixtures("seeded")
OURS = (residual_blocks.BasicBlock, residual_blocks.Bottleneck, residual_blocks.ResNet)
MODELS = {
    "resnet18": lambda: resnet18(num_classes=4),
    "resnet50": lambda: resnet50(num_classes=4, width=0.25),
    "resnet20": lambda: resnet20(num_classes=4),
    "deeplab": lambda: deeplabv3plus_resnet18(num_classes=4, head_channels=8, dropout=0),
}


@pytest.fixture
def fused(monkeypatch):
    """The layers whose `forward_relu` was called."""
    layers, original = [], GhostBatchNorm2d.forward_relu
    monkeypatch.setattr(
        GhostBatchNorm2d, "forward_relu", lambda self, *args: layers.append(self) or original(self, *args)
    )
    return layers


def ghost(model, channels_last=False):
    apply_ghost_batchnorm(model, ghost_batch_size=4)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def has_relu_after(name, layer):
    return isinstance(layer, GhostBatchNorm2d) and "downsample" not in name


def step(model, images, *, bf16=False):
    """The output, the gradients and the buffers of a step."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = model(images)
    out.float().square().mean().backward()
    return [out, *(parameter.grad for parameter in model.parameters()), *model.buffers()]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("name", "bf16"), [*((name, False) for name in MODELS), ("resnet18", True)])
def test_a_step_is_that_of_the_modules_one_after_the_other(name, channels_last, bf16, fused):
    model = ghost(MODELS[name](), channels_last)
    model = model if bf16 else model.double()
    apart = copy.deepcopy(model)
    for module in apart.modules():
        module.register_forward_hook(lambda *_: None)
    images = torch.randn(10, 3, 32, 32, dtype=next(model.parameters()).dtype)
    found = step(model, images, bf16=bf16)
    followed = [layer for name, layer in model.named_modules() if has_relu_after(name, layer)]
    assert set(fused) == set(followed)
    assert len(fused) == len(followed) > 16
    expected = step(apart, images, bf16=bf16)
    assert len(fused) == len(followed)
    tolerance = 0.1 if bf16 else 1e-9
    for one, other in zip(found, expected, strict=True):
        assert (one - other).double().norm() <= tolerance * other.double().norm() + tolerance


def test_a_model_is_torchvisions_in_all_that_is_printed_saved_traced_and_scripted():
    ours, theirs = resnet50(num_classes=4), torchvision.models.resnet50(num_classes=4)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    graphs = [torch.fx.symbolic_trace(ghost(copy.deepcopy(model))).graph for model in (ours, theirs)]
    assert str(graphs[0]) == str(graphs[1])
    assert type(pickle.loads(pickle.dumps(ours)).layer1[0]) is residual_blocks.Bottleneck
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_torch_jit_script_compiles_torchvisions_classes():
    model = resnet18(num_classes=4).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.jit.script(model)(images), model(images))


def test_a_hook_on_a_module_fires_and_nothing_in_its_block_is_fused(fused):
    model = ghost(resnet18(num_classes=4))
    calls = []
    for module in (model.relu, model.layer1[0].bn2, model.layer2[0].relu):
        module.register_forward_hook(lambda module, _inputs, out: calls.append((module, out.min().item())))
    model.layer3[0].bn1.register_forward_pre_hook(lambda *_: calls.append(None))
    model(torch.randn(8, 3, 32, 32)).sum().backward()
    assert len(fused) == 17 - 1 - 3 * 2
    assert len(calls) == 1 + 1 + 2 + 1
    assert all((call[1] < 0) == isinstance(call[0], GhostBatchNorm2d) for call in calls if call)
    x, block = torch.randn(8, 64, 8, 8), model.layer1[1]
    assert can_fuse(x, block.relu, block.bn1, block.bn2)
    block.bn2.register_full_backward_hook(lambda *_: None)
    assert can_fuse(x, block.relu, block.bn1)
    assert not can_fuse(x, block.relu, block.bn1, block.bn2)
    block.bn1.forward = block.bn1.forward
    assert not can_fuse(x, block.relu, block.bn1)
    handle = register_module_forward_hook(lambda *_: None)
    assert not can_fuse(x, model.layer4[1].relu, model.layer4[1].bn1)
    handle.remove()
    assert can_fuse(x, model.layer4[1].relu, model.layer4[1].bn1)


@pytest.mark.parametrize("change", ["evaluation", "one ghost batch", "compiler", "another activation", "no norm"])
def test_elsewhere_the_modules_are_called(change, fused):
    model = nn.Sequential(residual_blocks.BasicBlock(4, 4), residual_blocks.Bottleneck(4, 1))
    if change == "no norm":
        remove_batchnorm(model)
    else:
        ghost(model)
    if change == "another activation":
        model[0].relu = model[1].relu = nn.ReLU6()
    images = torch.randn(8, 4, 5, 5)
    model.train(change != "evaluation")
    apart = copy.deepcopy(model)
    for block in apart:
        block.__class__ = {OURS[0]: torchvision.models.resnet.BasicBlock}.get(
            type(block), torchvision.models.resnet.Bottleneck
        )
    if change == "one ghost batch":
        images = images[:3]
    if change == "compiler":
        model.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(images), apart(images))
    assert len(fused) == (5 if change == "one ghost batch" else 0)


def test_a_shortcut_of_another_dtype_is_added_as_torch_does():
    layer = GhostBatchNorm2d(4, ghost_batch_size=4)
    x, residual = torch.randn(8, 4, 3, 3, dtype=torch.bfloat16), torch.randn(8, 4, 3, 3)
    assert layer.forward_relu(x, residual).dtype == torch.float32
    torch.testing.assert_close(layer.forward_relu(x, residual), torch.relu(layer(x) + residual))


def test_in_a_block_with_a_gate_the_branch_is_fused(fused):
    model = ghost(resnet18(num_classes=4))
    apply_stochastic_depth(model, drop_rate=0.0)
    model(torch.randn(8, 3, 32, 32))
    assert len(fused) == 1 + 8  # the norms before the sum keep the gate between them and the ReLU
