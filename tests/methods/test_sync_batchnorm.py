import copy

import pytest
import torch
import torchvision
from torch import nn

from runner.layers import sync_batch_norm
from runner.methods.batch_channel_norm import BatchChannelNorm2d
from runner.methods.ghost_batchnorm import GhostBatchNorm2d
from runner.methods.sync_batchnorm import SyncBatchNormMethod, apply_sync_batchnorm
from runner.methods.weight_standardization import apply_weight_standardization

pytestmark = pytest.mark.usefixtures("seeded")


def test_objects_keys_and_checkpoints_stay():
    model, plain = torchvision.models.resnet18(num_classes=4), torchvision.models.resnet18(num_classes=4)
    parameters, buffers, keys = dict(model.named_parameters()), dict(model.named_buffers()), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert apply_sync_batchnorm(model) == 20
    assert sum(isinstance(module, sync_batch_norm.SyncBatchNorm) for module in model.modules()) == 20
    assert list(model.state_dict()) == keys
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert all(buffers[name] is buffer for name, buffer in model.named_buffers())
    model.load_state_dict(plain.state_dict(), strict=True)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    plain.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (5, 3)), (nn.BatchNorm2d, (5, 3, 2, 3))])
def test_on_one_device_it_is_batch_norm(kind, shape, momentum):
    plain = kind(3, eps=0.1, momentum=momentum).double()
    nn.init.normal_(plain.weight), nn.init.normal_(plain.bias)
    model = nn.Sequential(copy.deepcopy(plain))
    assert apply_sync_batchnorm(model) == 1
    assert type(model[0]) is sync_batch_norm.SyncBatchNorm
    assert model[0].eps == 0.1
    for _ in range(2):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(model[0].running_var, plain.running_var)
    assert model[0].num_batches_tracked == 2


def test_shared_layers_hooks_and_training_flags_stay():
    """torch's converter on a whole model makes two of a layer under two names, and forgets hooks."""
    shared = nn.BatchNorm2d(4)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Sequential(shared)})
    seen = []
    handle = shared.register_forward_hook(lambda *_: seen.append(1))
    shared.eval()
    shared.weight.requires_grad_(False)
    assert apply_sync_batchnorm(model) == 1
    assert model["a"] is model["b"] is model["c"][0]
    assert type(model["a"]) is sync_batch_norm.SyncBatchNorm
    assert not model["a"].training
    assert not model["a"].weight.requires_grad
    model["a"](torch.randn(2, 4, 3, 3))
    handle.remove()
    model["a"](torch.randn(2, 4, 3, 3))
    assert seen == [1]


def test_without_affine_or_statistics_and_on_the_meta_device():
    model = nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.BatchNorm3d(4, track_running_stats=False))
    assert apply_sync_batchnorm(model) == 2
    assert list(model.state_dict()) == [
        "0.running_mean",
        "0.running_var",
        "0.num_batches_tracked",
        "1.weight",
        "1.bias",
    ]
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    assert apply_sync_batchnorm(model) == 20
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_applied_again_and_to_what_is_left():
    model = nn.Sequential(nn.BatchNorm2d(4))
    apply_sync_batchnorm(model)
    layer = model[0]
    assert apply_sync_batchnorm(model) == 0
    model.append(nn.BatchNorm2d(4))
    assert apply_sync_batchnorm(model) == 1
    assert model[0] is layer


def test_with_weight_standardization():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert apply_sync_batchnorm(model) == 1
    assert apply_weight_standardization(model) == 1
    model(torch.randn(2, 3, 5, 5)).pow(3).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3)), "nothing to change: looked for batch norm"),
        (nn.BatchNorm2d(3), "itself is a BatchNorm2d"),
        (nn.Sequential(nn.BatchNorm2d(3), GhostBatchNorm2d(3)), "1 is a GhostBatchNorm2d: .* choose one of the two"),
        (nn.Sequential(nn.BatchNorm2d(4), BatchChannelNorm2d(4, num_groups=2)), "1 is a BatchChannelNorm2d"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.LazyBatchNorm2d()), "1 is a LazyBatchNorm2d: .* first forward pass"),
    ],
)
def test_what_cannot_be_turned_is_refused_before_anything_changes(model, message):
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        apply_sync_batchnorm(model)
    assert [type(module) for module in model.modules()] == before


def test_the_method_applies_it():
    model = nn.Sequential(nn.BatchNorm2d(8))
    assert SyncBatchNormMethod.order == 20
    assert SyncBatchNormMethod().apply(model, torch.randn(2, 8, 4, 4)) == 1
