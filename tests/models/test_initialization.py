"""The distributions of the schemes against their formulas, and what is drawn and what is left."""

import math

import pytest
import torch
from torch import nn

from runner.config.limits import LIMITS
from runner.methods import apply_batch_channel_norm, apply_weight_standardization, remove_batchnorm
from runner.models import deeplabv3plus_resnet18, nf_resnet26, resnet18, resnet20
from runner.models.initialization import SCHEMES, initialize

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def copy_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def layers_of(model, kinds):
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [
        (nn.Conv1d(100, 60, 5), 100 * 5, 60 * 5),
        (nn.Conv2d(64, 96, (3, 2)), 64 * 6, 96 * 6),
        (nn.Conv2d(64, 96, 3, groups=4), 16 * 9, 96 * 9),
        (nn.Conv3d(20, 30, 3), 20 * 27, 30 * 27),
        (nn.Linear(300, 200), 300, 200),
    ],
)
@pytest.mark.parametrize(
    ("scheme", "variance", "kurtosis"),
    [
        ("xavier_uniform", lambda fan_in, fan_out: 2 / (fan_in + fan_out), 1.8),
        ("xavier_normal", lambda fan_in, fan_out: 2 / (fan_in + fan_out), 3.0),
        ("kaiming_fan_in", lambda fan_in, fan_out: 2 / fan_in, 3.0),
        ("kaiming_fan_out", lambda fan_in, fan_out: 2 / fan_out, 3.0),
    ],
)
def test_mean_variance_and_shape_of_the_distributions(scheme, variance, kurtosis, layer, fan_in, fan_out):
    """The kurtosis, 1.8 for a uniform distribution and 3 for a normal one, tells the two apart."""
    torch.manual_seed(0)
    nn.init.constant_(layer.bias, 3.0)
    assert initialize(nn.Sequential(layer), scheme, layers="all") == 1
    weight = layer.weight.detach().double().flatten()
    std = math.sqrt(variance(fan_in, fan_out))
    assert abs(weight.mean().item()) < 4 * std / math.sqrt(len(weight))
    assert weight.std().item() == pytest.approx(std, rel=0.04)
    assert (weight / weight.std()).pow(4).mean().item() == pytest.approx(kurtosis, rel=0.1)
    assert layer.bias.abs().max() == 0


def test_the_schemes_are_those_of_the_setting():
    assert set(LIMITS["model"]["initialization"].choices) == {"default", *SCHEMES}


@pytest.mark.parametrize("layers", ["conv", "all"])
def test_default_draws_nothing(layers):
    model = resnet20()
    before, state = copy_of(model), torch.get_rng_state()
    assert initialize(model, "default", layers=layers) == 0
    assert not changed(model, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("layers", "kinds"), [("conv", CONVOLUTIONS), ("all", (*CONVOLUTIONS, nn.Linear))])
@pytest.mark.parametrize(
    ("build", "convert"),
    [
        (lambda: resnet18(num_classes=3, zero_init_residual=True), None),
        (lambda: resnet18(num_classes=3), apply_weight_standardization),
        (lambda: resnet18(num_classes=3), lambda model: apply_batch_channel_norm(model, num_groups=8)),
        (lambda: resnet18(num_classes=3), lambda model: remove_batchnorm(model, skipinit=True)),
        (lambda: nf_resnet26(num_classes=3, se=True), None),
        (lambda: deeplabv3plus_resnet18(num_classes=3, head_channels=8), None),
    ],
    ids=["plain", "weight_standardization", "batch_channel_norm", "skipinit", "normalizer_free", "deeplab"],
)
def test_weights_of_the_layers_are_drawn_biases_are_0_and_all_else_stays(build, convert, layers, kinds):
    torch.manual_seed(0)
    model = build()
    if convert is not None:
        convert(model)
    of_layers = layers_of(model, kinds)
    for layer in of_layers.values():
        if layer.bias is not None:
            nn.init.ones_(layer.bias)
    before, objects = copy_of(model), dict(model.named_parameters())
    assert initialize(model, "xavier_normal", layers=layers) == len(of_layers)
    expected = {f"{name}.weight" for name in of_layers}
    expected |= {f"{name}.bias" for name, layer in of_layers.items() if layer.bias is not None}
    assert changed(model, before) == expected
    assert all(layer.bias is None or not layer.bias.any() for layer in of_layers.values())
    assert all(objects[name] is parameter for name, parameter in model.named_parameters())


def test_the_seed_decides():
    models = [resnet20(), resnet20(), resnet20()]
    for seed, model in zip((1, 1, 2), models, strict=True):
        torch.manual_seed(seed)
        initialize(model, "kaiming_fan_out", layers="all")
    first, again, other = ([*model.parameters()] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_on_the_meta_device_it_counts_the_same():
    with torch.device("meta"):
        model = nf_resnet26(se=True)
        assert initialize(model, "xavier_uniform", layers="all") == len(layers_of(model, (nn.Conv2d, nn.Linear)))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "xavier"}, r"^initialization=xavier: it must be one of default, .*Did you mean xavier_"),
        ({"scheme": "default", "layers": "linear"}, r"^initialized_layers=linear: it must be one of conv, all"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        initialize(resnet20(), **settings)
