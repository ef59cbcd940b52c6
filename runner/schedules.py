"""Learning-rate schedules as shares of the full rate by optimizer step; each begins with a linear warm-up.

A share depends on the step alone, so a resumed run, or one that goes on for more epochs, needs no saved state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Share = Callable[[int], float]


def cosine(total_steps: int, warmup_steps: int = 0, *, final_lr_share: float = 0.0) -> Share:
    """From 1 after the warm-up to `final_lr_share` at `total_steps` along half a cosine (arXiv 1608.03983)."""

    def share(step: int) -> float:
        progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
        return final_lr_share + (1 - final_lr_share) * (1 + math.cos(math.pi * progress)) / 2

    return _warmed_up(share, warmup_steps)


def multistep(
    total_steps: int, warmup_steps: int = 0, *, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1
) -> Share:
    """gamma to the power of the number of milestones passed, each a share of `total_steps`."""
    steps = [round(milestone * total_steps) for milestone in milestones]
    return _warmed_up(lambda step: gamma ** sum(step >= milestone for milestone in steps), warmup_steps)


def constant(total_steps: int, warmup_steps: int = 0) -> Share:
    """Always 1 after the warm-up."""
    return _warmed_up(lambda _: 1.0, warmup_steps)


def _warmed_up(share: Share, warmup_steps: int) -> Share:
    """(step + 1) / warmup_steps in the warm-up: the first step moves already, the last has the full rate."""
    return lambda step: (step + 1) / warmup_steps if step < warmup_steps else share(step)


def make_schedule(optimizer: Optimizer, share: Share, *, step: int = 0) -> LambdaLR:
    """torch's scheduler for `share`, standing at optimizer step `step`; the optimizer's rate is set at once."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group.get("initial_lr", group["lr"])
    return LambdaLR(optimizer, share, last_epoch=step - 1)
