"""Adaptive gradient clipping in one Triton kernel, for all parameters of one dtype on a GPU.

A program has one unit: an output filter or row, or a whole tensor. It sums the squares of its weights and gradients,
and if it is to be clipped multiplies its gradients, which are in cache still. All arithmetic is in float32, without
atomics: the same input gives the same bits.

The kernel reads the addresses of all tensors from a table. `zero_grad(set_to_none=True)` lets gradients move, so each
call looks their addresses up; the table of given addresses is made once and never written again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from runner.layers.triton_kernels import LAUNCH_OPTIONS, is_dense, is_plain_cuda

BLOCK = 1024
TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def can_clip(parameters: Sequence[Tensor]) -> bool:
    """Whether the kernel supports these parameters, of one dtype and device, and their gradients."""
    return all(
        is_plain_cuda(tensor) and tensor.dtype == parameter.dtype and is_dense(tensor)
        for parameter in parameters
        for tensor in (parameter, parameter.grad)
    )


def clip_units(
    parameters: Sequence[Tensor], units: Sequence[int], clip: float, eps: float, tables: dict
) -> tuple[Tensor, Tensor]:
    """Clip the gradients of `parameters` in place; return max(|W|, eps) and |G| of all units, in float32.

    `units` holds the number of units of each parameter, all of one size. `tables` keeps the tables for the next call.
    """
    device = parameters[0].device
    sizes = tuple(p.numel() // number for p, number in zip(parameters, units, strict=True))
    addresses = (*(p.data_ptr() for p in parameters), *(p.grad.data_ptr() for p in parameters))
    layout = _kept(tables, "layout", (*sizes, *units), lambda: _layout(sizes, units, device))
    table = _kept(tables, "addresses", addresses, lambda: [_on_device(torch.tensor(addresses), device)])
    norms = torch.empty((2, sum(units)), device=device)
    with torch.cuda.device_of(parameters[0]):
        _clip_unit[(sum(units),)](
            *table, *layout, norms, len(parameters), sum(units),
            clip, eps, TRITON_DTYPES[parameters[0].dtype], BLOCK, **LAUNCH_OPTIONS,
        )  # fmt: skip
    return norms.unbind()


def _kept(tables: dict, name: str, key: tuple[int, ...], make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """The tables of this name that `make` made for `key`; new ones if it is another key than at the last call."""
    if name not in tables or tables[name][0] != key:
        tables[name] = (key, make())
    return tables[name][1]


def _layout(sizes: Sequence[int], units: Sequence[int], device: torch.device) -> list[Tensor]:
    """The size of a unit and the first unit of each tensor, (2, tensors); and the tensor of each unit."""
    counts = torch.tensor(units)
    places = torch.stack([torch.tensor(sizes), counts.cumsum(0) - counts])
    tensor_of_unit = torch.arange(len(units), dtype=torch.int32).repeat_interleave(counts)
    return [_on_device(places, device), _on_device(tensor_of_unit, device)]


def _on_device(table: Tensor, device: torch.device) -> Tensor:
    """`table` on `device`; the host does not wait for the copy."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


@triton.jit
def _clip_unit(
    addresses, places, tensor_of_unit, norms, num_tensors, num_units, clip, eps,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The norms of one unit's weights and gradients; and its gradients, clipped."""
    unit = tl.program_id(0)
    tensor = tl.load(tensor_of_unit + unit)
    size = tl.load(places + tensor)
    offset = (unit - tl.load(places + num_tensors + tensor)) * size
    weight = tl.load(addresses + tensor).to(tl.pointer_type(DTYPE)) + offset
    grad = tl.load(addresses + num_tensors + tensor).to(tl.pointer_type(DTYPE)) + offset

    lane = tl.arange(0, BLOCK)
    weight_squares = tl.zeros((BLOCK,), tl.float32)
    grad_squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        inside = start + lane < size
        weights = tl.load(weight + start + lane, mask=inside, other=0.0).to(tl.float32)
        grads = tl.load(grad + start + lane, mask=inside, other=0.0).to(tl.float32)
        weight_squares += weights * weights
        grad_squares += grads * grads
    weight_norm = tl.sqrt(tl.sum(weight_squares, 0))
    weight_norm = tl.where(weight_norm < eps, eps, weight_norm)  # a NaN stays, as it would not in tl.maximum
    grad_norm = tl.sqrt(tl.sum(grad_squares, 0))
    tl.store(norms + unit, weight_norm)
    tl.store(norms + num_units + unit, grad_norm)

    max_norm = weight_norm * clip
    if grad_norm > max_norm:  # false for a NaN
        factor = max_norm / tl.where(grad_norm < 1e-6, 1e-6, grad_norm)
        for start in range(0, size, BLOCK):
            inside = start + lane < size
            grads = tl.load(grad + start + lane, mask=inside, other=0.0).to(tl.float32)
            tl.store(grad + start + lane, (grads * factor).to(DTYPE), mask=inside)
