"""The Triton kernels of weight standardization against the formulas in float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.layers.scaled_std_conv import ScaledStdConv2d, scaled_standardize
from runner.methods.weight_standardization import StdConv2d, standardize

pytest.importorskip("triton", reason="torch for this platform comes without Triton")
# rounding of the result's dtype, and of deviations of 0.01 from a mean of 3
# Triton's interpreter cuts off what a GPU rounds to bfloat16
DTYPES = {"float32": 4e-6, "bfloat16": 2**-7, "float16": 2**-10}
SHAPES = [(4, 3, 3, 3), (5, 7, 1, 1), (3, 2, 2, 2), (2, 5, 3, 3)]
EPS = {"plain": 1e-2, "scaled": 0.5}  # large enough to show


def reference(weight, gain, kind):
    """W_hat filter by filter, in float64 and differentiable."""
    filters = []
    for number, w in enumerate(weight):
        centred = w - w.sum() / w.numel()
        squares = centred.square().sum()
        if kind == "plain":
            filters.append(centred / (squares / w.numel() + EPS[kind]).sqrt())
        else:
            filters.append(gain[number] * centred / squares.clamp(min=EPS[kind]).sqrt())
    return torch.stack(filters)


def inputs(shape, dtype, channels_last, device="cpu"):
    """A weight with one filter below the floor of eps, a gain, and a gradient of W_hat."""
    generator = torch.Generator().manual_seed(0)
    weight, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    weight[1] = 3 + 1e-2 * weight[1]
    if channels_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    gain = torch.randn(shape[0], generator=generator)
    return [tensor.to(device, dtype) for tensor in (weight, gain, grad)]


def errors_of(shape, dtype, channels_last, kind, device="cpu"):
    """The largest errors of W_hat and of the gradients at weight and gain, relative to the largest value of each."""
    weight, gain, grad = (tensor.requires_grad_() for tensor in inputs(shape, dtype, channels_last, device))
    standardized = standardize(weight, EPS[kind]) if kind == "plain" else scaled_standardize(weight, gain, EPS[kind])
    assert standardized.grad_fn.name() == "StandardizeBackward"
    assert standardized.dtype == dtype
    assert standardized.stride() == weight.stride()
    leaves = [weight] if kind == "plain" else [weight, gain]
    found = [standardized, *torch.autograd.grad(standardized, leaves, grad)]
    doubles = [leaf.detach().double().cpu().requires_grad_() for leaf in (weight, gain)]
    expected = reference(*doubles, kind)
    wanted = [expected, *torch.autograd.grad(expected, doubles[: len(leaves)], grad.detach().double().cpu())]
    return [((a.double().cpu() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, wanted, strict=True)]


def interpreted():
    """The errors of each case; to be called under TRITON_INTERPRET=1, which is slow."""
    from runner.layers import filter_kernels

    filter_kernels.BLOCK, filter_kernels.LARGE_BLOCK = 16, 32
    torch.Tensor.is_cuda = property(lambda _: True)
    errors = {}
    torch.manual_seed(0)
    for kind in EPS:
        for dtype in DTYPES:
            for shape, channels_last in [
                *((shape, True) for shape in SHAPES[:2]),
                *((shape, False) for shape in SHAPES),
            ]:
                case = f"{dtype} {kind} {shape} {channels_last}"
                errors[case] = errors_of(shape, getattr(torch, dtype), channels_last, kind)
    for conv in (StdConv2d(3, 4, 2), ScaledStdConv2d(3, 4, 2)):
        weight = conv.weight.detach().requires_grad_()
        assert conv.standardized_weight().grad_fn.name() == "StandardizeBackward"
        layer = standardize if isinstance(conv, StdConv2d) else lambda w, gain=conv.gain: scaled_standardize(w, gain)
        grad = torch.randn_like(weight, dtype=torch.float32)
        (first,) = torch.autograd.grad(layer(weight), weight, grad, create_graph=True)
        twice = torch.autograd.grad(first.square().sum(), weight)
        double = weight.detach().double().requires_grad_()
        (first,) = torch.autograd.grad(layer(double), double, grad.double(), create_graph=True)
        expected = torch.autograd.grad(first.square().sum(), double)
        torch.testing.assert_close(twice, expected, check_dtype=False, rtol=1e-4, atol=1e-4)
    torch.is_autocast_enabled, torch.get_autocast_dtype = (lambda _: True), (lambda _: torch.bfloat16)
    assert conv.standardized_weight().dtype == torch.bfloat16
    return errors


def test_the_kernels_compute_the_formulas_up_to_rounding():
    """In a process of its own: Triton reads the variable when it is imported."""
    script = f"import json, runpy; print(json.dumps(runpy.run_path({__file__!r})['interpreted']()))"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 36
    for case, found in errors.items():
        assert max(found) < DTYPES[case.split()[0]], case


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_gain", [True, False])
def test_the_kernels_compile_for_a_gpu(dtype, has_gain, compiled_kernels):
    from runner.layers.filter_kernels import Standardize

    weight, gain, _ = (t.requires_grad_() for t in inputs((4, 128, 3, 3), torch.float32, channels_last=True))
    Standardize.apply(weight, gain if has_gain else None, 1e-5, getattr(torch, dtype), None).sum().backward()
    assert compiled_kernels == ["_standardize_filter", "_gradient_of_filter"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", EPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_filters_are_standardized_as_the_formulas_say(dtype, kind, channels_last):
    for shape in ((64, 147, 1, 1), (32, 128, 3, 3), (16, 512, 3, 3), (9, 3, 7, 7)):
        assert max(errors_of(shape, getattr(torch, dtype), channels_last, kind, "cuda")) < 2 * DTYPES[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("conv_class", [StdConv2d, ScaledStdConv2d])
def test_under_autocast_on_a_gpu_the_weight_is_written_in_its_dtype(conv_class):
    conv = conv_class(8, 16, 3).cuda()
    x = torch.randn(2, 8, 9, 9, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert conv.standardized_weight().dtype == torch.bfloat16
        conv(x).float().square().mean().backward()
    found, conv.weight.grad = conv.weight.grad, None
    conv(x).square().mean().backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, conv.weight.grad, rtol=0.05, atol=0.02 * found.abs().max().item())
