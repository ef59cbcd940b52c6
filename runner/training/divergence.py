"""When training has diverged: the first loss or gradient that is not finite, found without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from runner.distributed.collectives import all_reduce_min

QUANTITIES = ("training loss", "gradient")
SMALLEST_SCALE = 1.0  # of the loss in fp16: a gradient that overflows without being enlarged has diverged


class Diverged(Exception):
    """A loss or gradient is not finite: a result, not a fault. The message names step, quantity and learning rate."""


def gradient_norm(parameters: Iterable[nn.Parameter], *, may_wait: bool = False) -> tuple[Tensor, Tensor]:
    """The Euclidean norm of all gradients together, and a number that is finite if all their entries are.

    Both in float64 on the gradients' device; 0 without any. The norm itself may be infinite where no entry is: the sum
    of squares of a tensor is taken in its own precision. With `may_wait` the host may look at the norm, which saves
    most of the work.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(()), torch.zeros(())
    norm = torch.stack(torch._foreach_norm(gradients)).double().norm()
    if may_wait and norm.isfinite():
        return norm, norm
    return norm, torch.stack(torch._foreach_norm(gradients, math.inf)).double().amax()


class FirstNonFinite:
    """The first optimizer step at which the loss was not finite, and that of the gradient; kept on the device.

    Under loss scaling a gradient may overflow: the scaler skips the step and lowers the scale. At `SMALLEST_SCALE`
    more than `max_overflows` such steps in a row are a gradient that is not finite.
    """

    def __init__(self, device: torch.device, *, max_overflows: int = 0) -> None:
        self.device = device
        self.max_overflows = max_overflows
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self._steps = torch.full((len(QUANTITIES),), math.inf, dtype=torch.float64, device=self.device)
        self._overflows = torch.zeros((), device=self.device)  # in a row, at the smallest scale

    def look(self, step: int, loss: Tensor, gradient: Tensor, scale: Tensor | None = None) -> Tensor:
        """Look at optimizer step number `step`, counted from 1; returns which are not finite, (2,) bool.

        `gradient` is a number as `gradient_norm` gives it, `scale` that of the loss if it is scaled.
        """
        wrong = ~torch.stack([loss.double(), gradient.double()]).isfinite()
        if scale is not None:
            self._overflows = torch.where(wrong[1] & (scale <= SMALLEST_SCALE), self._overflows + 1, 0)
            wrong[1] = self._overflows > self.max_overflows
        self._steps.masked_fill_(wrong & self._steps.isinf(), float(step))
        return wrong

    def read(self) -> tuple[int, str] | None:
        """The first such step and the quantity, on any rank; here the host waits for the device, once."""
        first, quantity = min(zip(all_reduce_min(self._steps).tolist(), QUANTITIES, strict=True))
        return None if math.isinf(first) else (int(first), quantity)
