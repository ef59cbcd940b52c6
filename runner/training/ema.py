"""The exponential moving average of a model's weights."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from runner.config.limits import check


class Ema:
    """An averaged copy of a model, for evaluation: after optimizer step t, counted from 0,

        average <- d * average + (1 - d) * value,    d = min(decay, (1 + t) / (10 + t))

    from the model's values at the time of construction. With `warmup=False`, d = `decay` from the first step. The
    warm-up is that of the NFNets (Brock et al. 2021, arXiv 2102.06171; in their code it begins with the first step).

    Floating-point buffers (running statistics) are averaged like parameters, integer buffers copied. `model` is the
    averaged `nn.Module`: in evaluation mode, without gradients, with the keys of the model itself. What a method sets
    on modules beside parameters and buffers, as the drop rates of stochastic depth, it brings up to date there in
    `Method.before_evaluation(ema.model, ...)`.

    To be made after surgery and after the model has been moved to its device; on resume after its weights are loaded.
    `decay` and `warmup` are settings, not state. ValueError for a decay outside (0, 1).
    """

    # torch's AveragedModel keeps its count in a tensor, which the host would wait for in every step on a GPU, and takes
    # the model's values after the first step as its start.

    def __init__(self, model: nn.Module, *, decay: float = 0.99999, warmup: bool = True) -> None:
        check("train", ema=decay)
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.model = deepcopy(model).requires_grad_(False).eval()

    def update(self, model: nn.Module) -> None:
        """Take in the values of `model` after an optimizer step; the host never waits for its device."""
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
        """The averages and the number of updates, for a resumed run to go on with the same bits."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict, model: nn.Module) -> None:
        """Take up what `state_dict` gave; `model`, restored before, tells what methods have set on modules."""
        self.model = deepcopy(model).requires_grad_(False).eval()
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
