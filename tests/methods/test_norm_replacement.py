"""What the layers that stand in the place of batch norms have in common."""

import copy
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from runner.methods.batch_channel_norm import BatchChannelNorm2d, apply_batch_channel_norm
from runner.methods.ghost_batchnorm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    apply_ghost_batchnorm,
)
from runner.methods.groupnorm import LayerNormMethod, apply_layer_norm
from runner.methods.instancenorm import InstanceNormMethod, apply_instance_norm
from runner.methods.weight_standardization import apply_weight_standardization

BATCH_CHANNEL_NORMS = [
    pytest.param(partial(apply_batch_channel_norm, num_groups=2), id="batch_channel_norm"),
    pytest.param(partial(apply_batch_channel_norm, num_groups=2, estimate=True), id="batch_channel_norm-estimate"),
]
WITH_STATISTICS = [pytest.param(partial(apply_ghost_batchnorm, ghost_batch_size=4), id="ghost"), *BATCH_CHANNEL_NORMS]
OF_A_SAMPLE = [pytest.param(apply_instance_norm, id="instance"), pytest.param(apply_layer_norm, id="layer")]


pytestmark = pytest.mark.usefixtures("seeded")


# ---- instance and layer norm: no statistics of a batch


def normalized(flat, eps):
    """By the formula, over the last dimension."""
    mean = flat.sum(-1, keepdim=True) / flat.shape[-1]
    var = ((flat - mean) ** 2).sum(-1, keepdim=True) / flat.shape[-1]
    return (flat - mean) / (var + eps) ** 0.5


def reference(apply, x, weight, bias, eps):
    """Instance norm over the positions of a channel, layer norm over all of a sample."""
    out = normalized(x.flatten(2 if apply is apply_instance_norm else 1), eps).view(x.shape)
    shape = (-1, *[1] * (x.dim() - 2))
    return out * weight.view(shape) + bias.view(shape)


@pytest.mark.parametrize(
    ("apply", "norm", "kind", "shape"),
    [
        (apply_instance_norm, nn.BatchNorm1d(7, eps=0.01), nn.InstanceNorm1d, (4, 7, 5)),
        (apply_instance_norm, nn.BatchNorm2d(7, eps=0.01), nn.InstanceNorm2d, (3, 7, 3, 5)),
        (apply_instance_norm, nn.BatchNorm2d(7, eps=0.01, momentum=None), nn.InstanceNorm2d, (1, 7, 1, 2)),
        (apply_instance_norm, nn.BatchNorm3d(7, eps=0.01), nn.InstanceNorm3d, (4, 7, 2, 3, 1)),
        (apply_instance_norm, nn.SyncBatchNorm(7, eps=0.01), nn.InstanceNorm2d, (4, 7, 3, 5)),
        (apply_instance_norm, GhostBatchNorm1d(7, eps=0.01), nn.InstanceNorm1d, (4, 7, 5)),
        (apply_instance_norm, GhostBatchNorm2d(7, eps=0.01), nn.InstanceNorm2d, (4, 7, 3, 5)),
        (apply_instance_norm, GhostBatchNorm3d(7, eps=0.01), nn.InstanceNorm3d, (4, 7, 2, 3, 2)),
        (apply_layer_norm, nn.BatchNorm1d(7, eps=0.01), nn.GroupNorm, (4, 7)),
        (apply_layer_norm, nn.BatchNorm1d(7, eps=0.01), nn.GroupNorm, (4, 7, 5)),
        (apply_layer_norm, nn.BatchNorm2d(7, eps=0.01), nn.GroupNorm, (3, 7, 3, 5)),
        (apply_layer_norm, nn.BatchNorm2d(7, eps=0.01), nn.GroupNorm, (1, 7, 1, 1)),
        (apply_layer_norm, nn.BatchNorm3d(7, eps=0.01), nn.GroupNorm, (4, 7, 2, 3, 1)),
        (apply_layer_norm, nn.SyncBatchNorm(7, eps=0.01), nn.GroupNorm, (4, 7, 3, 5)),
        (apply_layer_norm, GhostBatchNorm2d(7, eps=0.01, ghost_batch_size=2), nn.GroupNorm, (4, 7, 3, 5)),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_every_kind_becomes_the_norm_of_the_formula(apply, norm, kind, shape, training):
    norm = copy.deepcopy(norm).double().train(training)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    model = nn.Sequential(norm)
    assert apply(model) == 1
    assert isinstance(model[0], kind)
    assert model[0].weight is norm.weight
    assert model[0].bias is norm.bias
    assert model[0].training == training
    assert not list(model.buffers())
    x = torch.randn(shape, dtype=torch.float64) * 2 + 3
    inputs = [x.requires_grad_(), norm.weight, norm.bias]
    out, expected = model(x), reference(apply, x, norm.weight, norm.bias, 0.01)
    torch.testing.assert_close(out, expected)
    direction = torch.randn_like(out)
    for grad, exact in zip(
        torch.autograd.grad(out, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(grad, exact)


@pytest.mark.parametrize("apply", OF_A_SAMPLE)
def test_parameters_stay_and_checkpoints_of_a_torchvision_model_load_both_ways(apply):
    model, plain = torchvision.models.resnet18(num_classes=4), torchvision.models.resnet18(num_classes=4)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert apply(model) == 20
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not missing
    assert len(unexpected) == 60
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert {key for key in missing if "running_" in key} == {
        name for name, _ in plain.named_buffers() if "running_" in name
    }


@pytest.mark.parametrize("apply", OF_A_SAMPLE)
def test_with_weight_standardization(apply):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    assert apply(model) == 1
    assert apply_weight_standardization(model) == 1
    x = torch.randn(2, 3, 6, 6)
    flat = model[0].weight.detach().flatten(1)
    standardized = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    convolved = torch.conv2d(x, standardized.view(5, 3, 3, 3), model[0].bias)
    expected = reference(apply, convolved, torch.ones(5), torch.zeros(5), 1e-5)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    model(x).pow(3).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("apply", OF_A_SAMPLE)
def test_without_affine_or_bias(apply):
    model = nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4))
    model[1].register_parameter("bias", None)
    assert apply(model) == 2
    assert not model[0].affine
    assert model[1].bias is None
    assert list(model.state_dict()) == ["1.weight"]
    assert model(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)


@pytest.mark.parametrize(
    ("apply", "model", "message"),
    [
        (apply_instance_norm, nn.Sequential(nn.GroupNorm(3, 3)), "nothing to change: looked for batch norm"),
        (apply_layer_norm, nn.Sequential(nn.Linear(3, 3)), "nothing to change: looked for batch norm"),
        (apply_instance_norm, nn.BatchNorm2d(32), "itself is a BatchNorm2d"),
        (apply_layer_norm, nn.BatchNorm2d(32), "itself is a BatchNorm2d"),
        (
            apply_instance_norm,
            nn.Sequential(nn.BatchNorm2d(32), nn.LazyBatchNorm2d()),
            "1 is a LazyBatchNorm2d: .* become instance norms",
        ),
        (
            apply_layer_norm,
            nn.Sequential(nn.BatchNorm2d(32), nn.LazyBatchNorm2d()),
            "1 is a LazyBatchNorm2d: .* become layer norms",
        ),
    ],
)
def test_what_cannot_be_replaced_is_refused_before_anything_changes(apply, model, message):
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        apply(model)
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize(("method", "kind"), [(InstanceNormMethod, nn.InstanceNorm2d), (LayerNormMethod, nn.GroupNorm)])
def test_the_method_applies_it(method, kind):
    model = nn.Sequential(nn.BatchNorm2d(8))
    assert method.order == 10
    assert method().apply(model, torch.randn(2, 8, 4, 4)) == 1
    assert isinstance(model[0], kind)
    assert kind is nn.InstanceNorm2d or model[0].num_groups == 1


# ---- ghost batch norm and batch-channel norm: running statistics stay


@pytest.mark.parametrize("apply", WITH_STATISTICS)
def test_autocast_gives_the_dtypes_of_plain_batch_norm(apply):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    converted = copy.deepcopy(plain)
    apply(converted)
    dtypes = []
    for model in plain, converted:
        model[1].register_forward_hook(lambda module, args, out: dtypes.append((args[0].dtype, out.dtype)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(torch.randn(10, 3, 8, 8)).float().square().mean().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
        assert model[1].running_mean.dtype == model[1].running_var.dtype == torch.float32
    assert dtypes[0] == dtypes[1] == (torch.bfloat16, torch.bfloat16)
    assert converted(torch.randn(10, 3, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    "layer",
    [
        GhostBatchNorm2d(6, ghost_batch_size=4, dtype=torch.float64),
        BatchChannelNorm2d(6, num_groups=3, estimate=True, dtype=torch.float64),
    ],
    ids=["ghost", "batch_channel_norm"],
)
def test_compiled_it_gives_the_same(layer):
    layer = copy.deepcopy(layer)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, mean=1)
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="aot_eager")
    x = torch.randn(10, 6, 2, 2, dtype=torch.float64) * 1.7 + 0.6
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = compiled(a), eager(b)
    (out**3).sum().backward(), (expected**3).sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(layer.running_var, eager.running_var)


# ---- all of them


@pytest.mark.parametrize("apply", [*WITH_STATISTICS, *OF_A_SAMPLE])
def test_a_shared_layer_counts_once_and_applied_again_nothing_changes(apply):
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(shared, nn.Sequential(shared))
    assert apply(model) == 1
    layer = model[0]
    assert model[1][0] is layer
    assert apply(model) == 0
    assert model[0] is model[1][0] is layer


@pytest.mark.parametrize("apply", [*WITH_STATISTICS, *OF_A_SAMPLE])
def test_on_the_meta_device_nothing_leaves_it(apply):
    with torch.device("meta"):
        model = torchvision.models.resnet18()
        assert apply(model) == 20
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 1000)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
