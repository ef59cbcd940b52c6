"""Parameter groups by module type, the optimizers over them, and the learning rate of a batch size."""

import doctest
import inspect
import math

import pytest
import torch
from torch import nn

import runner.optim.lars
import runner.optim.optimizers
from runner.experiment import builders
from runner.methods import (
    StdConv2d,
    apply_batch_channel_norm,
    apply_ghost_batchnorm,
    apply_group_norm,
    apply_instance_norm,
    apply_layer_norm,
    apply_weight_standardization,
    cached_standardized_weights,
    remove_batchnorm,
)
from runner.models import nf_resnet26, nfnet_f0, resnet18
from runner.optim.optimizers import (
    adamw,
    lars,
    parameter_groups,
    scaled_lr,
    sgd,
    stability_threshold,
    states_per_parameter,
)


def names_of(model, parameters):
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_id[id(parameter)] for parameter in parameters}


def nothing(model):
    """The model as it is."""


def fixup(model):
    remove_batchnorm(model, fixup=True)


def norm_of_images(model):
    """Gains that have three dimensions."""
    model.norm = nn.LayerNorm([64, 8, 8])
    model.other = nn.RMSNorm([64, 8, 8])


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (nf_resnet26, nothing),
        (nfnet_f0, nothing),
        (resnet18, nothing),
        (resnet18, norm_of_images),
        (resnet18, apply_ghost_batchnorm),
        (resnet18, apply_batch_channel_norm),
        (resnet18, apply_group_norm),
        (resnet18, apply_layer_norm),
        (resnet18, apply_instance_norm),
        (resnet18, apply_weight_standardization),
        (resnet18, fixup),
    ],
)
def test_weights_of_convolutions_and_of_the_classifier_decay_and_nothing_else(make, method):
    """Not the parameters of any norm, gains, skip gains, scalars of Fixup, biases."""
    with torch.device("meta"):
        model = make(num_classes=10)
        method(model)
    decayed, undecayed = parameter_groups(model, weight_decay=0.1)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)
    expected = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    assert names_of(model, decayed["params"]) == expected
    assert len(decayed["params"]) + len(undecayed["params"]) == len(list(model.parameters()))


def test_every_parameter_decays_if_asked():
    groups = parameter_groups(resnet18(num_classes=10), weight_decay=0.1, decay_norm_and_bias=True)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]


def test_the_state_of_an_optimizer_fits_whether_all_parameters_decay_or_not():
    """State is found by a parameter's place, so a place may not depend on a setting that a resumed run may change."""
    model = resnet18(num_classes=10)
    first, second = (parameter_groups(model, weight_decay=0.1, decay_norm_and_bias=flag) for flag in (False, True))
    places = [[id(parameter) for group in groups for parameter in group["params"]] for groups in (first, second)]
    assert places[0] == places[1]


def test_a_shared_parameter_lies_in_one_group():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    groups = parameter_groups(nn.Sequential(first, second), weight_decay=0.1)
    assert sum(len(group["params"]) for group in groups) == 3


def test_the_fused_step_is_that_of_the_formula():
    weight = torch.tensor([[1.0, -2.0]], requires_grad=True)
    bias = torch.tensor([0.5], requires_grad=True)
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = sgd(groups, lr=0.5, momentum=0.9, nesterov=True)
    w, b, vw, vb = weight.detach().double(), bias.detach().double(), 0.0, 0.0
    for step in range(3):
        weight.grad, bias.grad = torch.full_like(weight, step + 1.0), torch.full_like(bias, 2.0)
        gw, gb = torch.full_like(w, step + 1.0) + 0.1 * w, torch.full_like(b, 2.0)
        vw, vb = 0.9 * vw + gw, 0.9 * vb + gb
        w, b = w - 0.5 * (gw + 0.9 * vw), b - 0.5 * (gb + 0.9 * vb)
        optimizer.step()
    torch.testing.assert_close(weight.detach().double(), w)
    torch.testing.assert_close(bias.detach().double(), b)


def test_adamw_takes_its_betas():
    optimizer = adamw([{"params": [nn.Parameter(torch.ones(2))]}], lr=0.1, beta1=0.8, beta2=0.95)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)


@pytest.mark.parametrize(
    ("make", "number"),
    [
        *[(sgd, 1), (lars, 1), (adamw, 2), (torch.optim.RMSprop, 1), (torch.optim.Adagrad, 1), (torch.optim.SGD, 0)],
        (lambda groups, **settings: torch.optim.Adam(groups, amsgrad=True, **settings), 3),
    ],
)
def test_what_an_optimizer_keeps_of_a_parameter_is_counted(make, number):
    layer = nn.Linear(2, 3)
    before = layer.weight.detach().clone()
    assert states_per_parameter(make(parameter_groups(layer, weight_decay=0.0), lr=0.1)) == number
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("make", [sgd, adamw])
def test_a_parameter_without_a_gradient_in_the_first_steps_rests_and_trains_later(make):
    """Stochastic depth leaves such parameters; plain, unfused optimizers are the reference."""
    torch.manual_seed(0)
    start = [torch.randn(3), torch.randn(2, 3)]
    parameters = [nn.Parameter(tensor.clone()) for tensor in start]
    expected = [nn.Parameter(tensor.clone()) for tensor in start]
    optimizer = make([{"params": parameters, "weight_decay": 0.1}], lr=0.1)
    plain = {
        sgd: lambda: torch.optim.SGD(expected, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=False),
        adamw: lambda: torch.optim.AdamW(expected, lr=0.1, weight_decay=0.1, foreach=False),
    }[make]()
    for with_gradient in ([0], [0, 1], [1], [0, 1]):
        for number, (parameter, other) in enumerate(zip(parameters, expected, strict=True)):
            parameter.grad = torch.randn_like(parameter) if number in with_gradient else None
            other.grad = parameter.grad
        optimizer.step()
        plain.step()
        torch.testing.assert_close(parameters, expected)


SETTINGS = {sgd: {"momentum": 0.9, "nesterov": True}, adamw: {}, lars: {"momentum": 0.9}}
each_optimizer = pytest.mark.parametrize("make", [sgd, adamw, lars], ids=["sgd", "adamw", "lars"])
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


def small_net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 5)).to(dtype)


def random_gradients(model, step):
    """Gradients of many sizes; the batch norm has none in the second of three steps."""
    generator = torch.Generator().manual_seed(step)
    for number, parameter in enumerate(model.parameters()):
        size = 10.0 ** torch.randint(-4, 2, parameter.shape, generator=generator)
        gradient = torch.randn(parameter.shape, generator=generator) * size
        rests = step % 3 == 1 and number in (2, 3)
        parameter.grad = None if rests else gradient.to(parameter.device, parameter.dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("make", [sgd, adamw])
def test_fused_steps_are_those_of_the_unfused_form_up_to_rounding(make, dtype, tolerance):
    models = [small_net(dtype), small_net(dtype)]
    fused, plain = (make(parameter_groups(model, weight_decay=0.1), lr=0.01, **SETTINGS[make]) for model in models)
    assert fused.defaults["fused"]
    for group in plain.param_groups:
        group["fused"], group["foreach"] = False, False
    for step in range(20):
        for model, optimizer in zip(models, (fused, plain), strict=True):
            random_gradients(model, step)
            optimizer.step()
    for own, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance * other.abs().max().item())


@each_optimizer
def test_an_optimizer_goes_on_from_its_state_with_the_same_bits(make, tmp_path):
    """As the loop restores it: the state from the checkpoint, the groups' settings from the new optimizer."""
    whole, parts = small_net(), small_net()
    optimizers = [
        make(parameter_groups(model, weight_decay=0.1), lr=0.01, **SETTINGS[make]) for model in (whole, parts)
    ]
    for step in range(6):
        for number, model in enumerate((whole, parts)):
            if (number, step) == (1, 2):
                torch.save(optimizers[1].state_dict(), tmp_path / "optimizer.pt")
                state = torch.load(tmp_path / "optimizer.pt", weights_only=True)["state"]
                optimizers[1] = make(parameter_groups(model, weight_decay=0.1), lr=0.01, **SETTINGS[make])
                settings = optimizers[1].state_dict()["param_groups"]
                optimizers[1].load_state_dict({"state": state, "param_groups": settings})
            random_gradients(model, step)
            optimizers[number].step()
    for own, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("unscaled", [True, False])
@pytest.mark.parametrize("device", DEVICES, ids=str)
@each_optimizer
def test_under_a_loss_scale_a_step_is_the_plain_one_or_none(make, device, unscaled):
    """None where the gradient overflows: weights, momenta and counts stay, and the scale is halved."""
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    models = [small_net().to(device), small_net().to(device)]
    scaled, plain = (make(parameter_groups(model, weight_decay=0.1), lr=0.01, **SETTINGS[make]) for model in models)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0)
    for step in range(4):
        overflows = step == 2
        before = [parameter.clone() for parameter in models[0].parameters()]
        for model in models:
            random_gradients(model, step)
        for parameter in models[0].parameters():
            if parameter.grad is not None:
                parameter.grad *= scaler.scale(torch.ones((), device=device))
        if overflows:
            models[0][3].weight.grad[0, 0] = torch.inf
        if unscaled:
            scaler.unscale_(scaled)
        scaler.step(scaled)
        scaler.update()
        if overflows:
            assert all(torch.equal(a, b) for a, b in zip(before, models[0].parameters(), strict=True))
            assert scaler.get_scale() == 512
        else:
            plain.step()
        for own, other in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_standardized_weights_are_those_after_a_fused_step():
    """A fused step leaves a weight's version as it was, so that nothing may be kept by it."""
    model = nn.Sequential(StdConv2d(3, 6, 3), nn.Flatten(), nn.Linear(96, 5))
    optimizer = sgd(parameter_groups(model, weight_decay=0.1), lr=0.5)
    images = torch.randn(2, 3, 6, 6)
    for step in range(2):
        with torch.no_grad(), cached_standardized_weights(model):
            model(images)
        version = model[0].weight._version
        random_gradients(model, step)
        optimizer.step()
        assert model[0].weight._version == version  # else this test would say little
        weight = model[0].weight.detach().flatten(1)
        mean, std = weight.mean(1, keepdim=True), (weight.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        expected = nn.functional.conv2d(images, ((weight - mean) / std).view_as(model[0].weight), model[0].bias)
        torch.testing.assert_close(model[0](images), expected)
        with torch.no_grad():
            torch.testing.assert_close(model[0](images), expected)
            with cached_standardized_weights(model):
                torch.testing.assert_close(model[0](images), expected)


@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lars_adapts_the_rates_of_weights_alone(weight_decay, decay_norm_and_bias):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=weight_decay, decay_norm_and_bias=decay_norm_and_bias)
    optimizer = lars(groups, lr=2.0, trust_coefficient=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if name == "0.weight":
            gradient = 1 + weight_decay * before[name]
            denominator = 108**0.5 + weight_decay * before[name].norm()
            change = 2.0 * 0.01 * before[name].norm() / denominator * gradient
        else:
            change = 2.0 + 2.0 * weight_decay * decay_norm_and_bias * before[name]
        torch.testing.assert_close(before[name] - parameter, change)


@pytest.mark.parametrize(("lr_batch_size", "expected"), [(256, 1.6), (4096, 0.1), (16384, 0.025), (None, 0.1)])
def test_the_learning_rate_grows_with_the_batch_if_asked(lr_batch_size, expected):
    """1.6 at 4096 images is the NFNets' 0.1 for 256."""
    assert scaled_lr(0.1, global_batch_size=4096, lr_batch_size=lr_batch_size) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_every_optimizer_is_built_with_the_rate_of_its_batch(composed, name):
    config = composed(f"optimizer={name}", "optimizer.lr=0.5", "optimizer.lr_batch_size=128")
    optimizer = builders.build_optimizer(config.optimizer, nn.Linear(2, 2), global_batch_size=64)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert type(optimizer).__name__.lower() == name


@pytest.mark.parametrize("make", [sgd, adamw, lars, parameter_groups])
def test_the_defaults_are_those_of_the_yaml_files(composed, make):
    node = composed(f"optimizer={'sgd' if make is parameter_groups else make.__name__}").optimizer
    parameters = inspect.signature(make).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    assert defaults == {name: node[name] for name in defaults}


@pytest.mark.parametrize("module", [runner.optim.optimizers, runner.optim.lars])
def test_the_examples_of_the_docstrings_are_true(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_steps_on_a_quadratic_shrink_below_the_threshold_and_grow_above_it(momentum, nesterov):
    """0.5 * eigenvalue * w^2, whose second derivative is the eigenvalue."""

    def size_after(factor, steps=2000):
        weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        optimizer = sgd([{"params": [weight]}], lr=0.1, momentum=momentum, nesterov=nesterov and momentum > 0)
        eigenvalue = factor * stability_threshold(optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            (0.5 * eigenvalue * weight**2).backward()
            optimizer.step()
        return weight.abs().item()

    assert size_after(0.98) < 1e-2
    assert size_after(1.02) > 1e2


def test_the_threshold_is_that_of_the_rate_to_come_and_of_sgd_alone():
    groups = [{"params": [nn.Parameter(torch.ones(2))], "norm_and_bias": False}]
    optimizer = sgd(groups, lr=0.1, momentum=0.0, nesterov=False)
    optimizer.param_groups[0]["lr"] = 0.02
    assert stability_threshold(optimizer) == pytest.approx(100)
    optimizer.param_groups[0]["lr"] = 0.0
    assert stability_threshold(optimizer) == math.inf
    assert all(math.isnan(stability_threshold(make(groups, lr=0.1))) for make in (adamw, lars))
