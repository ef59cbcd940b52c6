import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from runner.methods.fixup import FixupBias, FixupScale
from runner.methods.ghost_batchnorm import apply_ghost_batchnorm
from runner.methods.none import NoNormalization, RemovedNorm, SkipInit, remove_batchnorm
from runner.methods.weight_standardization import apply_weight_standardization

pytestmark = pytest.mark.usefixtures("seeded")


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
    model = torchvision.models.resnet18(num_classes=4)
    assert NoNormalization(fixup=True).apply(model, torch.randn(2, 3, 32, 32)) == 20
    assert isinstance(model.layer1[0].bn2, FixupScale)


FIXUP = [("resnet18", BasicBlock, 8, 2), ("resnet50", Bottleneck, 16, 3)]


@pytest.mark.parametrize(("name", "block", "num_blocks", "num_convolutions"), FIXUP)
def test_fixup_puts_scalars_where_norms_stood(name, block, num_blocks, num_convolutions):
    model = torchvision.models.get_model(name, num_classes=4)
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert remove_batchnorm(model, fixup=True) == len(norms)
    blocks = {name for name, module in model.named_modules() if isinstance(module, block)}
    assert len(blocks) == num_blocks
    kinds = {kind: {key for key, m in model.named_modules() if type(m) is kind} for kind in (FixupScale, FixupBias)}
    assert kinds[FixupScale] == {f"{key}.bn{num_convolutions}" for key in blocks}
    assert kinds[FixupBias] == {"bn1"} | {f"{key}.bn{i}" for key in blocks for i in range(1, num_convolutions)}
    rest = norms - kinds[FixupScale] - kinds[FixupBias]
    assert rest == {key for key, module in model.named_modules() if type(module) is RemovedNorm}
    assert rest == {key for key in norms if "downsample" in key}
    scalars = {key: value for key, value in model.named_parameters() if value.ndim == 0}
    assert all(value == key.endswith("scale") for key, value in scalars.items())
    assert len(scalars) == 2 * num_blocks + len(kinds[FixupBias])


@pytest.mark.parametrize(("name", "block", "num_blocks", "num_convolutions"), FIXUP)
def test_fixup_draws_weights_by_the_rule_of_the_paper(name, block, num_blocks, num_convolutions):
    model = torchvision.models.get_model(name, num_classes=4)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7)
    remove_batchnorm(model, fixup=True)
    factor = num_blocks ** (-1 / (2 * num_convolutions - 2))
    for key, conv in model.named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        weight = conv.weight.double()
        if key.endswith(f".conv{num_convolutions}"):
            assert not weight.any()
            continue
        inside = "layer" in key and "downsample" not in key
        std = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5 * (factor if inside else 1)
        # Six standard errors of a standard deviation and of a mean, over 53 layers.
        assert (weight.std() / std).sub(1).abs() < 6 / (2 * weight.numel()) ** 0.5
        assert weight.mean().abs() < 6 * std / weight.numel() ** 0.5
    assert not model.fc.weight.any()
    assert not model.fc.bias.any()
    assert not model(torch.randn(2, 3, 32, 32)).any()


def test_fixup_draws_from_the_global_generator():
    models = [torchvision.models.resnet18(num_classes=4) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.manual_seed(seed)
        remove_batchnorm(model, fixup=True)
    first, again, other = (model.state_dict() for model in models)
    assert all(torch.equal(again[key], value) for key, value in first.items())
    assert not torch.equal(other["conv1.weight"], first["conv1.weight"])


def test_a_block_under_fixup_starts_as_its_shortcut_and_computes_the_formula():
    model = torchvision.models.resnet18(num_classes=4).double()
    remove_batchnorm(model, fixup=True)
    block = model.layer2[0]
    x = torch.randn(2, 64, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(block(x), torch.conv2d(x, block.downsample[0].weight, stride=2).relu())
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1)
    hidden = (torch.conv2d(x, block.conv1.weight, stride=2, padding=1) + block.bn1.fixup_bias).relu()
    branch = torch.conv2d(hidden, block.conv2.weight, padding=1) * block.bn2.fixup_scale + block.bn2.fixup_bias
    torch.testing.assert_close(block(x), (branch + torch.conv2d(x, block.downsample[0].weight, stride=2)).relu())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block.float()(x.bfloat16()).dtype == torch.bfloat16


def test_fixup_trains_every_parameter_and_an_optimizer_made_before_what_was_there():
    model = torchvision.models.resnet18(num_classes=4)
    earlier = torch.optim.SGD(model.parameters(), lr=0.1)
    remove_batchnorm(model, fixup=True)
    there = [parameter for parameter in model.parameters() if parameter.ndim > 0]
    x, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    for optimizer, trained in (earlier, there), (torch.optim.SGD(model.parameters(), lr=0.01), [*model.parameters()]):
        before = [parameter.detach().clone() for parameter in trained]
        for _ in range(3):  # first the classifier alone has a gradient, then the ends of the branches, then all
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert not any(torch.equal(a, b) for a, b in zip(before, trained, strict=True))


class OneConvolution(nn.Module):
    """A block with a branch of one convolution, for which the paper's exponent is infinite."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.downsample = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), None

    def forward(self, x):
        return x + self.bn1(self.conv1(x))


def test_fixup_on_other_models():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), OneConvolution(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    nn.init.ones_(model[0].bias)
    assert remove_batchnorm(model, fixup=True) == 2
    assert [type(model[1].bn1), type(model[2])] == [FixupScale, FixupBias]
    assert not model[1].conv1.weight.any()
    assert not model[1].conv1.bias.any()
    assert not model[0].bias.any()
    assert remove_batchnorm(model, fixup=True) == 0
    assert remove_batchnorm(model) == 0
    with pytest.raises(ValueError, match="nothing to change"):
        remove_batchnorm(model, skipinit=True)
    with torch.device("meta"):
        model = torchvision.models.resnet18()
        assert remove_batchnorm(model, fixup=True) == 20
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (torchvision.models.resnet18(num_classes=4), {"skipinit": True}, r"^fixup=True: .* skipinit=True"),
        (nn.ModuleList([OneConvolution()]), {}, r"^fixup=True: cannot tell .* get_classifier\(\)"),
        (nn.Sequential(OtherBlock(norms_first=True), nn.Linear(4, 2)), {}, r"^fixup=True: 0, a OtherBlock, looks"),
        (
            nn.Sequential(nn.BatchNorm2d(4), nn.Linear(4, 2)),
            {},
            r"^fixup=True: looked for residual blocks .* none",
        ),
    ],
)
def test_where_fixup_cannot_be_done_the_model_is_left_alone(model, settings, message):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        remove_batchnorm(model, fixup=True, **settings)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert list(model.state_dict()) == list(before)


@pytest.mark.parametrize("settings", [{}, {"skipinit": True}])
def test_with_weight_standardization(settings):
    model = torchvision.models.resnet18(num_classes=4)
    assert remove_batchnorm(model, **settings) == 20
    assert apply_weight_standardization(model) == 20
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
