"""The Triton kernels of ghost batch norm against the formula in float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.layers.ghost_normalize import _formula
from runner.methods.ghost_batchnorm import GhostBatchNorm2d

pytest.importorskip("triton", reason="torch for this platform comes without Triton")
DTYPES = {"float32": 1e-6, "bfloat16": 5e-3, "float16": 5e-4}  # rounding of the output's dtype
# dtype, shape, ghost batches; the blocks of `interpreted` are small, so that few values take many of them
CASES = {
    "channels in several blocks, rows in several splits": ("float32", (6, 6, 3, 4), [2, 2, 2]),
    "a last ghost batch that is smaller": ("float32", (5, 3, 3, 4), [2, 2, 1]),
    "a last ghost batch that is larger": ("float32", (5, 3, 3, 4), [2, 3]),
    "no positions": ("float32", (8, 5), [4, 4]),
    "bfloat16": ("bfloat16", (4, 6, 3, 4), [2, 2]),
    "float16": ("float16", (4, 6, 3, 4), [2, 2]),
}


def inputs(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=generator) + 10).to(dtype)
    grad = torch.randn(shape, generator=generator).to(dtype)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, grad, torch.randn(shape[1], generator=generator), torch.randn(shape[1], generator=generator)


def relative_errors(found, x, grad, weight, bias, sizes):
    """Of y, mean, var, dx, and the gradients at weight and bias, to those of the formula in float64."""
    leaves = [tensor.double().cpu().requires_grad_() for tensor in (x, weight, bias)]
    y, mean, var = _formula(*leaves, sizes, 1e-5)
    y.backward(grad.double().cpu())
    expected = [y.detach(), mean, var, *(leaf.grad for leaf in leaves)]
    return [((a.double().cpu() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]


def interpreted():
    """For each case the relative errors of the kernels; to be called under TRITON_INTERPRET=1, which is slow."""
    from runner.layers import ghost_kernels

    ghost_kernels.BLOCK_ROWS, ghost_kernels.BLOCK_CHANNELS, ghost_kernels.SPLIT_BLOCK = 2, 4, 2
    ghost_kernels.PROGRAMS_PER_PROCESSOR = 30  # more splits than are merged at once
    found = {}
    for name, (dtype, shape, sizes) in CASES.items():
        x, grad, weight, bias = inputs(shape, getattr(torch, dtype))
        out, grad_x = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
        mean, var, invstd = ghost_kernels.normalize(x, weight, bias, sizes, 1e-5, out)
        grads = ghost_kernels.gradient(x, grad, grad_x, mean, invstd, weight, sizes)
        found[name] = relative_errors([out, mean, var, grad_x, *grads], x, grad, weight, bias, sizes)
    return found


def test_the_kernels_compute_the_formula_up_to_rounding():
    """In a process of its own: Triton reads the variable when it is imported."""
    script = f"import json, runpy; print(json.dumps(runpy.run_path({__file__!r})['interpreted']()))"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert list(errors) == list(CASES)
    for name, (out, mean, var, grad_x, grad_weight, grad_bias) in errors.items():
        assert max(out, grad_x) < DTYPES[CASES[name][0]], name
        assert max(mean, var, grad_weight, grad_bias) < 1e-6, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_the_layer_computes_the_formula_up_to_rounding(dtype, channels_last):
    x, grad, weight, bias = inputs((100, 72, 13, 9), getattr(torch, dtype))
    layer = GhostBatchNorm2d(72, ghost_batch_size=32).cuda()
    with torch.no_grad():
        layer.weight.copy_(weight), layer.bias.copy_(bias)
    on_device = x.cuda() if channels_last else x.cuda().contiguous()
    on_device.requires_grad_()
    for _ in range(2):  # the same bits again
        before = on_device.grad, layer.weight.grad
        on_device.grad = layer.weight.grad = layer.bias.grad = None
        out = layer(on_device)
        out.backward(grad.cuda())
    assert before[0].equal(on_device.grad)
    assert before[1].equal(layer.weight.grad)
    assert out.dtype == x.dtype
    assert out.stride() == on_device.stride()
    found = [out.detach(), on_device.grad, layer.weight.grad, layer.bias.grad]
    leaves = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    y, mean, _ = _formula(*leaves, [32, 32, 36], 1e-5)
    y.backward(grad.double())
    for one, other in zip(found, [y.detach(), *(leaf.grad for leaf in leaves)], strict=True):
        assert (one.double().cpu() - other).norm() / other.norm() < DTYPES[dtype]
    running = torch.zeros(72)
    for _ in range(2):
        for of_ghost in mean:
            running = running + 0.1 / 3 * (of_ghost - running)
    torch.testing.assert_close(layer.running_mean.cpu().double(), running.double(), rtol=1e-5, atol=1e-6)
