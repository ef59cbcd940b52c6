import copy

import pytest
import torch
import torchvision
from torch import nn

from runner.methods.batch_channel_norm import (
    BatchChannelNorm2d,
    BatchChannelNormalization,
    apply_batch_channel_norm,
)
from runner.methods.ghost_batchnorm import GhostBatchNorm2d
from runner.methods.weight_standardization import apply_weight_standardization

pytestmark = pytest.mark.usefixtures("seeded")


def per_channel(values):
    return values.view(1, -1, 1, 1)


def affine_of(x, mean, var, layer):
    """The first step, with given statistics."""
    x_hat = (x - per_channel(mean)) / per_channel((var + layer.eps).sqrt())
    return x_hat * per_channel(layer.weight) + per_channel(layer.bias)


def group_norm(z, layer):
    """The second step: group norm by its formula, with a scale and a shift for each group."""
    flat = z.reshape(len(z), layer.num_groups, -1)
    mean = flat.mean(2, keepdim=True)
    var = ((flat - mean) ** 2).mean(2, keepdim=True)
    out = (flat - mean) / (var + layer.eps).sqrt()
    return (out * layer.group_weight[:, None] + layer.group_bias[:, None]).view_as(z)


def statistics(x, about=None):
    """The mean of each channel and the mean square about `about`, by default about the mean."""
    flat = x.detach().transpose(0, 1).flatten(1)
    mean = flat.mean(1)
    about = mean if about is None else about
    return mean, ((flat - about[:, None]) ** 2).mean(1)


def randomized(num_features=6, num_groups=3, **settings):
    layer = BatchChannelNorm2d(num_features, num_groups=num_groups, dtype=torch.float64, **settings)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, mean=1)
    return layer


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64) * 1.7 + 0.6


def check_gradients(out, expected, inputs):
    direction = torch.randn_like(expected)
    grads = torch.autograd.grad(out, inputs, direction)
    for grad, exact in zip(grads, torch.autograd.grad(expected, inputs, direction), strict=True):
        torch.testing.assert_close(grad, exact)


@pytest.mark.parametrize("shape", [(5, 6, 3, 4), (2, 6, 1, 1), (1, 6, 2, 3)])
@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_batch_statistics_follow_the_formulas(shape, num_groups):
    layer = randomized(num_groups=num_groups, eps=0.01)
    x = double(*shape).requires_grad_()
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    out, expected = layer(x), group_norm(affine_of(x, mean, var, layer), layer)
    torch.testing.assert_close(out, expected)
    check_gradients(out, expected, [x, *layer.parameters()])
    torch.testing.assert_close(layer.running_mean, 0.1 * mean.detach())
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * x.detach().var((0, 2, 3)))


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("shape", [(5, 6, 3, 4), (1, 6, 1, 1)])
def test_estimates_are_updated_first_and_are_constants(shape, momentum):
    layer = randomized(eps=0.01, momentum=momentum, estimate=True)
    mean, var = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    for count in 1, 2, 3:
        x = double(*shape).requires_grad_()
        step = 1 / count if momentum is None else momentum
        batch_mean, square = statistics(x, about=mean)
        mean, var = (1 - step) * mean + step * batch_mean, (1 - step) * var + step * square
        out, expected = layer(x), group_norm(affine_of(x, mean, var, layer), layer)
        torch.testing.assert_close(layer.running_mean, mean)
        torch.testing.assert_close(layer.running_var, var)
        torch.testing.assert_close(out, expected)
        check_gradients(out, expected, [x, *layer.parameters()])
        assert layer.num_batches_tracked == count


@pytest.mark.parametrize("estimate", [False, True])
def test_evaluation_takes_the_running_statistics_and_leaves_them(estimate):
    layer = randomized(estimate=estimate)
    layer(double(4, 6, 3, 3))
    before = copy.deepcopy(layer.state_dict())
    x = double(2, 6, 3, 3)
    out = layer.eval()(x)
    torch.testing.assert_close(out, group_norm(affine_of(x, layer.running_mean, layer.running_var, layer), layer))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert torch.equal(layer(x)[:1], layer(x[:1]))


def test_a_layer_may_run_twice_before_the_backward_pass():
    layer = randomized(estimate=True)
    x = double(3, 6, 2, 2).requires_grad_()
    first, second = layer(x), layer(2 * x)
    (first + second).pow(3).sum().backward()
    assert x.grad.isfinite().all()
    assert layer.num_batches_tracked == 2


@pytest.mark.parametrize("estimate", [False, True])
def test_channels_last_stays_and_gives_the_same(estimate):
    layer = randomized(estimate=estimate)
    other = copy.deepcopy(layer)
    x = double(4, 6, 3, 5)
    x_last = x.to(memory_format=torch.channels_last).requires_grad_()
    x.requires_grad_()
    out, out_last = layer(x), other(x_last)
    assert out_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, out_last)
    (grad,), (grad_last,) = torch.autograd.grad((out**3).sum(), x), torch.autograd.grad((out_last**3).sum(), x_last)
    torch.testing.assert_close(grad, grad_last)
    torch.testing.assert_close(layer.running_var, other.running_var)


@pytest.mark.parametrize("estimate", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_have_statistics_in_float32(dtype, estimate):
    # 4096 values near 300: their sum overflows float16, and bfloat16 cannot tell them apart from their mean.
    x = (double(16, 6, 16, 16) + 300).to(dtype).requires_grad_()
    layer = BatchChannelNorm2d(6, num_groups=3, estimate=estimate, momentum=1.0)
    out = layer(x)
    assert out.dtype == dtype
    mean, square = statistics(x.double(), about=torch.zeros(6) if estimate else None)
    count = x.numel() / 6
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    expected = square if estimate else square * count / (count - 1)
    torch.testing.assert_close(layer.running_var.double(), expected, rtol=1e-4, atol=1e-4)
    out.float().pow(3).mean().backward()
    assert x.grad.dtype == dtype
    assert layer.group_weight.grad.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("estimate", [False, True])
def test_without_affine(estimate):
    layer = BatchChannelNorm2d(6, num_groups=3, affine=False, estimate=estimate, dtype=torch.float64)
    assert not list(layer.parameters())
    x = double(4, 6, 3, 3)
    out = layer(x).view(4, 3, -1)
    torch.testing.assert_close(out.mean(2), torch.zeros(4, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(out.var(2, correction=0), torch.ones(4, 3, dtype=torch.float64), atol=1e-4, rtol=0)


def test_objects_and_keys_stay_and_checkpoints_of_a_torchvision_model_load_both_ways():
    model, plain = torchvision.models.resnet18(num_classes=4), torchvision.models.resnet18(num_classes=4)
    parameters, buffers, keys = dict(model.named_parameters()), dict(model.named_buffers()), set(model.state_dict())
    assert apply_batch_channel_norm(model, num_groups=16) == 20
    added = set(model.state_dict()) - keys
    assert len(added) == 40
    assert {key.rpartition(".")[2] for key in added} == {"group_weight", "group_bias"}
    assert keys < set(model.state_dict())
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in parameters.items())
    assert all(dict(model.named_buffers())[name] is buffer for name, buffer in buffers.items())
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert (set(missing), unexpected) == (added, [])
    model(torch.randn(4, 3, 32, 32))
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert (missing, set(unexpected)) == ([], added)
    assert torch.equal(plain.bn1.running_mean, model.bn1.running_mean)
    model.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("estimate", [False, True])
def test_an_optimizer_made_before_trains_what_was_there_and_one_made_afterwards_all(estimate):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    there = list(model.parameters())
    earlier = torch.optim.SGD(model.parameters(), lr=0.1)
    apply_batch_channel_norm(model, num_groups=2, estimate=estimate)
    later = torch.optim.SGD(model.parameters(), lr=0.1)
    for optimizer, trained in (earlier, there), (later, list(model.parameters())):
        before = [parameter.detach().clone() for parameter in trained]
        optimizer.zero_grad()
        model(torch.randn(10, 3, 4, 4)).pow(3).sum().backward()
        optimizer.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, trained, strict=True)]
        assert moved[0]
        assert all(moved[2:])  # a bias before a batch norm has no gradient but rounding


def test_with_weight_standardization():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    assert apply_batch_channel_norm(model, num_groups=2, estimate=True) == 1
    assert apply_weight_standardization(model) == 1
    x = double(2, 3, 6, 6)
    flat = model[0].weight.detach().flatten(1)
    standardized = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    convolved = torch.conv2d(x, standardized.view(4, 3, 3, 3), model[0].bias.detach())
    out = model(x)
    layer = model[1]
    expected = group_norm(affine_of(convolved, layer.running_mean, layer.running_var, layer), layer)
    torch.testing.assert_close(out, expected)
    out.pow(3).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_settings_dtype_training_flag_and_hooks_are_carried_over():
    plain = nn.BatchNorm2d(4, eps=0.1, momentum=None).double().eval()
    model = nn.Sequential(plain, nn.BatchNorm2d(4, affine=False, track_running_stats=False), nn.BatchNorm2d(4))
    model[2].register_parameter("bias", None)
    calls = []
    plain.register_forward_hook(lambda *_: calls.append(1))
    assert apply_batch_channel_norm(model, num_groups=2) == 3
    assert all(type(layer) is BatchChannelNorm2d for layer in model)
    assert (model[0].eps, model[0].momentum, model[0].training, model[1].training) == (0.1, None, False, True)
    assert model[0].group_weight.dtype == torch.float64
    assert model[1].running_mean is model[1].group_weight is None
    assert model[2].bias is None
    model[0](double(2, 4, 2, 2))
    assert calls == [1]
    assert model[2](model[1](torch.randn(2, 4, 2, 2))).shape == (2, 4, 2, 2)
    assert "num_groups=2, estimate=False" in repr(model)


def test_reset_parameters_brings_back_the_first_values():
    layer = BatchChannelNorm2d(4, num_groups=2)
    first = copy.deepcopy(layer.state_dict())
    assert torch.equal(layer.group_weight, torch.ones(2))
    assert torch.equal(layer.group_bias, torch.zeros(2))
    layer(torch.randn(3, 4, 2, 2))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer.reset_parameters()
    assert all(torch.equal(value, first[key]) for key, value in layer.state_dict().items())


def test_applied_again_it_changes_the_form_or_nothing():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    assert apply_batch_channel_norm(model, num_groups=2) == 2
    layers = list(model)
    assert apply_batch_channel_norm(model, num_groups=2) == 0
    assert apply_batch_channel_norm(model, num_groups=2, estimate=True) == 2
    assert list(model) == layers
    assert model[0].estimate
    with pytest.raises(ValueError, match=r"num_groups=4: 0 is a batch-channel norm of 2 groups already"):
        apply_batch_channel_norm(model, num_groups=4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3)), "nothing to change: looked for batch norm"),
        (nn.BatchNorm2d(4), "itself is a BatchNorm2d"),
        (nn.Sequential(nn.BatchNorm2d(4), nn.SyncBatchNorm(4)), "1 is a SyncBatchNorm: .* choose one of the two"),
        (nn.Sequential(nn.BatchNorm2d(4), GhostBatchNorm2d(4)), "1 is a GhostBatchNorm2d: .* choose one of the two"),
        (nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm1d(4)), "1 is a BatchNorm1d: .* made for images"),
        (nn.Sequential(nn.BatchNorm2d(4), nn.LazyBatchNorm2d()), "1 is a LazyBatchNorm2d: .* first forward pass"),
        (
            nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(5)),
            "num_groups=2 does not divide the 5 features of 1; .* 1, 5",
        ),
        (
            nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)),
            "estimate=True: 1 has no running statistics",
        ),
    ],
)
def test_what_cannot_be_turned_is_refused_before_anything_changes(model, message):
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        apply_batch_channel_norm(model, num_groups=2, estimate=True)
    assert [type(module) for module in model.modules()] == before


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"^num_groups=0"):
        apply_batch_channel_norm(nn.Sequential(nn.BatchNorm2d(3)), num_groups=0)
    with pytest.raises(ValueError, match=r"^num_groups=0"):
        BatchChannelNormalization(num_groups=0)
    with pytest.raises(ValueError, match=r"num_groups=32 does not divide the 48 features"):
        BatchChannelNorm2d(48)
    with pytest.raises(ValueError, match=r"estimate=True needs running statistics"):
        BatchChannelNorm2d(4, num_groups=2, track_running_stats=False, estimate=True)
    with pytest.raises(ValueError, match="expected 4D input"):
        BatchChannelNorm2d(4, num_groups=2, estimate=True)(torch.randn(8, 4))


def test_the_method_applies_its_settings():
    model = nn.Sequential(nn.BatchNorm2d(8))
    method = BatchChannelNormalization(num_groups=4, estimate=True)
    assert method.order == 10
    assert method.apply(model, torch.randn(2, 8, 4, 4)) == 1
    assert (model[0].num_groups, model[0].estimate) == (4, True)


@pytest.mark.parametrize("affine", [True, False])
def test_an_empty_batch_leaves_the_estimates(affine):
    norm = BatchChannelNorm2d(8, num_groups=2, estimate=True, affine=affine)
    norm(torch.randn(2, 8, 3, 3))
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    assert norm(torch.empty(0, 8, 3, 3)).shape == (0, 8, 3, 3)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
