"""Fixtures of the tests of Triton kernels."""

import pytest
import torch

CAPABILITY = 90  # of an H100
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64", torch.int32: "i32"}


@pytest.fixture
def compiled_kernels(tmp_path, monkeypatch) -> list[str]:
    """The names of the kernels that a test launches; each is compiled for a GPU instead of run, without a GPU.

    The arguments are those of a real launch, but for CPU tensors. Nothing is computed.
    """
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names = []

    def compile_instead(kernel, *args, grid, warmup, num_warps, enable_fp_fusion, **kwargs):
        values = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
        assert list(values) == kernel.arg_names
        assert all(size > 0 for size in grid)
        fixed = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
        constants = {name: value for name, value in values.items() if value is None or name in fixed}
        signature = {name: _type_of(value) for name, value in values.items() if name not in constants}
        signature |= dict.fromkeys(constants, "constexpr")
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
        target = triton.backends.compiler.GPUTarget("cuda", CAPABILITY, 32)
        options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
        assert triton.compile(source, target=target, options=options).asm["cubin"]
        names.append(kernel.__name__)

    monkeypatch.setattr(triton.runtime.JITFunction, "run", compile_instead)
    return names


def _type_of(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    return "i32" if isinstance(value, int) else "fp32"
