"""The gate of stochastic depth: whether a residual branch is computed, and how it is scaled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from runner.config.limits import check, own_ranges


def refuse_export() -> None:
    """Raise a RuntimeError under torch.export, which would record the gates of one step."""
    if torch.compiler.is_exporting():
        raise RuntimeError(
            "stochastic depth draws its gates in Python, anew for each step, which torch.export cannot record: call "
            "model.eval() before the export"
        )


class StochasticDepth(nn.Module):
    """The gate b ~ Bernoulli(1 - p) of a residual branch f (Huang et al. 2016, arXiv 1603.09382).

    `gate(f, x)` returns, with p the `current_rate`,

        training     b * f(x)          rescale="inference"     b * f(x) / (1 - p)    rescale="training"
        evaluation   (1 - p) * f(x)                            f(x)

    method="block": one b for the mini-batch; at b = 0 the branch is *not computed* and the gate returns None. So batch
    norms in it keep their statistics, and with gradients set to None the optimizer skips its parameters.
    method="sample": one b for each sample (dimension 0); the branch is computed and multiplied.

    `drop_rate` is the final rate; `warm_up` sets the current one. The gate has neither parameters nor buffers. It draws
    on the CPU from `generator` (None: torch's global one), which never waits for a GPU and gives the same on every
    device; at p = 0 it draws nothing. With several processes and equal generators, each draws for all `world_size` and
    takes the part of its `rank`: their gates differ, their generators stay equal.

    Raises ValueError for a drop rate outside [0, 1) and an unknown method or rescale.
    """

    def __init__(
        self,
        drop_rate: float,
        *,
        method: str = "block",
        rescale: str = "inference",
        generator: torch.Generator | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        ranges = own_ranges("stochastic_depth")
        check(
            "", {**ranges, "method": ranges["stochastic_method"]}, drop_rate=drop_rate, method=method, rescale=rescale
        )
        self.drop_rate = drop_rate
        self.current_rate = drop_rate
        self.method = method
        self.rescale = rescale
        self.generator = generator
        self.rank = rank
        self.world_size = world_size
        self.passes = self.dropped_passes = 0  # since `take_dropped_share`

    def warm_up(self, share: float) -> None:
        """Set the current rate to `share` (0 to 1) of the final one."""
        self.current_rate = share * self.drop_rate

    def take_dropped_share(self) -> float:
        """The share of the training passes since the last call in which the branch was not computed."""
        share = self.dropped_passes / max(self.passes, 1)
        self.passes = self.dropped_passes = 0
        return share

    @property
    def evaluation_factor(self) -> float:
        """What evaluation multiplies the branch by."""
        return 1 - self.current_rate if self.rescale == "inference" else 1.0

    def forward(self, branch: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
        if self.training:
            refuse_export()
            return self._forward_training(branch, x)
        factor = self.evaluation_factor
        return branch(x) * factor if factor != 1 else branch(x)

    # Tracing would fix the gates and the rate in a compiled model. The branch itself is still compiled.
    @torch.compiler.disable(recursive=False)
    def _forward_training(self, branch: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
        rate = self.current_rate
        self.passes += 1
        if rate == 0:
            return branch(x)
        if self.method == "block":
            if not self._draw(1).item():
                self.dropped_passes += 1
                return None
            out = branch(x)
        else:
            out = branch(x)
            out = out * self._sample_mask(out)
        return out / (1 - rate) if self.rescale == "training" else out

    @torch.compiler.disable
    def _draw(self, num_gates: int) -> Tensor:
        """For each of `num_gates` gates whether it is open, on the CPU."""
        uniform = torch.rand(self.world_size, num_gates, generator=self.generator, device="cpu")
        return uniform[self.rank] >= self.current_rate

    @torch.compiler.disable
    def _sample_mask(self, out: Tensor) -> Tensor:
        """The gates of the samples of `out`, with its dtype and device, in a shape that multiplies it."""
        open_gates = self._draw(len(out)).view(-1, *[1] * (out.dim() - 1))
        return open_gates.to(out.dtype).to(out.device, non_blocking=True)

    def extra_repr(self) -> str:
        return f"drop_rate={self.drop_rate:.4g}, method={self.method}, rescale={self.rescale}"
