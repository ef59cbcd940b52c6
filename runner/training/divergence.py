"""Divergence: the first loss or gradient that is not finite, detected without a device sync."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from runner.distributed.collectives import all_reduce_min

QUANTITIES = ("training loss", "gradient")
SMALLEST_LOSS_SCALE = 1.0  # in fp16: a gradient that overflows unscaled has diverged


class Diverged(Exception):
    """A loss or gradient is not finite: a result of a run, not an error. The message names step and learning rate."""


def gradient_norm(parameters: Iterable[nn.Parameter], *, may_wait: bool = False) -> tuple[Tensor, Tensor]:
    """The L2 norm of all gradients together, and a number that is finite exactly if all their entries are.

    Both are float64 on the gradients' device, 0 without gradients. The norm may overflow where no entry does, since a
    tensor's squares are summed in its own precision. `may_wait` allows a device sync, which saves most of the work.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(()), torch.zeros(())
    norm = torch.stack(torch._foreach_norm(gradients)).double().norm()
    if may_wait and norm.isfinite():
        return norm, norm
    return norm, torch.stack(torch._foreach_norm(gradients, math.inf)).double().amax()


class FirstNonFinite:
    """The first step with a loss that is not finite, and the first with such a gradient; kept on the device.

    Under loss scaling a gradient may overflow, and the scaler then skips the step and lowers the scale. An overflow
    counts only if there are more than `max_overflows` in a row at `SMALLEST_LOSS_SCALE`.
    """

    def __init__(self, device: torch.device, *, max_overflows: int = 0) -> None:
        self.device = device
        self.max_overflows = max_overflows
        self.clear()

    def clear(self) -> None:
        """Forget all steps."""
        self._steps = torch.full((len(QUANTITIES),), math.inf, dtype=torch.float64, device=self.device)
        self._overflows = torch.zeros((), device=self.device)  # in a row, at the smallest scale

    def update(self, step: int | Tensor, loss: Tensor, gradient: Tensor, scale: Tensor | None = None) -> Tensor:
        """Record step number `step`, counted from 1; return whether loss and gradient are not finite, (2,) bool.

        `gradient` is finite if all its entries are, see `gradient_norm`; `scale` is the loss scale, if there is one.
        """
        is_non_finite = ~torch.stack([loss.double(), gradient.double()]).isfinite()
        if scale is not None:
            self._overflows = torch.where(is_non_finite[1] & (scale <= SMALLEST_LOSS_SCALE), self._overflows + 1, 0)
            is_non_finite[1] = self._overflows > self.max_overflows
        self._steps.copy_(torch.where(is_non_finite & self._steps.isinf(), step, self._steps))
        return is_non_finite

    def read(self) -> tuple[int, str] | None:
        """The first such step on any rank, and its quantity. One device sync."""
        first, quantity = min(zip(all_reduce_min(self._steps).tolist(), QUANTITIES, strict=True))
        return None if math.isinf(first) else (int(first), quantity)
