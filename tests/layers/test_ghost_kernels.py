"""The Triton kernels of ghost batch norm against the formula in float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.layers import ghost_normalize

pytest.importorskip("triton", reason="torch for this platform comes without Triton")
DTYPES = {"float32": 1e-6, "bfloat16": 5e-3, "float16": 5e-4}  # rounding of the output's dtype
# dtype, shape, ghost batches; the blocks of `interpreted` are small, so that few values take many of them
CASES = {
    "channels in several blocks, rows in several splits": ("float32", (6, 6, 3, 4), [2, 2, 2]),
    "a last ghost batch that is smaller": ("float32", (5, 3, 3, 4), [2, 2, 1]),
    "a last ghost batch that is larger": ("float32", (5, 3, 3, 4), [2, 3]),
    "no positions": ("float32", (8, 5), [4, 4]),
    "bfloat16": ("bfloat16", (4, 6, 3, 4), [2, 2]),
    "float16": ("float16", (5, 6, 3, 4), [2, 3]),
}
AFTER = ("nothing", "ReLU", "residual and ReLU")


def inputs(shape, dtype):
    """x, a residual, the gradient at the output, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=generator) + 10).to(dtype)
    residual, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    if len(shape) == 4:
        x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
    return x, residual, grad, torch.randn(shape[1], generator=generator), torch.randn(shape[1], generator=generator)


def expected_results(x, residual, grad, weight, bias, sizes, after, *, mask=None):
    """y, mean, var, and the gradients at x, weight, bias and residual by torch's batch norm of each ghost batch.

    In float64; `mask` of the ReLU, where that of the half-precision output counts.
    """
    leaves = [tensor.double().cpu().requires_grad_() for tensor in (x, weight, bias, residual)]
    x, weight, bias, residual = leaves
    parts = x.split(sizes)
    y = torch.cat([torch.nn.functional.batch_norm(part, None, None, weight, bias, training=True) for part in parts])
    y = y + residual if after == "residual and ReLU" else y + 0 * residual
    if after != "nothing":
        y = torch.where(y > 0 if mask is None else mask, y, 0.0)
    y.backward(grad.double().cpu())
    moments = [torch.stack(m) for m in zip(*(_moments(part.detach()) for part in parts), strict=True)]
    return [y.detach(), *moments, *(leaf.grad for leaf in leaves)]


def _moments(part):
    values = part.transpose(0, 1).flatten(1)
    return values.mean(1), values.var(1)


def relative_errors(found, expected):
    return [
        ((a.double().cpu() - b).norm() / b.norm().clamp(min=1e-9)).item() for a, b in zip(found, expected, strict=True)
    ]


def interpreted():
    """For each case the relative errors of the kernels; to be called under TRITON_INTERPRET=1, which is slow."""
    from runner.layers import ghost_kernels

    ghost_kernels.BLOCK_ROWS, ghost_kernels.BLOCK_CHANNELS, ghost_kernels.SPLIT_BLOCK = 2, 4, 2
    ghost_kernels.PROGRAMS_PER_PROCESSOR = 30  # more splits than are merged at once
    errors = {}
    for name, (dtype, shape, sizes) in CASES.items():
        for after in AFTER:
            x, residual, grad, weight, bias = inputs(shape, getattr(torch, dtype))
            out, grad_x = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
            added, grad_residual = (residual, torch.full_like(x, torch.nan)) if "residual" in after else (None, None)
            relu = after != "nothing"
            mean, var, invstd = ghost_kernels.normalize(x, weight, bias, sizes, 1e-5, out, added, relu)
            rectified, grad_out = (out if relu else None), torch.empty_like(x).copy_(grad)
            grads = ghost_kernels.gradient(
                x, grad_out, grad_x, mean, invstd, weight, bias, sizes, rectified, grad_residual
            )
            found = [out, mean, var, grad_x, *grads, torch.zeros_like(x) if added is None else grad_residual]
            mask = out > 0 if relu else None
            expected = expected_results(x, residual, grad, weight, bias, sizes, after, mask=mask)
            errors[f"{name}, {after}"] = dtype, relative_errors(found, expected)
    x, _, grad, weight, bias = inputs((4, 6, 3, 4), torch.float32)
    x[0, 0, 0, 0] = torch.nan
    out = torch.empty_like(x)
    ghost_kernels.normalize(x, weight, bias, [2, 2], 1e-5, out, None, True)
    return {"errors": errors, "is_nan": out.isnan().sum((2, 3)).tolist()}


def test_the_kernels_compute_batch_norm_of_each_ghost_batch_up_to_rounding():
    """In a process of its own: Triton reads the variable when it is imported."""
    script = f"import json, runpy; print(json.dumps(runpy.run_path({__file__!r})['interpreted']()))"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    errors = found["errors"]
    assert len(errors) == len(CASES) * len(AFTER)
    for name, (dtype, (out, mean, var, grad_x, grad_weight, grad_bias, grad_residual)) in errors.items():
        assert max(out, grad_x) < DTYPES[dtype], name
        assert max(mean, var, grad_weight, grad_bias, grad_residual) < 1e-6, name
    # a NaN spoils its channel in its ghost batch; a ReLU that made it 0 would hide that training diverged
    assert found["is_nan"] == [[12, *[0] * 5]] * 2 + [[0] * 6] * 2


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("float32", "float16"))]
)
def test_the_kernels_compile_for_a_gpu(dtype, after, compiled_kernels):
    from runner.layers import ghost_kernels

    x, residual, grad, weight, bias = inputs((5, 72, 3, 4), getattr(torch, dtype))
    grad = grad.contiguous(memory_format=torch.channels_last)
    is_added, relu, out = after == "residual and ReLU", after != "nothing", torch.empty_like(x)
    mean, _, invstd = ghost_kernels.normalize(x, weight, bias, [2, 3], 1e-5, out, residual if is_added else None, relu)
    last = (out if relu else None, torch.empty_like(x) if is_added else None)
    ghost_kernels.gradient(x, grad, torch.empty_like(x), mean, invstd, weight, bias, [2, 3], *last)
    assert len(compiled_kernels) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("has_triton", [True, False])
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_they_compute_it_up_to_rounding(dtype, channels_last, after, has_triton, monkeypatch):
    if not has_triton:
        monkeypatch.setattr(ghost_normalize, "import_kernels", lambda _: None)
    sizes = [32, 32, 36]
    on_cpu = inputs((100, 72, 13, 9), getattr(torch, dtype))
    leaves = [tensor.cuda() if channels_last else tensor.cuda().contiguous() for tensor in on_cpu]
    x, residual, grad, weight, bias = leaves
    wrt = [tensor.requires_grad_() for tensor in (x, weight, bias, residual)]

    def run():
        out, mean, var = ghost_normalize.ghost_normalize(
            x, weight, bias, sizes, 1e-5, relu=after != "nothing", residual=residual if "residual" in after else None
        )
        grads = torch.autograd.grad(out, wrt, grad, allow_unused=True)
        return [out.detach(), mean, var, *grads[:3], torch.zeros_like(x) if grads[3] is None else grads[3]]

    found, again = run(), run()
    assert all(one.equal(other) for one, other in zip(found, again, strict=True))
    assert found[0].dtype == found[3].dtype == x.dtype
    assert found[0].stride() == found[3].stride() == x.stride()
    mask = None if after == "nothing" else found[0].cpu() > 0
    errors = relative_errors(found, expected_results(*on_cpu, sizes, after, mask=mask))
    assert max(errors[0], errors[3]) < DTYPES[dtype] * (2 if not has_triton else 1)  # a residual rounds once more
    assert max(errors[1:3] + errors[4:]) < 1e-5
