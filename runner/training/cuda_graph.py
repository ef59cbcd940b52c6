"""CUDA graphs of a training step: its kernels are recorded once and launched together from then on.

A net of small layers waits for launches, not for arithmetic. A graph repeats the same kernels on the same memory, with
the numbers that the host passed when it was recorded. So what changes from step to step comes in as a tensor (the
batch, the learning rates, the number of the step), and what the host decides in each step stays outside: the methods'
transforms of the batch, the metrics, the average of the weights, evaluation and probes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from runner.methods.method import Method
from runner.optim.lars import Lars

WARMUP_CALLS = 3  # in which libraries choose their kernels and allocate
CAPTURABLE_OPTIMIZERS = (SGD, AdamW, Lars)  # whose step takes the learning rate as a tensor and reads none back


def why_not_graphed(
    train: Mapping[str, Any],
    *,
    device: torch.device,
    precision: str,
    methods: Mapping[str, Method],
    optimizer: Optimizer,
) -> str | None:
    """Why a run cannot use a CUDA graph, and what to do. None if it can. `train` are the settings of that name."""
    on_divergence, name = train["on_divergence"], type(optimizer).__name__
    host_bound = ", ".join(name for name, method in methods.items() if not method.capturable)
    reasons = [
        (device.type != "cuda", "a CUDA graph needs a GPU; set train.device=cuda"),
        (train["num_devices"] > 1, "the ranks exchange gradients within a step; set train.num_devices=1"),
        (train["compile"], "torch.compile launches kernels its own way; set train.compile=false"),
        (precision == "fp16", "the loss scale of train.precision=fp16 skips steps; set train.precision=bf16"),
        (on_divergence != "stop", f"train.on_divergence={on_divergence} undoes steps; set train.on_divergence=stop"),
        (host_bound, f"a graph would repeat what the host draws or changes in a step for {host_bound}; leave it out"),
        (type(optimizer) not in CAPTURABLE_OPTIMIZERS, f"{name} may need the host; set optimizer=sgd, adamw or lars"),
    ]
    return next((reason for holds, reason in reasons if holds), None)


class Graphed:
    """A function of tensors and numbers that is replayed as a CUDA graph after `warmup_calls` plain calls.

    The function must launch the same kernels in each call, and change what it keeps (weights, statistics, optimizer
    state) in place. Each argument is copied into a tensor of the graph; a number becomes a 0-dim float32 tensor. The
    results are tensors of the graph too: the next call writes them again.

    Every call does the work of exactly one call of the function. So training goes on as it would without the graph.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device, *, warmup_calls: int = WARMUP_CALLS) -> None:
        self.function = function
        self.device = device
        self._plain_calls_left = warmup_calls
        self._inputs: list[Tensor] = []
        self._replay: Callable[[], None] | None = None
        self._outputs: Any = None

    def __call__(self, *values: Tensor | float) -> Any:
        if not self._inputs:
            self._inputs = [self._input_for(value) for value in values]
        for number, (buffer, value) in enumerate(zip(self._inputs, values, strict=True)):
            if isinstance(value, Tensor) and (value.shape, value.dtype) != (buffer.shape, buffer.dtype):
                raise RuntimeError(
                    f"train.cuda_graph=true: argument {number} of a step was {buffer.dtype} of shape "
                    f"{tuple(buffer.shape)} and is {value.dtype} of shape {tuple(value.shape)} now, which a graph does "
                    "not take; set train.cuda_graph=false"
                )
            buffer.copy_(value) if isinstance(value, Tensor) else buffer.fill_(value)
        if self._plain_calls_left:
            self._plain_calls_left -= 1
            with _side_stream(self.device):
                return self.function(*self._inputs)
        if self._replay is None:
            self._replay, self._outputs = record(lambda: self.function(*self._inputs))
        self._replay()
        return self._outputs

    def _input_for(self, value: Tensor | float) -> Tensor:
        return torch.empty_like(value) if isinstance(value, Tensor) else torch.zeros((), device=self.device)


def record(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record the kernels that `function` launches, without running them; return what runs them, and its results."""
    graph = torch.cuda.CUDAGraph()
    # other threads, such as a loader's that pins memory, may go on
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = function()
    return graph.replay, outputs


@contextmanager
def learning_rates(optimizer: Optimizer, rates: Collection[Tensor]) -> Iterator[None]:
    """The optimizer with `rates` as the learning rates of its groups, in this context; as it is without `rates`."""
    if not rates:
        yield
        return
    before = [{key: group[key] for key in ("lr", "capturable") if key in group} for group in optimizer.param_groups]
    for group, rate, values in zip(optimizer.param_groups, rates, before, strict=True):
        group.update({key: rate if key == "lr" else True for key in values})
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.update(values)


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """On a GPU, a stream other than the default one, in which autograd's nodes must not have been made."""
    if device.type != "cuda":
        yield
        return
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
