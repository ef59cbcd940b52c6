"""LARS against the paper's formula, computed by hand in float64."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from runner.optim.lars import Lars


def by_hand(weights, gradients, rates, *, momentum, weight_decay, trust_coefficient, nesterov, adapt=True):
    """The weights, lists of numbers, after the steps of `gradients`, one learning rate a step; None: no gradient."""
    weights = [list(weight) for weight in weights]
    velocities = [[0.0] * len(weight) for weight in weights]
    for step, lr in zip(gradients, rates, strict=True):
        for weight, velocity, gradient in zip(weights, velocities, step, strict=True):
            if gradient is None:
                continue
            weight_norm, gradient_norm = math.hypot(*weight), math.hypot(*gradient)
            rate = 1.0
            if adapt and weight_norm and gradient_norm:
                rate = trust_coefficient * weight_norm / (gradient_norm + weight_decay * weight_norm)
            for i in range(len(weight)):
                change = lr * rate * (gradient[i] + weight_decay * weight[i])
                velocity[i] = momentum * velocity[i] + change
                weight[i] -= momentum * velocity[i] + change if nesterov else velocity[i]
    return weights


def histories(num_steps=5):
    """Three weights, one of them zero, and their gradients in each step: some zero, some missing."""
    torch.manual_seed(0)
    weights = [torch.randn(2, 3), torch.zeros(4), 10 * torch.randn(2, 2, 1, 1)]
    gradients = [[torch.randn_like(weight) for weight in weights] for _ in range(num_steps)]
    gradients[1][0] = torch.zeros(2, 3)
    gradients[0][2] = gradients[3][2] = gradients[3][0] = None
    return weights, gradients


def train(optimizer, parameters, gradients, rates):
    for step, lr in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        optimizer.step()


def numbers(tensors):
    return [None if tensor is None else tensor.flatten().double().tolist() for tensor in tensors]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("adapt", [True, False])
def test_several_steps_are_those_of_the_formula(nesterov, weight_decay, momentum, adapt):
    """Zero weights, zero gradients, missing gradients and a learning rate that changes among them."""
    weights, gradients = histories()
    settings = {"momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": 0.02, "nesterov": nesterov}
    rates = [1.0, 2.0, 2.0, 0.5, 0.25]
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    train(Lars([{"params": parameters, "adapt": adapt}], lr=1.0, **settings), parameters, gradients, rates)
    expected = by_hand(numbers(weights), [numbers(step) for step in gradients], rates, adapt=adapt, **settings)
    for parameter, values in zip(parameters, expected, strict=True):
        assert parameter.flatten().tolist() == pytest.approx(values, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_adaptation_and_at_one_learning_rate_it_is_torchs_sgd(nesterov):
    weights, gradients = histories()
    ours, theirs = ([nn.Parameter(weight.clone()) for weight in weights] for _ in range(2))
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov}
    train(Lars([{"params": ours, "adapt": False}], **settings), ours, gradients, [0.1] * 5)
    train(torch.optim.SGD(theirs, **settings), theirs, gradients, [0.1] * 5)
    torch.testing.assert_close(ours, theirs)


def test_the_first_step_is_of_the_same_share_of_every_weight():
    """What LARS is for: whatever the gradient's scale, |change| / |w| = lr * trust_coefficient."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(8, 3)) for _ in range(3)]
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter, scale in zip(parameters, (1e-6, 1.0, 1e6), strict=True):
        parameter.grad = scale * torch.randn_like(parameter)
    Lars(parameters, lr=3.0, trust_coefficient=0.01).step()
    shares = [((p.detach() - w).norm() / w.norm()).item() for p, w in zip(parameters, before, strict=True)]
    assert shares == pytest.approx([0.03] * 3)


def test_a_resumed_optimizer_goes_on_with_the_same_bits():
    weights, gradients = histories()
    rates = [1.0, 2.0, 2.0, 0.5, 0.25]
    whole = [nn.Parameter(weight.clone()) for weight in weights]
    train(Lars(whole, lr=1.0, weight_decay=0.1), whole, gradients, rates)
    first = [nn.Parameter(weight.clone()) for weight in weights]
    stopped = Lars(first, lr=1.0, weight_decay=0.1)
    train(stopped, first, gradients[:1], rates[:1])  # in which one of them had no gradient
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    resumed = Lars(second, lr=1.0, weight_decay=0.1)
    resumed.load_state_dict(stopped.state_dict())
    train(resumed, second, gradients[1:], rates[1:])
    for parameter, expected in zip(second, whole, strict=True):
        assert torch.equal(parameter, expected)


def test_every_parameter_has_a_momentum_from_the_start():
    optimizer = Lars([nn.Parameter(torch.ones(2))], lr=1.0)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    assert [len(state["momentum_buffer"]) for state in optimizer.state_dict()["state"].values()] == [2, 3]


@pytest.mark.parametrize("gradient", [2.0, math.inf])
def test_a_loss_scaler_unscales_and_skips_a_step_with_an_infinite_gradient(gradient):
    ours, plain = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = Lars([ours], lr=1.0, weight_decay=0.1)
    scaler.scale((ours * gradient).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    if math.isfinite(gradient):
        plain.grad = torch.full_like(plain, gradient)
        Lars([plain], lr=1.0, weight_decay=0.1).step()
    torch.testing.assert_close(ours, plain)
    assert optimizer.state[ours]["momentum_buffer"].isfinite().all()


def test_a_closure_computes_the_loss_with_gradients():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Lars([weight], lr=1.0)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 25
    assert optimizer.step(closure) < 25


@pytest.mark.parametrize("setting", [{"lr": 0.0}, {"momentum": 1.0}, {"weight_decay": -1}, {"trust_coefficient": 0}])
def test_a_setting_out_of_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=rf"^{next(iter(setting))}="):
        Lars([nn.Parameter(torch.ones(2))], **{"lr": 1.0, **setting})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_not_waited_for_and_gives_what_a_cpu_gives(no_host_sync):
    weights, gradients = histories()
    found = {}
    for device in ("cpu", "cuda"):
        parameters = [nn.Parameter(weight.to(device, copy=True)) for weight in weights]
        optimizer = Lars(parameters, lr=1.0, weight_decay=0.1)
        for step in gradients:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = None if gradient is None else gradient.to(device, copy=True)
            with no_host_sync() if device == "cuda" else nullcontext():
                optimizer.step()
        found[device] = [parameter.detach().cpu() for parameter in parameters]
    torch.testing.assert_close(found["cuda"], found["cpu"])
