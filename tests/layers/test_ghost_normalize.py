"""Ghost batch norm's arithmetic beside torch's batch norm of each ghost batch, with what follows it."""

import pytest
import torch
from torch.nn import functional as F

from runner.layers.ghost_normalize import ghost_normalize

SIZES = [4, 4, 5]
FORMATS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
}


def tensors(dtype, layout):
    generator = torch.Generator().manual_seed(0)
    x, residual, grad = (torch.randn(13, 6, 4, 5, generator=generator) * 2 + 1 for _ in range(3))
    weight, bias = (torch.randn(6, generator=generator) for _ in range(2))
    leaves = [FORMATS[layout](x.to(dtype)), weight, bias, FORMATS[layout](residual.to(dtype))]
    return [leaf.requires_grad_() for leaf in leaves], FORMATS[
        "channels last" if layout == "channels last" else "contiguous"
    ](grad.to(dtype))


def separately(x, weight, bias, residual, relu):
    """The same by torch's own functions."""
    out = torch.cat([F.batch_norm(part, None, None, weight, bias, training=True) for part in x.split(SIZES)])
    out = out if residual is None else out + residual
    return F.relu(out) if relu else out


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("relu", "has_residual"), [(False, False), (True, False), (True, True)])
def test_it_is_batch_norm_of_each_ghost_batch_then_the_sum_and_the_relu(dtype, layout, relu, has_residual):
    (x, weight, bias, residual), grad = tensors(dtype, layout)
    if dtype == torch.float64:
        weight, bias = (tensor.detach().double().requires_grad_() for tensor in (weight, bias))
    wrt = [x, weight, bias, *([residual] if has_residual else [])]
    out, mean, var = ghost_normalize(
        x, weight, bias, SIZES, 1e-5, relu=relu, residual=residual if has_residual else None
    )
    contiguous = x.contiguous() if layout in ("transposed", "every second channel") else x
    expected = separately(contiguous, weight, bias, residual if has_residual else None, relu)
    assert torch.equal(out, expected)  # to the bit: torch's own kernels
    found, wanted = torch.autograd.grad(out, wrt, grad), torch.autograd.grad(expected, wrt, grad)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-6
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=10 * tolerance)
    for index, part in enumerate(x.detach().double().split(SIZES)):
        values = part.transpose(0, 1).flatten(1)
        torch.testing.assert_close(mean[index].double(), values.mean(1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(var[index].double(), values.var(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_with_residual_and_relu_it_can_be_differentiated_twice(layout):
    (x, weight, bias, residual), _ = tensors(torch.float64, layout)
    weight, bias = weight.detach().double().requires_grad_(), bias.detach().double().requires_grad_()

    def second(function):
        out = function()
        (grad,) = torch.autograd.grad((out**3).sum(), residual, create_graph=True)
        return torch.autograd.grad((grad * out.detach()).sum(), [x, weight, bias, residual])

    found = second(lambda: ghost_normalize(x, weight, bias, SIZES, 1e-5, relu=True, residual=residual)[0])
    expected = second(lambda: separately(x, weight, bias, residual, relu=True))
    torch.testing.assert_close(found, expected)


def test_an_expanded_gradient_and_a_nan():
    (x, weight, bias, residual), _ = tensors(torch.float32, "channels last")
    out, _, _ = ghost_normalize(x, weight, bias, SIZES, 1e-5, relu=True, residual=residual)
    expected = separately(x, weight, bias, residual, relu=True)
    found, wanted = (torch.autograd.grad(y.mean(), [x, weight, bias, residual]) for y in (out, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        x[0, 0, 0, 0] = torch.nan
    out, _, _ = ghost_normalize(x, weight, bias, SIZES, 1e-5, relu=True)
    assert out[:4, 0].isnan().all()
    assert out[:4, 1:].isfinite().all()
