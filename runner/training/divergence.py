"""When training has diverged: the first loss or gradient that is not finite, found without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from runner.training.distributed import smallest

QUANTITIES = ("training loss", "gradient")


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
    """The first optimizer step at which the loss was not finite, and that of the gradient; kept on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self._steps = torch.full((len(QUANTITIES),), math.inf, dtype=torch.float64, device=self.device)

    def look(self, step: int, loss: Tensor, gradient: Tensor | None) -> Tensor:
        """Look at optimizer step number `step`, counted from 1; returns which are not finite, (2,) bool.

        `gradient` is a number as `gradient_norm` gives it, or None where a gradient need not be finite: under loss
        scaling, which skips such a step by itself.
        """
        gradient = torch.zeros_like(loss) if gradient is None else gradient
        wrong = ~torch.stack([loss.double(), gradient.double()]).isfinite()
        self._steps.masked_fill_(wrong & self._steps.isinf(), float(step))
        return wrong

    def read(self) -> tuple[int, str] | None:
        """The first such step and the quantity, on any rank; here the host waits for the device, once."""
        first, quantity = min(zip(smallest(self._steps).tolist(), QUANTITIES, strict=True))
        return None if math.isinf(first) else (int(first), quantity)
