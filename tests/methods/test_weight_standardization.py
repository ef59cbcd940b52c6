import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torchvision.models import resnet18

from runner.layers.execution_order import execution_order
from runner.layers.same_padding import SamePadConv2d
from runner.layers.scaled_std_conv import ScaledStdConv2d
from runner.methods import apply_group_norm, apply_instance_norm, apply_layer_norm, remove_batchnorm
from runner.methods.weight_standardization import (
    StdConv1d,
    StdConv2d,
    StdConv3d,
    WeightStandardization,
    apply_weight_standardization,
    fold_weight_standardization,
)

STANDARDIZED = (StdConv1d, StdConv2d, StdConv3d)


def reference(weight, eps=1e-5):
    """The formula, filter by filter in float64."""
    filters = []
    for w in weight.detach().double():
        mean = w.sum() / w.numel()
        variance = ((w - mean) ** 2).sum() / w.numel()
        filters.append((w - mean) / (variance + eps) ** 0.5)
    return torch.stack(filters)


def standardized_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, STANDARDIZED)]


class Shuffled(nn.Module):
    """Registered as a, b, c, aux, again; executed as again, c, a, again, b, and aux in training only."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.aux, self.again = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(5))
        self.norm = nn.BatchNorm2d(3)
        self.up = nn.ConvTranspose2d(3, 3, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        x = self.c(self.again(self.norm(x)))
        if not x.is_meta and x.sum() > 1e9:  # what symbolic tracing cannot follow
            return x
        x = self.b(self.again(self.a(x)))
        return self.up(x) + (self.aux(x).mean() if self.training else 0) + torch.rand(())


@pytest.mark.parametrize(
    ("cls", "conv", "shape"),
    [(StdConv1d, F.conv1d, (9,)), (StdConv2d, F.conv2d, (9, 8)), (StdConv3d, F.conv3d, (5, 6, 7))],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_layer_is_the_formula(cls, conv, shape, groups):
    torch.manual_seed(0)
    layer = cls(4, 6, 3, stride=2, padding=1, groups=groups, eps=1e-2)
    x = torch.randn(2, 4, *shape)
    expected = conv(x.double(), reference(layer.weight, 1e-2), layer.bias.double(), 2, 1, 1, groups)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)
    assert "eps=0.01" in repr(layer)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_the_formula(memory_format):
    torch.manual_seed(0)
    layer = StdConv2d(3, 4, 3).double().to(memory_format=memory_format)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64).to(memory_format=memory_format)
    got = torch.autograd.grad(layer(x).sin().sum(), layer.weight)[0]
    weight = layer.weight.detach().clone().requires_grad_()
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    w_hat = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    expected = torch.autograd.grad(F.conv2d(x, w_hat, layer.bias).sin().sum(), weight)[0]
    torch.testing.assert_close(got, expected)
    assert layer.standardized_weight().is_contiguous(memory_format=memory_format)


def test_autocast_standardizes_in_fp32():
    torch.manual_seed(0)
    layer = StdConv2d(8, 8, 3)
    x = torch.randn(1, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.standardized_weight().dtype == torch.float32
        out = layer(x)
    assert out.dtype == torch.bfloat16
    expected = F.conv2d(x.bfloat16(), reference(layer.weight).bfloat16(), layer.bias.bfloat16())
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=5e-2)


def test_backward_keeps_no_copy_of_the_weight():
    layer = StdConv2d(16, 32, 3)
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer.standardized_weight()
    assert sum(t.numel() for t in kept if t.data_ptr() != layer.weight.data_ptr()) <= 4 * 32


def test_surgery_keeps_keys_parameters_and_checkpoints():
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    plain = model.state_dict()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert apply_weight_standardization(model) == 20
    assert len(standardized_names(model)) == 20
    assert list(model.state_dict()) == list(plain)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    model.load_state_dict(plain)
    resnet18(num_classes=10).load_state_dict(model.state_dict())

    before = model.conv1.weight.detach().clone()
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.conv1.weight, before)


def test_a_second_call_changes_nothing():
    model = Shuffled()
    x = torch.randn(1, 3, 5, 5)
    assert apply_weight_standardization(model, n_last_layers_ignore=2, example_input=x, eps=1e-3) == 3
    modules = list(model.modules())
    assert apply_weight_standardization(model, n_last_layers_ignore=2, example_input=x) == 0
    assert list(model.modules()) == modules
    assert model.c.eps == 1e-3


# in order of execution: aux (does not run), c, a, again (at its last run), b
@pytest.mark.parametrize(
    ("number", "names"), [(0, "a b c aux again"), (1, "a c aux again"), (2, "a c aux"), (3, "c aux"), (4, "aux")]
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_last_layers_in_order_of_execution(number, names, device):
    model = Shuffled().to(device)
    x = torch.zeros(1, 3, 5, 5, device=device)
    number_changed = apply_weight_standardization(model, n_last_layers_ignore=number, example_input=x)
    assert standardized_names(model) == names.split()
    assert number_changed == len(names.split())


def test_the_run_that_finds_the_order_leaves_no_trace():
    torch.manual_seed(0)
    model = Shuffled().train()
    model.norm.eval()
    flags = [module.training for module in model.modules()]
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    x = torch.randn(1, 3, 5, 5)
    state = torch.get_rng_state()
    outputs = []
    hook = model.register_forward_hook(lambda module, args, output: outputs.append(output))
    order = execution_order(model, [model.a, model.b, model.c, model.aux, model.again], x)
    hook.remove()
    assert order == [model.again, model.c, model.a, model.again, model.b]
    assert not outputs[0].requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_run_that_fails_leaves_no_trace_either():
    model = Shuffled().train()
    with pytest.raises(RuntimeError, match="running_mean"):
        execution_order(model, [model.a], torch.zeros(1, 4, 5, 5))
    assert model.training
    assert model.calls.item() == 0
    assert not model.a._forward_pre_hooks


def test_ignore_names_modules_and_what_they_contain():
    model = resnet18(num_classes=10)
    assert apply_weight_standardization(model, ignore=["conv1", "layer1", "layer2.0.conv1"]) == 14
    assert not any(name.startswith(("conv1", "layer1", "layer2.0.conv1")) for name in standardized_names(model))
    assert "layer2.0.conv2" in standardized_names(model)
    with pytest.raises(ValueError, match=r"no module 'layer5'.*Did you mean layer\d\?"):
        apply_weight_standardization(model, ignore="layer5")


def test_wrong_settings_say_what_to_do():
    model, x = Shuffled(), torch.zeros(1, 3, 5, 5)
    with pytest.raises(ValueError, match="n_last_layers_ignore=1 needs example_input"):
        apply_weight_standardization(model, n_last_layers_ignore=1)
    with pytest.raises(ValueError, match=r"n_last_layers_ignore=5.*has 5 convolutions"):
        apply_weight_standardization(model, n_last_layers_ignore=5, example_input=x)
    with pytest.raises(ValueError, match="n_last_layers_ignore=-1"):
        WeightStandardization(n_last_layers_ignore=-1)
    with pytest.raises(ValueError, match="eps=-1"):
        StdConv2d(3, 3, 3, eps=-1)
    with pytest.raises(ValueError, match="looked for convolutions"):
        apply_weight_standardization(nn.Sequential(nn.Linear(3, 3), nn.ConvTranspose2d(3, 3, 3)))
    with pytest.raises(ValueError, match="5 that are left out"):
        apply_weight_standardization(model, ignore=["a", "b", "c", "aux", "again"])
    with pytest.raises(ValueError, match="scaled weight standardization already"):
        apply_weight_standardization(nn.Sequential(ScaledStdConv2d(3, 3, 3)))
    assert standardized_names(model) == []


def test_scaled_and_transposed_convolutions_stay():
    model = nn.Sequential(ScaledStdConv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.ConvTranspose2d(3, 3, 3))
    assert apply_weight_standardization(model) == 1
    assert [type(module) for module in model] == [ScaledStdConv2d, StdConv2d, nn.ConvTranspose2d]


def test_a_subclass_is_refused_unless_ignored():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), SamePadConv2d(3, 3, 3, 2, "same"))
    with pytest.raises(ValueError, match=r"1 is a .*SamePadConv2d.*ignore="):
        apply_weight_standardization(model)
    assert apply_weight_standardization(model, ignore=["1"]) == 1


def test_a_shared_layer_is_changed_once():
    conv = nn.Conv2d(3, 3, 3, padding="same", padding_mode="reflect", bias=False)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    assert apply_weight_standardization(model) == 1
    assert model[0] is model[2]
    x = torch.randn(1, 3, 6, 6)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect").double()
    torch.testing.assert_close(model[0](x).double(), F.conv2d(padded, reference(conv.weight)), rtol=1e-4, atol=1e-5)


def test_weights_written_in_evaluation_are_seen_at_once():
    torch.manual_seed(0)
    layer = StdConv2d(3, 4, 3).eval()
    x = torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        layer(x)
        layer.weight.data.copy_(torch.randn_like(layer.weight))
        expected = F.conv2d(x.double(), reference(layer.weight), layer.bias.double())
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_folding_gives_plain_layers_and_the_same_outputs():
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    keys = list(model.state_dict())
    apply_weight_standardization(model, ignore=["layer4"])
    model.eval()
    model.conv1.weight.requires_grad_(False)
    original = model.conv1.weight.clone()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        assert fold_weight_standardization(model) == 15
        assert torch.equal(model(x), expected)
    assert standardized_names(model) == []
    assert {type(module) for module in model.modules() if isinstance(module, nn.Conv2d)} == {nn.Conv2d}
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model.conv1.weight.double(), reference(original), rtol=1e-4, atol=1e-5)
    assert not model.conv1.weight.requires_grad
    assert model.layer1[0].conv1.weight.requires_grad
    assert model.layer1[0].conv1.weight.is_leaf


@pytest.mark.parametrize(
    ("args", "plain"),
    [
        ((4, 6, 3, 1, 1), nn.Conv2d),
        ((4, 6, 3, 1, "same"), nn.Conv2d),
        ((4, 6, (3, 5), 1, "same", (2, 1)), nn.Conv2d),
        ((4, 6, 1, 2, "same"), nn.Conv2d),
        ((4, 6, 2, 1, "same"), SamePadConv2d),
        ((4, 6, 3, 2, "same"), SamePadConv2d),
        ((4, 6, (1, 3), (1, 2), "same", 1, 2), SamePadConv2d),
    ],
)
def test_folding_a_scaled_layer_keeps_gain_and_padding(args, plain):
    torch.manual_seed(0)
    layer = ScaledStdConv2d(*args)
    nn.init.normal_(layer.gain)
    nn.init.normal_(layer.bias)
    bias = layer.bias
    model = nn.Sequential(layer)
    x = torch.randn(2, 4, 8, 7)
    expected = model(x)
    assert fold_weight_standardization(model) == 1
    assert type(model[0]) is plain
    assert set(model.state_dict()) == {"0.weight", "0.bias"}
    assert model[0].bias is bias
    torch.testing.assert_close(model(x), expected)


def test_folding_layers_that_share_a_weight_folds_each_once():
    torch.manual_seed(0)
    model = nn.Sequential(StdConv2d(3, 3, 3, eps=0.5), StdConv2d(3, 3, 3, eps=0.5))
    model[1].weight = model[0].weight
    x = torch.randn(1, 3, 7, 7)
    expected = model(x)
    fold_weight_standardization(model)
    torch.testing.assert_close(model(x), expected)


def test_folding_without_standardized_layers_is_refused():
    with pytest.raises(ValueError, match="nothing to change"):
        fold_weight_standardization(resnet18(num_classes=10))


def test_method_standardizes_all_but_the_last_layers():
    method = WeightStandardization(n_last_layers_ignore=3, eps=1e-3)
    model = resnet18(num_classes=10)
    assert method.order == 30
    assert method.apply(model, torch.randn(2, 3, 32, 32)) == 17
    # the shortcut's convolution runs before the second block
    assert isinstance(model.layer4[0].conv2, StdConv2d)
    assert type(model.layer4[0].downsample[0]) is nn.Conv2d
    assert type(model.layer4[1].conv1) is nn.Conv2d
    assert model.conv1.eps == 1e-3


def trained_resnet18():
    model = resnet18(num_classes=4)
    model(torch.randn(4, 3, 32, 32))  # in training mode: the batch norms take up statistics
    return model


def test_weights_that_were_trained_without_it_give_a_warning():
    with pytest.warns(UserWarning, match=r"ResNet was trained before.*train from scratch"):
        assert apply_weight_standardization(trained_resnet18()) == 20
    fresh = resnet18(num_classes=4)
    assert apply_weight_standardization(fresh) == 20  # no warning: warnings are errors here
    fresh.load_state_dict(trained_resnet18().state_dict())
    assert apply_weight_standardization(fresh) == 0  # nothing is changed, so there is nothing to warn of


def test_method_ignores_modules_by_name():
    method = WeightStandardization(ignore=["layer1", "conv1"])
    model = resnet18(num_classes=4)
    assert method.apply(model, torch.zeros(1, 3, 32, 32)) == 15
    assert not any(name.startswith(("layer1", "conv1")) for name in standardized_names(model))
    with pytest.raises(ValueError, match=r"^ignore: .* 'layer11'. Did you mean layer1"):
        WeightStandardization(ignore=["layer11"]).apply(resnet18(num_classes=4), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("replace", [apply_group_norm, apply_layer_norm, apply_instance_norm, remove_batchnorm])
def test_the_warning_comes_where_the_batch_norms_were_replaced_before(replace):
    model = trained_resnet18()
    replace(model)
    with pytest.warns(UserWarning, match="ResNet was trained before"):
        apply_weight_standardization(model)
    fresh = resnet18(num_classes=4)
    replace(fresh)
    assert apply_weight_standardization(fresh) == 20


def test_parameters_of_another_kind_are_not_lost():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    prune.l1_unstructured(model[1], "weight", 0.5)
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=r"1 has weight_mask, weight_orig beside weight and bias"):
        apply_weight_standardization(model)
    assert list(model.state_dict()) == keys
    assert apply_weight_standardization(model, ignore=["1"]) == 1
    assert model(torch.randn(1, 3, 6, 6)).shape == (1, 4, 2, 2)


@pytest.mark.parametrize("single", [nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=4), nn.Conv1d(1, 2, 1)])
def test_a_filter_of_a_single_weight_stays_as_it_is(single):
    """Standardized it would be 0, whatever the weight."""
    model = nn.Sequential(single, nn.ReLU())
    with pytest.raises(ValueError, match="looked for convolutions whose filters have more than one weight"):
        apply_weight_standardization(model)
    model = nn.Sequential(single, nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.warns(UserWarning, match=r"1 convolutions are left as they are.*: 0$"):
        assert apply_weight_standardization(model) == 1
    assert model[0] is single
    assert isinstance(model[2], StdConv2d)


@pytest.mark.parametrize(
    ("deviation", "eps", "variance"), [(0.005, 1e-5, 0.7143), (0.05, 1e-5, 0.996), (0.005, 1e-10, 1.0)]
)
def test_eps_lowers_the_variance_of_filters_of_small_weights(deviation, eps, variance):
    conv = StdConv2d(16, 4, 3, eps=eps)
    torch.manual_seed(0)
    weight = torch.randn(4, 16 * 9, dtype=torch.float64)
    weight = deviation * (weight - weight.mean(1, keepdim=True)) / weight.std(1, correction=0, keepdim=True)
    conv.weight.data = weight.view_as(conv.weight)
    found = conv.standardized_weight().flatten(1).var(1, correction=0)
    torch.testing.assert_close(found, torch.full_like(found, variance), rtol=1e-4, atol=0)
