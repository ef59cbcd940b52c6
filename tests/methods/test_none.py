import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from runner.methods.ghost_batchnorm import apply_ghost_batchnorm
from runner.methods.none import NoNormalization, SkipInit, remove_batchnorm


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_every_batch_norm_becomes_the_identity():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(4)))
    without = nn.Sequential(copy.deepcopy(model[0]), nn.ReLU())
    assert remove_batchnorm(model) == 2
    assert isinstance(model[1], nn.Identity)
    assert isinstance(model[3][0], nn.Identity)
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(model(x), without(x))


def test_other_kinds_of_batch_norm_are_removed_and_shared_ones_counted_once():
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(shared, shared, nn.SyncBatchNorm(4), nn.BatchNorm1d(4), nn.BatchNorm3d(4))
    apply = copy.deepcopy(nn.Sequential(model[0], model[3]))
    apply_ghost_batchnorm(apply)
    model.append(apply)
    assert remove_batchnorm(model) == 6
    assert not list(model.parameters())


@pytest.mark.parametrize(("name", "block", "last"), [("resnet18", BasicBlock, "bn2"), ("resnet50", Bottleneck, "bn3")])
def test_skipinit_takes_the_last_norm_of_each_branch(name, block, last):
    model = torchvision.models.get_model(name, num_classes=4)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert remove_batchnorm(model, skipinit=True) == norms
    blocks = [module for module in model.modules() if isinstance(module, block)]
    gains = {module for module in model.modules() if isinstance(module, SkipInit)}
    assert gains == {getattr(module, last) for module in blocks}
    names = {name for name, module in model.named_modules() if isinstance(module, block)}
    assert {key for key in model.state_dict() if "skipinit_gain" in key} == {
        f"{name}.{last}.skipinit_gain" for name in names
    }
    assert all(gain.skipinit_gain.shape == () and gain.skipinit_gain == 0 for gain in gains)


def test_a_block_starts_as_its_shortcut_and_the_gain_learns():
    block = BasicBlock(4, 4)
    remove_batchnorm(block, skipinit=True)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x.relu())
    block(x).square().sum().backward()
    assert block.bn2.skipinit_gain.grad != 0
    with torch.no_grad():
        block.bn2.skipinit_gain.fill_(0.5)
    torch.testing.assert_close(block(x), (0.5 * block.conv2(block.conv1(x).relu()) + x).relu())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block(x.bfloat16()).dtype == torch.bfloat16


class OtherBlock(nn.Module):
    """A block of another library: its shortcut has a batch norm of its own."""

    def __init__(self, norms_first=False):
        super().__init__()
        if norms_first:
            self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        else:
            self.conv1, self.bn1 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.shortcut = nn.Sequential(nn.BatchNorm2d(4))


def test_blocks_of_other_libraries():
    model = nn.Sequential(OtherBlock())
    assert remove_batchnorm(model, skipinit=True) == 2
    assert isinstance(model[0].bn1, SkipInit)
    assert isinstance(model[0].shortcut[0], nn.Identity)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(OtherBlock(norms_first=True)), "0, a OtherBlock, looks like a residual block"),
        (torchvision.models.vgg11_bn(num_classes=4), "looked for residual blocks .* in a VGG"),
    ],
)
def test_skipinit_where_the_branch_cannot_be_told_leaves_the_model_alone(model, message):
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        remove_batchnorm(model, skipinit=True)
    assert [type(module) for module in model.modules()] == before
    assert remove_batchnorm(model) > 0


def test_the_scalar_has_dtype_and_device_of_the_norm():
    model = nn.Sequential(BasicBlock(4, 4)).double()
    remove_batchnorm(model, skipinit=True)
    assert model[0].bn2.skipinit_gain.dtype == torch.float64
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    assert remove_batchnorm(model, skipinit=True) == 20
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_an_optimizer_made_before_trains_what_was_there():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    remove_batchnorm(model)
    before = model[0].weight.detach().clone()
    model(torch.randn(2, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model[0].weight)


class NormWithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Identity()), "nothing to change: looked for batch norm"),
        (nn.BatchNorm2d(3), "itself is a BatchNorm2d"),
        (nn.Sequential(nn.BatchNorm2d(3), NormWithActivation(3)), "1 is a NormWithActivation"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.LazyBatchNorm2d()), "1 is a LazyBatchNorm2d"),
    ],
)
def test_what_cannot_be_removed_is_refused_before_anything_changes(model, message):
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        remove_batchnorm(model)
    assert [type(module) for module in model.modules()] == before


def test_applied_again():
    model = nn.Sequential(BasicBlock(4, 4))
    assert remove_batchnorm(model, skipinit=True) == 2
    assert remove_batchnorm(model, skipinit=True) == 0
    assert remove_batchnorm(model) == 0
    model = nn.Sequential(BasicBlock(4, 4))
    remove_batchnorm(model)
    with pytest.raises(ValueError, match="nothing to change"):
        remove_batchnorm(model, skipinit=True)


def test_the_method_applies_its_settings():
    model = nn.Sequential(BasicBlock(4, 4))
    assert NoNormalization.order == 10
    assert NoNormalization(skipinit=True).apply(model, torch.randn(2, 4, 4, 4)) == 2
    assert isinstance(model[0].bn2, SkipInit)
