"""The exponential moving average of a model's weights."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from runner.config.limits import LIMITS, check


class Ema:
    """An averaged copy of a model, for evaluation: after optimizer step t, counted from 0,

        average <- d * average + (1 - d) * value,    d = min(decay, (1 + t) / (10 + t))

    starting from the model's values. With `warmup=False`, d = `decay` from the first step. The warm-up is that of
    NFNets (Brock et al. 2021, arXiv 2102.06171).

    Floating-point buffers (running statistics) are averaged like parameters, integer buffers copied. `model` is the
    average: in evaluation mode, without gradients, with the same keys. What a method sets on modules besides parameters
    and buffers, such as the drop rates of stochastic depth, it updates in `Method.before_evaluation(ema.model, ...)`.

    Create it after surgery and after moving the model to its device. `decay` and `warmup` are not part of the state.
    ValueError for a decay outside (0, 1).
    """

    # torch's AveragedModel keeps its count in a tensor, which needs a device sync in every step, and starts from the
    # model's values after the first step.

    def __init__(self, model: nn.Module, *, decay: float = 0.99999, warmup: bool = True) -> None:
        check("", {"decay": LIMITS["train"]["ema"]}, decay=decay)
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.model = deepcopy(model).requires_grad_(False).eval()

    def update(self, model: nn.Module) -> None:
        """Update the average after an optimizer step, without a device sync."""
        averages = [*self.model.parameters(), *self.model.buffers()]
        values = [value.detach() for value in (*model.parameters(), *model.buffers())]
        pairs = list(zip(averages, values, strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        average = get_ema_multi_avg_fn(self._current_decay())
        average([mean for mean, _ in floating], [value for _, value in floating], None)
        whole = [pair for pair in pairs if not pair[0].is_floating_point()]
        if whole:
            torch._foreach_copy_([count for count, _ in whole], [value for _, value in whole])
        self.updates += 1

    def _current_decay(self) -> float:
        return min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay

    def state_dict(self) -> dict:
        """The averages and the number of updates."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict, model: nn.Module) -> None:
        """Restore the result of `state_dict`; methods' settings on modules come from `model`, restored before."""
        self.model = deepcopy(model).requires_grad_(False).eval()
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
