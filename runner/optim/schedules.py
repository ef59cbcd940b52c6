"""Learning-rate schedules as shares of the full rate by optimizer step; each begins with a linear warm-up.

A share depends on the step alone, so a resumed run, or one that goes on for more epochs, needs no saved state.
The step after the last, `total_steps`, has a share too: a schedule is asked for it when training ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

LRLambda = Callable[[int], float]


def cosine(total_steps: int, warmup_steps: int = 0, *, final_lr_share: float = 0.0) -> LRLambda:
    """From 1 after the warm-up to `final_lr_share` at `total_steps` along half a cosine (arXiv 1608.03983)."""

    def share(step: int) -> float:
        progress = _progress(step, total_steps, warmup_steps)
        return final_lr_share + (1 - final_lr_share) * (1 + math.cos(math.pi * progress)) / 2

    return _warmed_up(share, warmup_steps)


def poly(total_steps: int, warmup_steps: int = 0, *, power: float = 0.9, final_lr_share: float = 0.0) -> LRLambda:
    """From 1 after the warm-up to `final_lr_share` at `total_steps` as (1 - progress)^power (arXiv 1606.00915)."""

    def share(step: int) -> float:
        progress = _progress(step, total_steps, warmup_steps)
        return final_lr_share + (1 - final_lr_share) * (1 - progress) ** power

    return _warmed_up(share, warmup_steps)


def onecycle(
    total_steps: int,
    warmup_steps: int = 0,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal: str = "cos",
) -> LRLambda:
    """One cycle (Smith & Topin 2017, arXiv 1708.07120) in the form of torch's `OneCycleLR`, without its momentum's.

    From 1 / div_factor up to 1 over `pct_start` of the steps, then down to 1 / (div_factor * final_div_factor) at the
    last step, total_steps - 1; each along half a cosine or, with anneal="linear", along a line. A warm-up comes before
    the cycle and ends where this begins, at 1 / div_factor.
    """
    steps = max(total_steps - warmup_steps, 1)
    top = pct_start * steps - 1
    first, last = 1 / div_factor, 1 / (div_factor * final_div_factor)

    def share(step: int) -> float:
        step -= warmup_steps
        if step < top:
            start, end, progress = first, 1.0, step / top
        else:
            start, end, progress = 1.0, last, min((step - top) / (steps - 1 - top), 1.0)
        if anneal == "cos":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return start + (end - start) * progress

    return _warmed_up(share, warmup_steps, top=first)


def multistep(
    total_steps: int, warmup_steps: int = 0, *, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1
) -> LRLambda:
    """gamma to the power of the number of milestones passed, each a share of `total_steps`."""
    steps = [round(milestone * total_steps) for milestone in milestones]
    return _warmed_up(lambda step: gamma ** sum(step >= milestone for milestone in steps), warmup_steps)


def plateau(
    total_steps: int, warmup_steps: int = 0, *, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1
) -> LRLambda:
    """`multistep` over the steps that are planned now; made anew each time `PlateauRule` doubles them.

    The rule doubles before the first milestone's step, so the share at that step is 1 before and after.
    """
    return multistep(total_steps, warmup_steps, milestones=milestones, gamma=gamma)


@dataclass(frozen=True)
class PlateauRule:
    """Whether training is doubled in length because it still brought new bests when the rate was about to fall.

    The rule of the reproduction of Bjorck et al. (2018, arXiv 1806.02375), whose number of epochs is doubled while the
    last 20 still brought a new best. It is asked when the first milestone is reached. At the end of training instead,
    a rate that had been lowered a hundredfold would jump up again.

    A plateau is `patience` epochs without a new best: where the first milestone comes sooner, training is doubled.
    """

    first_milestone: float  # a share of the epochs
    patience: int  # epochs
    max_doublings: int

    def doubles(self, *, epochs_done: int, epochs: int, best_epoch: int, doublings: int) -> bool:
        """To be asked after every epoch: whether the number of epochs is to be doubled now.

        `epochs`: how many are planned, with the `doublings` there have been so far. `best_epoch`: that of the best
        validation score, counted from 1. The milestone is reached with the last epoch that ends no later than it;
        where even the first ends later, training is never doubled.
        """
        milestone_epoch = math.floor(round(self.first_milestone * epochs, 6))  # 0.29 * 100 is a little less than 29
        improving = best_epoch > epochs_done - self.patience
        return epochs_done == milestone_epoch and improving and doublings < self.max_doublings


def constant(total_steps: int, warmup_steps: int = 0) -> LRLambda:
    """Always 1 after the warm-up."""
    return _warmed_up(lambda _: 1.0, warmup_steps)


SCHEDULES: dict[str, Callable[..., LRLambda]] = {
    "cosine": cosine,
    "multistep": multistep,
    "poly": poly,
    "onecycle": onecycle,
    "plateau": plateau,
    "constant": constant,
}


def _progress(step: int, total_steps: int, warmup_steps: int) -> float:
    """The share of the steps after the warm-up that is done, at most 1."""
    return min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)


def _warmed_up(share: LRLambda, warmup_steps: int, *, top: float = 1.0) -> LRLambda:
    """top * (step + 1) / warmup_steps in the warm-up: the first step moves already, the last has the rate at `top`."""
    return lambda step: top * (step + 1) / warmup_steps if step < warmup_steps else share(step)


def make_schedule(optimizer: Optimizer, share: LRLambda, *, step: int = 0) -> LambdaLR:
    """torch's scheduler for `share`, standing at optimizer step `step`; the optimizer's rate is set at once."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group.get("initial_lr", group["lr"])
    return LambdaLR(optimizer, share, last_epoch=step - 1)
