"""The Triton kernel of adaptive gradient clipping against the formula in float64."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from runner.methods.agc import adaptive_clip_grad_

pytest.importorskip("triton", reason="torch for this platform comes without Triton")
# rounding of the gradient's dtype; Triton's interpreter cuts off what a GPU rounds to bfloat16
DTYPES = {"float32": 1e-6, "bfloat16": 2**-7, "float16": 2**-11}
# of one or several blocks of elements, whole and ragged; matrices, filters, vectors, gains, a scalar
SHAPES = [
    (3, 4, 2, 2),
    (2, 5, 3, 3),
    (4, 2, 2, 1),
    (5, 8),
    (2, 33),
    (1, 9),
    (9, 1),
    (17,),
    (6, 1, 1, 1),
    (),
    (2, 3, 2, 2, 2),
]
CLIP, EPS = 0.02, 1e-3


def parameters_of(dtype, channels_last, device="cpu"):
    """Units of many scales; some weights are 0. One gradient has an infinity, one weight a NaN."""
    torch.manual_seed(0)
    parameters = []
    for shape in SHAPES:
        units = (*shape[:1], *[1] * (len(shape) - 1))
        weight = (torch.randn(shape) * (torch.rand(units) > 0.3)).to(dtype)
        grad = (torch.randn(shape) * 10 ** torch.empty(units).uniform_(-4, 0)).to(dtype)
        parameters.append((weight, grad))
    parameters[3][1][0, 0], parameters[4][0][1, 5] = math.inf, math.nan
    made = []
    for number, (weight, grad) in enumerate(parameters):
        if channels_last and weight.ndim == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
            if number != 1:  # a gradient in another format than its weight
                grad = grad.contiguous(memory_format=torch.channels_last)
        parameter = nn.Parameter(weight.to(device))
        parameter.grad = grad.to(device)
        made.append(parameter)
    return made


def expected_of(parameters):
    """The clipped gradients, the share of clipped units and the largest ratio, in float64."""
    grads, ratios = [], []
    for parameter in parameters:
        weight, grad = parameter.detach().double().cpu(), parameter.grad.double().cpu().clone()
        is_one_unit = sum(size > 1 for size in weight.shape) <= 1
        for w, g in [(weight, grad)] if is_one_unit else zip(weight, grad, strict=True):
            weight_norm, grad_norm = w.square().sum().sqrt().clamp(min=EPS), g.square().sum().sqrt()
            if grad_norm > CLIP * weight_norm:
                g *= CLIP * weight_norm / grad_norm.clamp(min=1e-6)
            ratios.append(grad_norm / weight_norm)
        grads.append(grad)
    ratios = torch.stack(ratios)
    return grads, (ratios > CLIP).double().mean(), ratios.amax()


def largest_error(parameters, grads):
    """The largest error of a gradient's element, relative to the largest of its tensor; NaN belongs with NaN."""
    errors = []
    for parameter, grad in zip(parameters, grads, strict=True):
        found = parameter.grad.double().cpu()
        assert found.isnan().equal(grad.isnan())
        info = torch.finfo(parameter.dtype)
        error = (found - grad).abs().nan_to_num() - info.smallest_normal * info.eps  # the spacing of subnormal numbers
        errors.append((error / grad.abs().nan_to_num().max()).max().item())
    return max(errors)


def interpreted():
    """For each dtype and format the errors of the clip; to be called under TRITON_INTERPRET=1."""
    from runner.layers import clip_kernels

    clip_kernels.BLOCK = 8
    torch.Tensor.is_cuda, torch.Tensor.is_cpu = property(lambda _: True), property(lambda _: False)
    original, launches, errors = clip_kernels.clip_units, [], {}
    clip_kernels.clip_units = lambda *arguments: launches.append(arguments) or original(*arguments)
    for dtype in DTYPES:
        for channels_last in (False, True):
            parameters = parameters_of(getattr(torch, dtype), channels_last)
            grads, share, _ = expected_of(parameters)
            metrics = adaptive_clip_grad_(parameters, clip=CLIP, eps=EPS)
            errors[f"{dtype} {channels_last}"] = [
                largest_error(parameters, grads),
                (share - metrics["clipped_share"]).item(),
            ]
    for parameter in parameters:  # gradients at other addresses
        parameter.grad = torch.ones_like(parameter)
    grads, share, ratio = expected_of(parameters[:3])
    metrics = adaptive_clip_grad_(parameters[:3], clip=CLIP, eps=EPS)
    errors["float16 moved"] = [largest_error(parameters[:3], grads), (share - metrics["clipped_share"]).item()]
    torch.testing.assert_close(metrics["largest_ratio"].double(), ratio)
    assert len(launches) == len(errors)
    parameters[0].grad = torch.ones((), dtype=torch.float16).expand(
        parameters[0].shape
    )  # without memory of its own for each element
    assert not clip_kernels.can_clip(parameters)
    return errors


def test_the_kernel_computes_the_formula_up_to_rounding():
    """In a process of its own: Triton reads the variable when it is imported."""
    script = f"import json, runpy; print(json.dumps(runpy.run_path({__file__!r})['interpreted']()))"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 7
    for case, (error, share) in errors.items():
        assert error < DTYPES[case.split()[0]], case
        assert abs(share) < 1e-6, case


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_compiles_for_a_gpu(dtype, compiled_kernels):
    from runner.layers import clip_kernels

    parameters = parameters_of(getattr(torch, dtype), channels_last=True)
    clip_kernels.clip_units(parameters, [1] * len(parameters), CLIP, EPS, {})
    assert compiled_kernels == ["_clip_unit"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_the_gradients_are_clipped_as_the_formula_says(dtype, channels_last, no_host_sync, monkeypatch):
    from runner.layers import clip_kernels

    launches = []
    original = clip_kernels.clip_units
    monkeypatch.setattr(clip_kernels, "clip_units", lambda *args: launches.append(1) or original(*args))
    parameters = parameters_of(getattr(torch, dtype), channels_last, device="cuda")
    grads, share, _ = expected_of(parameters)
    adaptive_clip_grad_(parameters_of(getattr(torch, dtype), channels_last, device="cuda"))  # compiles
    with no_host_sync():
        metrics = adaptive_clip_grad_(parameters, clip=CLIP, eps=EPS)
    assert len(launches) == 2
    assert largest_error(parameters, grads) < DTYPES[dtype]
    assert metrics["clipped_share"].item() == pytest.approx(share.item())
