"""Learning-rate schedules: a factor of the full rate for each optimizer step, with a linear warm-up.

A factor depends on the step alone, so a resumed or extended run needs no saved state. Step `total_steps`, after the
last, has a factor too, which torch's scheduler asks for when training ends.
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
    return _decay(lambda done: (1 + math.cos(math.pi * done)) / 2, total_steps, warmup_steps, final_lr_share)


def poly(total_steps: int, warmup_steps: int = 0, *, power: float = 0.9, final_lr_share: float = 0.0) -> LRLambda:
    """From 1 after the warm-up to `final_lr_share` at `total_steps` as (1 - progress)^power (arXiv 1606.00915)."""
    return _decay(lambda done: (1 - done) ** power, total_steps, warmup_steps, final_lr_share)


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
    last step, total_steps - 1; each along half a cosine or, with anneal="linear", along a line. A warm-up precedes the
    cycle and ends at its first value, 1 / div_factor. With pct_start=1 the last step has the full rate.
    """
    steps = max(total_steps - warmup_steps, 1)
    top = pct_start * steps - 1
    steps_down = steps - 1 - top
    first, last = 1 / div_factor, 1 / (div_factor * final_div_factor)

    def factor(step: int) -> float:
        step -= warmup_steps
        if step < top:
            start, end, progress = first, 1.0, step / top
        else:
            start, end = 1.0, last
            progress = min((step - top) / steps_down, 1.0) if steps_down else float(step > top)
        if anneal == "cos":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return start + (end - start) * progress

    return _warmed_up(factor, warmup_steps, top=first)


def multistep(
    total_steps: int, warmup_steps: int = 0, *, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1
) -> LRLambda:
    """gamma^n after n milestones, each a fraction of `total_steps`."""
    steps = [round(milestone * total_steps) for milestone in milestones]
    return _warmed_up(lambda step: gamma ** sum(step >= milestone for milestone in steps), warmup_steps)


@dataclass(frozen=True)
class PlateauRule:
    """Doubles the length of training while it still improves, when the rate is about to fall.

    The reproduction of Bjorck et al. (2018, arXiv 1806.02375) stops after 20 epochs without a better validation loss,
    and doubles the number of epochs where it comes to their end without having stopped. This rule departs from it
    twice: it never stops early, and it is asked at the first milestone, for at the end a rate that had fallen a
    hundredfold would rise again. It doubles unless the last `patience` epochs brought no new best score.
    """

    first_milestone: float  # a fraction of the epochs
    patience: int  # epochs
    max_doublings: int

    def doubles(self, *, epochs_done: int, epochs: int, best_epoch: int, doublings: int) -> bool:
        """Whether to double the number of epochs after epoch `epochs_done`.

        `epochs`: the planned number, after `doublings` so far. `best_epoch`: that of the best validation score, counted
        from 1. The milestone is the last epoch that ends no later than it; training never doubles if there is none.
        """
        milestone_epoch = math.floor(round(self.first_milestone * epochs, 6))  # 0.29 * 100 is a little less than 29
        improving = best_epoch > epochs_done - self.patience
        return epochs_done == milestone_epoch and improving and doublings < self.max_doublings


@dataclass(frozen=True)
class Plateau:
    """`multistep` over the steps that are planned now; built again when `rule` doubles their number.

    The rule doubles before the first milestone's step, so the factor at that step is 1 before and after.
    """

    factor: LRLambda
    rule: PlateauRule

    def __call__(self, step: int) -> float:
        return self.factor(step)


def plateau(
    total_steps: int,
    warmup_steps: int = 0,
    *,
    milestones: Sequence[float] = (0.5, 0.75),
    gamma: float = 0.1,
    patience: int = 20,
    max_doublings: int = 4,
) -> Plateau:
    """`multistep` with the rule that doubles training. Raises ValueError without milestones."""
    if not milestones:
        raise ValueError("schedule.milestones=[]: at the first of them training may be doubled; name one.")
    rule = PlateauRule(first_milestone=milestones[0], patience=patience, max_doublings=max_doublings)
    return Plateau(multistep(total_steps, warmup_steps, milestones=milestones, gamma=gamma), rule)


def constant(total_steps: int, warmup_steps: int = 0) -> LRLambda:
    """Always 1 after the warm-up."""
    return _warmed_up(lambda _: 1.0, warmup_steps)


def _decay(curve: Callable[[float], float], total_steps: int, warmup_steps: int, final: float) -> LRLambda:
    """From 1 to `final` along `curve`, a function of the completed fraction of the steps after the warm-up."""

    def factor(step: int) -> float:
        return final + (1 - final) * curve(min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0))

    return _warmed_up(factor, warmup_steps)


def _warmed_up(factor: LRLambda, warmup_steps: int, *, top: float = 1.0) -> LRLambda:
    """top * (step + 1) / warmup_steps in the warm-up: the first step is not 0, and the last has the rate `top`."""
    return lambda step: top * (step + 1) / warmup_steps if step < warmup_steps else factor(step)


def make_schedule(optimizer: Optimizer, factor: LRLambda, *, step: int = 0) -> LambdaLR:
    """torch's scheduler for `factor` at optimizer step `step`; sets the optimizer's rate at once."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group.get("initial_lr", group["lr"])
    return LambdaLR(optimizer, factor, last_epoch=step - 1)
