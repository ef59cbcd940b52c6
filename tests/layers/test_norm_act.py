"""timm's batch norm with an activation, converted by each method that replaces norms, against formulas in float64."""

import copy
import pickle

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from runner.methods import (
    apply_batch_channel_norm,
    apply_ghost_batchnorm,
    apply_group_norm,
    apply_instance_norm,
    apply_layer_norm,
    apply_sync_batchnorm,
    estimate_batchnorm_statistics,
    remove_batchnorm,
)

EPS = 1e-3


def make(act_layer=nn.SiLU, drop_layer=None, channels=8):
    """One such norm in a parent, with weights, biases and statistics that tell channels apart."""
    torch.manual_seed(0)
    norm = BatchNormAct2d(channels, eps=EPS, act_layer=act_layer, drop_layer=drop_layer, inplace=False).double()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data.uniform_(0.5, 1.5)
    return nn.Sequential(norm)


def images(number=8, channels=8):
    return torch.randn(number, channels, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def normalized(x, shape):
    """(x - mean) / sqrt(var + eps) over the last dimension of x in `shape`."""
    parts = x.reshape(shape)
    mean = parts.mean(-1, keepdim=True)
    return ((parts - mean) / (((parts - mean) ** 2).mean(-1, keepdim=True) + EPS).sqrt()).view_as(x)


def batch_norm(x):
    across = x.transpose(0, 1).contiguous()
    return normalized(across, (x.shape[1], -1)).transpose(0, 1)


def group_norm(x, groups):
    return normalized(x, (len(x), groups, -1))


def affine(x, norm):
    return x * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


def silu(x):
    return x / (1 + (-x).exp())


METHODS = {
    "ghost_batchnorm": (
        lambda model: apply_ghost_batchnorm(model, ghost_batch_size=4),
        lambda x, norm: affine(torch.cat([batch_norm(x[:4]), batch_norm(x[4:])]), norm),
    ),
    "groupnorm": (
        lambda model: apply_group_norm(model, num_groups=2),
        lambda x, norm: affine(group_norm(x, 2), norm),
    ),
    "layernorm": (apply_layer_norm, lambda x, norm: affine(group_norm(x, 1), norm)),
    "instancenorm": (apply_instance_norm, lambda x, norm: affine(group_norm(x, x.shape[1]), norm)),
    "batch_channel_norm": (
        lambda model: apply_batch_channel_norm(model, num_groups=2),
        lambda x, norm: group_norm(affine(batch_norm(x), norm), 2),
    ),
    "sync_batchnorm": (apply_sync_batchnorm, lambda x, norm: affine(batch_norm(x), norm)),
    "none": (remove_batchnorm, lambda x, norm: x),
}
each_method = pytest.mark.parametrize("method", METHODS)


@each_method
def test_every_method_keeps_the_activation(method):
    apply, formula = METHODS[method]
    model = make()
    norm, keys = model[0], set(model.state_dict())
    expected = silu(formula(images(), norm))
    assert apply(model) == 1
    torch.testing.assert_close(model(images()), expected, rtol=1e-11, atol=1e-11)
    assert {key for key in model.state_dict() if "group_" not in key} <= keys
    assert not isinstance(model[0], BatchNormAct2d)


@each_method
def test_evaluation_copies_pickles_and_hooks(method):
    apply, _ = METHODS[method]
    model = make()
    outputs = []
    model[0].register_forward_hook(lambda module, inputs, out: outputs.append(out))
    assert apply(model) == 1
    expected = model.eval()(images())
    assert torch.equal(outputs.pop(), expected), "a hook saw the output without its activation"
    model[0]._forward_hooks.popitem()  # the test's own hook, which has no name to pickle
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(images()), expected)


def test_running_statistics_are_those_of_the_plain_layer():
    model, plain = make(), make()
    apply_ghost_batchnorm(model, ghost_batch_size=8)
    for _ in range(2):
        torch.testing.assert_close(model(images()), plain(images()), rtol=1e-12, atol=1e-12)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.eval()(images()), plain.eval()(images()), rtol=1e-12, atol=1e-12)


def test_one_conversion_after_another():
    model = make()
    weight = model[0].weight
    expected = silu(affine(group_norm(images(), 4), model[0]))
    assert apply_ghost_batchnorm(model, ghost_batch_size=4) == 1
    assert apply_ghost_batchnorm(model, ghost_batch_size=2) == 1
    assert apply_group_norm(model, num_groups=4) == 1
    assert model[0].weight is weight
    torch.testing.assert_close(model(images()), expected, rtol=1e-12, atol=1e-12)


def test_the_weights_of_an_activation_and_the_drop_layer_stay():
    model = make(act_layer=nn.PReLU, drop_layer=lambda: nn.Dropout(0.5))
    slope, keys = model[0].act.weight, list(model.state_dict())
    assert apply_ghost_batchnorm(model, ghost_batch_size=8) == 1
    assert list(model.state_dict()) == keys
    assert model[0].act.weight is slope
    out = model(images())
    assert 0.3 < (out == 0).double().mean() < 0.7
    out.sum().backward()
    assert slope.grad is not None
    assert not (model.eval()(images()) == 0).any()


def test_precise_batch_norm_measures_it():
    model = make()
    assert estimate_batchnorm_statistics(model, [images()]) == 1
    torch.testing.assert_close(model[0].running_mean, images().mean((0, 2, 3)))
    torch.testing.assert_close(model(images()), silu(affine(batch_norm(images()), model[0])))


def test_another_subclass_is_refused_still():
    class Mine(BatchNormAct2d):
        pass

    with pytest.raises(ValueError, match="another subclass may compute more than batch norm"):
        apply_ghost_batchnorm(nn.Sequential(Mine(8)))


@each_method
@pytest.mark.parametrize("training", [False, True])
def test_a_trace_activates_once(method, training):
    apply, _ = METHODS[method]
    model = make()
    apply(model)
    try:
        traced = torch.fx.symbolic_trace(model.train(training))
    except (TypeError, torch.fx.proxy.TraceError) as error:
        pytest.skip(f"torch.fx does not trace this layer: {error}")
    torch.testing.assert_close(traced(images()), model(images()), rtol=1e-12, atol=1e-12)
