"""Where Triton's kernels can run: on a GPU, with Triton installed."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# multiplication and addition in one instruction; Triton 3.9 warns if a launch leaves it to the default
LAUNCH_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@lru_cache
def import_kernels(module: str) -> ModuleType | None:
    """`module`, which imports Triton; None without Triton. Call it when a GPU first needs the kernels."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return None
    return import_module(module)


def is_eager() -> bool:
    """Whether operations run as they are called: neither compiled, traced nor transformed, which need torch's own."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active())


def is_plain_cuda(tensor: Tensor) -> bool:
    """Whether a kernel may read the memory of `tensor`; a subclass, such as a fake tensor, may have none."""
    return tensor.is_cuda and type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in DTYPES


def is_dense(tensor: Tensor) -> bool:
    """Whether `tensor` is contiguous or channels last, so that each `tensor[i]` is one piece of memory."""
    if tensor.is_contiguous():
        return True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.ndim in formats and tensor.is_contiguous(memory_format=formats[tensor.ndim])
