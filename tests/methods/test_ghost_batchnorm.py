import copy

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from runner.methods.ghost_batchnorm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    GhostBatchNormMethod,
    apply_ghost_batchnorm,
    ghost_batch_sizes,
)

PLAIN = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
GHOST = {2: GhostBatchNorm1d, 3: GhostBatchNorm1d, 4: GhostBatchNorm2d, 5: GhostBatchNorm3d}


pytestmark = pytest.mark.usefixtures("seeded")


def chunks(x, ghost_size):
    """The ghost batches by the rule of the docstring, written another way."""
    full, rest = len(x) // ghost_size, len(x) % ghost_size
    if full == 0:
        return [x]
    cuts = [x[i * ghost_size : (i + 1) * ghost_size] for i in range(full)]
    if rest and rest < ghost_size / 2:
        cuts[-1] = x[(full - 1) * ghost_size :]
    elif rest:
        cuts.append(x[full * ghost_size :])
    return cuts


def per_channel(value, x):
    return value.view(1, -1, *[1] * (x.dim() - 2))


def reference(x, weight, bias, ghost_size, eps=1e-5):
    """Output, means and unbiased variances by the formulas."""
    outs, means, variances = [], [], []
    for chunk in chunks(x, ghost_size):
        flat = chunk.transpose(0, 1).flatten(1)
        mean = flat.sum(1) / flat.shape[1]
        squares = ((flat - mean[:, None]) ** 2).sum(1)
        out = (chunk - per_channel(mean, x)) / per_channel((squares / flat.shape[1] + eps).sqrt(), x)
        outs.append(out * per_channel(weight, x) + per_channel(bias, x))
        means.append(mean)
        variances.append(squares / (flat.shape[1] - 1))
    return torch.cat(outs), means, variances


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 1.7 + 0.6


def randomized(layer):
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, layer.num_features))
        layer.bias.copy_(torch.linspace(-1, 1, layer.num_features))
    return layer


@pytest.mark.parametrize(
    ("batch", "ghost_size", "sizes"),
    [
        (7, 16, [7]), (15, 16, [15]), (16, 16, [16]), (17, 16, [17]), (23, 16, [23]), (24, 16, [16, 8]),
        (31, 16, [16, 15]), (33, 16, [16, 17]), (39, 16, [16, 23]), (40, 16, [16, 16, 8]), (100, 16, [16] * 5 + [20]),
        (100, 32, [32, 32, 36]), (64, 32, [32, 32]), (7, 3, [3, 4]), (8, 3, [3, 3, 2]), (3, 1, [1, 1, 1]), (0, 4, [0]),
    ],
)  # fmt: skip
def test_sizes_of_ghost_batches(batch, ghost_size, sizes):
    assert ghost_batch_sizes(batch, ghost_size) == sizes


@given(batch=st.integers(1, 300), ghost_size=st.integers(1, 70))
def test_every_ghost_batch_but_the_last_has_exactly_the_size_asked_for(batch, ghost_size):
    sizes = ghost_batch_sizes(batch, ghost_size)
    assert sum(sizes) == batch
    assert set(sizes[:-1]) <= {ghost_size}
    if batch >= ghost_size:
        assert ghost_size / 2 <= sizes[-1] < 1.5 * ghost_size


@pytest.mark.parametrize("running_stats", ["scaled", "sequential"])
@pytest.mark.parametrize("batch", [7, 16, 23, 24, 31, 48, 63, 100])
@pytest.mark.parametrize("ghost_size", [16, 32])
def test_output_and_running_statistics_follow_the_formulas(batch, ghost_size, running_stats):
    layer = GhostBatchNorm2d(3, ghost_batch_size=ghost_size, running_stats=running_stats, dtype=torch.float64)
    randomized(layer)
    running_mean, running_var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for step in range(3):
        x = double(batch, 3, 2, 3, seed=step)
        out, means, variances = reference(x, layer.weight, layer.bias, ghost_size)
        torch.testing.assert_close(layer(x), out, rtol=1e-10, atol=1e-10)
        eta = 0.1 / len(means) if running_stats == "scaled" else 0.1
        for mean, var in zip(means, variances, strict=True):
            running_mean = (1 - eta) * running_mean + eta * mean
            running_var = (1 - eta) * running_var + eta * var
        assert layer.num_batches_tracked == step + 1
    torch.testing.assert_close(layer.running_mean, running_mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.running_var, running_var, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("running_stats", ["scaled", "sequential"])
@pytest.mark.parametrize("batch", [32, 37, 40])
def test_cumulative_average(batch, running_stats):
    layer = GhostBatchNorm1d(3, momentum=None, ghost_batch_size=8, running_stats=running_stats, dtype=torch.float64)
    all_means, all_variances = [], []
    for step in range(1, 4):
        x = double(batch, 3, seed=step)
        _, means, variances = reference(x, torch.ones(3), torch.zeros(3), 8)
        all_means, all_variances = all_means + means, all_variances + variances
        layer(x)
    torch.testing.assert_close(layer.running_mean, torch.stack(all_means).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack(all_variances).mean(0))
    assert layer.num_batches_tracked == 3


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(2, 40),
    ghost_size=st.integers(2, 17),
    channels=st.integers(1, 5),
    positions=st.lists(st.integers(1, 4), max_size=3),
    affine=st.booleans(),
    running_stats=st.sampled_from(["scaled", "sequential"]),
)
def test_any_shape_equals_plain_batch_norm_of_each_chunk(batch, ghost_size, channels, positions, affine, running_stats):
    x = double(batch, channels, *positions, seed=batch).requires_grad_()
    options = {"affine": affine, "dtype": torch.float64}
    layer = GHOST[x.dim()](channels, ghost_batch_size=ghost_size, running_stats=running_stats, **options)
    parts = chunks(x, ghost_size)
    if min(len(part) * part[0, 0].numel() for part in parts) == 1:
        with pytest.raises(ValueError, match="more than 1 value per channel when training"):
            layer(x)
        return
    plain = PLAIN[x.dim()](channels, momentum=0.1 / len(parts) if running_stats == "scaled" else 0.1, **options)
    if affine:
        randomized(layer), randomized(plain)
    direction = double(*x.shape, seed=1)
    out, expected = layer(x), torch.cat([plain(part) for part in parts])
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-7)
    wrt, wrt_plain = [x, *layer.parameters()], [x, *plain.parameters()]
    grads, grads_plain = torch.autograd.grad(out, wrt, direction), torch.autograd.grad(expected, wrt_plain, direction)
    # Two values per channel may lie so close together that 1 / sqrt(var + eps) magnifies rounding.
    torch.testing.assert_close(grads, grads_plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    torch.testing.assert_close(layer.running_var, plain.running_var)
    layer.eval(), plain.eval()
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("batch", [6, 7, 8])
def test_gradcheck_once_and_twice(batch, affine):
    layer = GhostBatchNorm2d(2, ghost_batch_size=3, affine=affine, track_running_stats=False, dtype=torch.float64)
    x = double(batch, 2, 2, 1).requires_grad_()
    if affine:
        randomized(layer)

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(("weight", "bias"), parameters)), (x,))  # noqa: B905

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(function, (x, *layer.parameters()))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_by_function_transforms(memory_format):
    layer = GhostBatchNorm2d(3, ghost_batch_size=4, track_running_stats=False, dtype=torch.float64)
    x = double(10, 3, 2, 2).contiguous(memory_format=memory_format).requires_grad_()
    expected = torch.autograd.grad((layer(x) ** 3).sum(), x)[0]
    torch.testing.assert_close(torch.func.grad(lambda x: (layer(x) ** 3).sum())(x), expected)


def test_frozen_parameters_get_no_gradient_and_the_input_may_need_none():
    layer = GhostBatchNorm2d(3, ghost_batch_size=4)
    x = double(8, 3, 2, 2).float()
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    layer.weight.grad = None
    x.requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    grad.sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


def test_a_layer_used_twice_in_one_graph():
    layer = randomized(GhostBatchNorm1d(3, ghost_batch_size=4, dtype=torch.float64))
    x = double(9, 3).requires_grad_()
    grad = torch.autograd.grad((layer(layer(x)) ** 3).sum(), x)[0]
    once = reference(x, layer.weight, layer.bias, 4)[0]
    expected = torch.autograd.grad((reference(once, layer.weight, layer.bias, 4)[0] ** 3).sum(), x)[0]
    torch.testing.assert_close(grad, expected)
    assert layer.num_batches_tracked == 2


def test_an_expanded_gradient_and_an_in_place_activation_after():
    layer = GhostBatchNorm2d(3, ghost_batch_size=4, dtype=torch.float64)
    x = double(10, 3, 2, 2).requires_grad_()
    torch.relu_(layer(x)).sum().backward()
    expected = torch.autograd.grad(torch.relu(reference(x, layer.weight, layer.bias, 4)[0]).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("batch", [32, 37])
def test_channels_last_stays_and_gives_the_same(batch):
    x = double(batch, 6, 4, 5)
    x_last = x.to(memory_format=torch.channels_last).requires_grad_()
    x.requires_grad_()
    layer = randomized(GhostBatchNorm2d(6, ghost_batch_size=8, dtype=torch.float64))
    out, out_last = layer(x), layer(x_last)
    assert out.is_contiguous()
    assert out_last.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad((out**3).sum(), x)
    (grad_last,) = torch.autograd.grad((out_last**3).sum(), x_last)
    assert grad_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, out_last)
    torch.testing.assert_close(grad, grad_last)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_have_statistics_in_float32(dtype, memory_format):
    # 4096 values near 300: their sum overflows float16, and bfloat16 cannot tell them apart from their mean.
    x = (double(32, 3, 16, 16) + 300).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    layer = randomized(GhostBatchNorm2d(3, ghost_batch_size=16))
    out = layer(x)
    assert out.dtype == dtype
    direction = double(*x.shape, seed=3).to(dtype)
    out.backward(direction)
    weight, bias = layer.weight.detach().double().requires_grad_(), layer.bias.detach().double()
    exact = x.detach().double().requires_grad_()
    expected, means, _variances = reference(exact, weight, bias, 16)
    expected.backward(direction.double())
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, rtol=1e-3, atol=1e-2)
    steps = [0.05 * 0.95, 0.05]
    mu = sum(s * m for s, m in zip(steps, means, strict=True))
    torch.testing.assert_close(layer.running_mean.double(), mu.detach(), rtol=1e-5, atol=1e-5)


def test_a_bfloat16_model():
    layer = GhostBatchNorm2d(3, ghost_batch_size=4).to(torch.bfloat16)
    out = layer(torch.randn(9, 3, 2, 2, dtype=torch.bfloat16))
    out.float().sum().backward()
    assert out.dtype == layer.running_var.dtype == layer.weight.grad.dtype == torch.bfloat16


def test_nothing_the_size_of_the_input_is_kept_beyond_what_batch_norm_keeps():
    def kept(layer):
        sizes = {}
        x = torch.randn(64, 16, 8, 8, requires_grad=True)

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = layer(x)
        del out
        return sorted(sizes.values(), reverse=True)

    plain, ghost = kept(nn.BatchNorm2d(16)), kept(GhostBatchNorm2d(16, ghost_batch_size=8))
    assert ghost[0] == plain[0] == 64 * 16 * 8 * 8 * 4
    statistics = 2 * 8 * 16 * 4
    weight = 16 * 4
    assert sum(ghost) == ghost[0] + statistics + weight


def test_evaluation_and_one_ghost_batch_are_plain_batch_norm_to_the_bit():
    for track in True, False:
        plain = nn.BatchNorm2d(5, track_running_stats=track)
        ghost = GhostBatchNorm2d(5, track_running_stats=track, ghost_batch_size=32)
        x = torch.randn(20, 5, 3, 3)
        assert torch.equal(plain(x), ghost(x))
        assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), ghost.state_dict().values()))  # noqa: B905
        ghost(torch.randn(70, 5, 3, 3))
        plain.load_state_dict(ghost.state_dict())
        plain.eval(), ghost.eval()
        for batch in 1, 20, 70:
            x = torch.randn(batch, 5, 3, 3)
            assert torch.equal(plain(x), ghost(x))


def test_running_statistics_that_are_not_tracked_stay():
    layer = GhostBatchNorm2d(3, ghost_batch_size=4)
    layer.track_running_stats = False
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(12, 3, 2, 2))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_momentum_of_one_takes_the_last_ghost_batch():
    layer = GhostBatchNorm1d(3, momentum=1.0, ghost_batch_size=4, running_stats="sequential", dtype=torch.float64)
    x = double(12, 3)
    layer(x)
    torch.testing.assert_close(layer.running_mean, x[8:].mean(0))


def test_checkpoints_of_a_torchvision_model_load_both_ways():
    plain, ghost = torchvision.models.resnet18(num_classes=4), torchvision.models.resnet18(num_classes=4)
    parameters, buffers = dict(ghost.named_parameters()), dict(ghost.named_buffers())
    keys = list(ghost.state_dict())
    assert apply_ghost_batchnorm(ghost, ghost_batch_size=4) == 20
    assert list(ghost.state_dict()) == keys
    assert all(parameters[name] is parameter for name, parameter in ghost.named_parameters())
    assert all(buffers[name] is buffer for name, buffer in ghost.named_buffers())
    ghost(torch.randn(8, 3, 32, 32))
    plain.load_state_dict(ghost.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.eval()(x), ghost.eval()(x))
    ghost.load_state_dict(torchvision.models.resnet18(num_classes=4).state_dict(), strict=True)


def test_an_optimizer_made_before_trains_every_parameter():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    apply_ghost_batchnorm(model, ghost_batch_size=4)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.randn(10, 3, 4, 4)).pow(3).sum().backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    # Weight and bias of the norm and of the classifier; a bias before a batch norm has no gradient but rounding.
    assert moved[0]
    assert all(moved[2:])


def test_settings_are_carried_over():
    plain = nn.BatchNorm2d(3, eps=0.1, momentum=None, affine=False)
    model = nn.Sequential(plain, nn.BatchNorm1d(2, track_running_stats=False), nn.BatchNorm3d(2)).eval()
    assert apply_ghost_batchnorm(model, ghost_batch_size=5, running_stats="sequential") == 3
    assert [type(layer) for layer in model] == [GhostBatchNorm2d, GhostBatchNorm1d, GhostBatchNorm3d]
    assert (model[0].eps, model[0].momentum, model[0].affine, model[0].weight) == (0.1, None, False, None)
    assert model[1].running_mean is None
    assert not model[1].track_running_stats
    assert all(not layer.training and layer.ghost_batch_size == 5 for layer in model)
    assert all(layer.running_stats == "sequential" for layer in model)
    assert "ghost_batch_size=5" in repr(model)


def test_applied_again_it_changes_the_size_or_nothing():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    assert apply_ghost_batchnorm(model, ghost_batch_size=8) == 2
    layers = list(model)
    assert apply_ghost_batchnorm(model, ghost_batch_size=8) == 0
    assert apply_ghost_batchnorm(model, ghost_batch_size=16) == 2
    assert apply_ghost_batchnorm(model, ghost_batch_size=16, running_stats="sequential") == 2
    assert list(model) == layers
    assert model[0].ghost_batch_size == 16
    model.append(nn.BatchNorm2d(3))
    assert apply_ghost_batchnorm(model, ghost_batch_size=16, running_stats="sequential") == 1


class NormWithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3)), "nothing to change: looked for batch norm .* in a Sequential"),
        (nn.BatchNorm2d(3), "itself is a BatchNorm2d"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.SyncBatchNorm(3)), "1 is a SyncBatchNorm: it shares its statistics over"),
        (nn.Sequential(nn.BatchNorm2d(3), NormWithActivation(3)), "1 is a NormWithActivation: only nn.BatchNorm1d"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.LazyBatchNorm2d()), "1 is a LazyBatchNorm2d: .* first forward pass"),
    ],
)
def test_what_cannot_be_turned_is_refused_before_anything_changes(model, message):
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        apply_ghost_batchnorm(model)
    assert [type(module) for module in model.modules()] == before


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"^ghost_batch_size=0"):
        apply_ghost_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), ghost_batch_size=0)
    with pytest.raises(ValueError, match=r"^running_stats=scald.*Did you mean scaled"):
        GhostBatchNormMethod(running_stats="scald")
    with pytest.raises(ValueError, match=r"^ghost_batch_size=0"):
        GhostBatchNorm2d(3, ghost_batch_size=0)
    with pytest.raises(ValueError, match="expected 4D input"):
        GhostBatchNorm2d(3)(torch.randn(8, 3))


def test_the_method_applies_its_settings():
    model = nn.Sequential(nn.BatchNorm2d(3))
    method = GhostBatchNormMethod(ghost_batch_size=8, running_stats="sequential")
    assert method.order == 20
    assert method.apply(model, torch.randn(2, 3, 4, 4)) == 1
    assert (model[0].ghost_batch_size, model[0].running_stats) == (8, "sequential")


def test_a_size_that_does_not_divide_the_batch_is_honoured():
    """Composer makes 4 ghost batches of 25 out of 100 samples at size 32."""
    layer = GhostBatchNorm1d(1, ghost_batch_size=32, affine=False, dtype=torch.float64)
    out = layer(double(100, 1))
    for part in out[:32], out[32:64], out[64:]:
        torch.testing.assert_close(part.mean(), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)
    assert out[:25].mean().abs() > 1e-3


def test_evaluation_of_a_small_batch_works():
    """Composer raises in evaluation for a batch smaller than a ghost batch."""
    layer = GhostBatchNorm2d(3, ghost_batch_size=32).eval()
    assert layer(torch.randn(1, 3, 1, 1)).shape == (1, 3, 1, 1)


def test_stand_ins_for_tensors_leave_nothing_behind():
    x = torch.randn(10, 3, 4, 4)
    expected = GhostBatchNorm2d(3, ghost_batch_size=4)(x)
    with FakeTensorMode():
        assert GhostBatchNorm2d(3, ghost_batch_size=4)(torch.randn(10, 3, 4, 4)).shape == x.shape
    assert torch.equal(GhostBatchNorm2d(3, ghost_batch_size=4)(x), expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_on_the_meta_device(memory_format):
    layer = GhostBatchNorm2d(3, ghost_batch_size=4, device="meta")
    x = torch.empty(10, 3, 4, 4, device="meta").to(memory_format=memory_format).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.shape == x.shape


def test_buffers_that_were_taken_away():
    layer, x = GhostBatchNorm2d(3, ghost_batch_size=4), double(8, 3, 2, 2).float()
    expected = layer(x)
    layer.num_batches_tracked = None
    assert torch.equal(layer(x), expected)
    layer.running_mean = layer.running_var = None
    assert torch.equal(layer(x), expected)


def test_twice_differentiated_where_only_the_bias_is_trained():
    layer, x = GhostBatchNorm2d(3, ghost_batch_size=4), double(8, 3, 2, 2).float()
    layer.weight.requires_grad_(False)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), layer.bias, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), layer.bias)
    torch.testing.assert_close(second, torch.full((3,), 2.0 * 8 * 4))
