"""Clipping by norm and by value: formulas in float64, torch's own functions, gradients that are not finite."""

import math

import pytest
import torch
from torch import nn

from runner.methods.gradient_clipping import ClipByNorm, ClipByValue

CLIPS = [ClipByNorm, ClipByValue]


def with_gradients(scale=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.Flatten(), nn.Linear(63, 5))
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn_like(parameter)
    return model


def gradients(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("max_norm", [0.05, 1.0, 7.0])
def test_the_norm_of_all_gradients_together_is_clipped(max_norm):
    model, twin = with_gradients(), with_gradients()
    before = gradients(model).double()
    metrics = ClipByNorm(max_norm=max_norm).transform_gradients(model)
    norm = before.square().sum().sqrt()
    torch.testing.assert_close(gradients(model).double(), before * max_norm / (norm + 1e-6), rtol=1e-5, atol=0)
    assert metrics["norm"].item() == pytest.approx(norm.item(), rel=1e-6)
    assert metrics["clipped_share"].item() == 1
    nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
    assert torch.equal(gradients(model), gradients(twin))


def test_a_smaller_norm_is_left_alone():
    model = with_gradients()
    before = gradients(model)
    metrics = ClipByNorm(max_norm=100.0).transform_gradients(model)
    assert torch.equal(gradients(model), before)
    assert metrics["clipped_share"].item() == 0
    assert 10 < metrics["norm"].item() < 100


@pytest.mark.parametrize("max_value", [0.1, 1.0, 100.0])
def test_each_element_is_clipped(max_value):
    model = with_gradients()
    before = gradients(model)
    metrics = ClipByValue(max_value=max_value).transform_gradients(model)
    assert torch.equal(gradients(model), before.clamp(-max_value, max_value))
    expected = (before.abs() > max_value).double().mean().item()
    assert metrics["clipped_share"].item() == pytest.approx(expected, rel=1e-6)
    assert (expected == 0) == (max_value == 100)


@pytest.mark.parametrize("clip", [ClipByNorm(max_norm=0.5), ClipByValue(max_value=0.5)])
@pytest.mark.parametrize("num_double", [1, 2, 4])
def test_float64_gradients_are_clipped_alone_and_beside_others(clip, num_double):
    model = with_gradients()
    for module in [model[3], model[0], model[1]][:num_double]:
        module.double()
        for parameter in module.parameters():
            parameter.grad = parameter.grad.double()
    before = gradients(model)
    metrics = clip.transform_gradients(model)
    if isinstance(clip, ClipByValue):
        assert torch.equal(gradients(model), before.clamp(-0.5, 0.5))
        assert metrics["clipped_share"].item() == pytest.approx((before.abs() > 0.5).double().mean().item())
    else:
        torch.testing.assert_close(gradients(model), before * 0.5 / before.norm(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_makes_no_gradient_finite(value):
    model = with_gradients()
    model[0].weight.grad[1, 2, 0, 1] = value
    metrics = ClipByNorm(max_norm=1.0).transform_gradients(model)
    assert gradients(model).isnan().all()
    assert not metrics["norm"].isfinite()


def test_a_norm_that_overflows_is_seen():
    model = with_gradients(scale=1e30)
    assert gradients(model).isfinite().all()
    ClipByNorm().transform_gradients(model)
    assert not gradients(model).isfinite().any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_does_not_become_so(value):
    model = with_gradients()
    before = gradients(model)
    model[0].weight.grad.view(-1)[5] = value
    ClipByValue(max_value=0.1).transform_gradients(model)
    after = gradients(model)
    assert after[5].isnan()
    after[5], before[5] = 0, 0
    assert torch.equal(after, before.clamp(-0.1, 0.1))


@pytest.mark.parametrize("clip", CLIPS)
def test_parameters_without_a_gradient_are_passed_over(clip):
    model = with_gradients(scale=100.0)
    model[0].weight.grad = None
    model[1].bias.requires_grad_(False).grad = None
    metrics = clip().transform_gradients(model)
    assert model[0].weight.grad is None
    assert metrics["clipped_share"].item() > 0.9
    for parameter in model.parameters():
        parameter.grad = None
    assert clip().transform_gradients(model)["clipped_share"].item() == 0


@pytest.mark.parametrize("clip", CLIPS)
def test_gradients_keep_their_storage_and_the_graph_is_not_extended(clip):
    model = with_gradients()
    places = [parameter.grad.data_ptr() for parameter in model.parameters()]
    metrics = clip().transform_gradients(model)
    assert [parameter.grad.data_ptr() for parameter in model.parameters()] == places
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("clip", CLIPS)
def test_apply_counts_what_is_trained(clip):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].bias.requires_grad_(False)
    assert clip().apply(model, torch.zeros(2, 3)) == 3
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="looked for parameters to train"):
        clip().apply(model, torch.zeros(2, 3))


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_bounds_out_of_range_are_refused(bound):
    with pytest.raises(ValueError, match=r"^max_norm="):
        ClipByNorm(max_norm=bound)
    with pytest.raises(ValueError, match=r"^max_value="):
        ClipByValue(max_value=bound)
