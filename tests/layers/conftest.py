"""Fixtures of the tests of Triton kernels."""

from collections.abc import Callable

import pytest


@pytest.fixture
def compile_for_gpu(tmp_path, monkeypatch) -> Callable[[object, dict[str, str], dict[str, object]], None]:
    """`compile_for_gpu(kernel, arguments, constants)` compiles a kernel for an A100 and an H100; no GPU is needed.

    `arguments` maps names to Triton's types, as in {"x": "*fp32", "rows": "i32"}.
    """
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from runner.layers.triton_kernels import LAUNCH_OPTIONS

    def call(kernel: object, arguments: dict[str, str], constants: dict[str, object]) -> None:
        signature = {**arguments, **dict.fromkeys(constants, "constexpr")}
        for capability in (80, 90):
            source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
            target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
            compiled = triton.compile(source, target=target, options=LAUNCH_OPTIONS)
            assert compiled.asm["cubin"]

    return call
