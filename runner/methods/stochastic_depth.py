"""Stochastic depth: residual blocks are dropped at random while training (Huang et al. 2016, arXiv 1603.09382)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from runner.config.limits import check
from runner.config.text import did_you_mean
from runner.layers.branch_costs import branch_costs
from runner.layers.stochastic_depth import StochasticDepth
from runner.layers.surgery import nothing_to_change
from runner.methods.batch_channel_norm import BatchChannelNorm2d
from runner.methods.drop_path import BranchGate, gate_names, refuse_other_rate
from runner.methods.gated_blocks import gated_class, is_torchvision_block
from runner.methods.method import Method

# of those that the methods here put at the end of a branch
LAST_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
ALIASES = {"ResNetBottleneck": "Bottleneck"}  # Composer's name for torchvision's class


class StochasticDepthMethod(Method):
    """`apply_stochastic_depth` in a run, with one generator for all gates and rates that depend on the step.

    At the completed share p of training each rate is its full value times

        min(1, (p - drop_from) / drop_warmup, (drop_until - p) / drop_cooldown)    for drop_from <= p < drop_until,

    and 0 outside; a `drop_warmup` or `drop_cooldown` of 0 leaves its term out, and drop_until=1 has no end. With
    drop_until=0.17 and drop_cooldown=0.17, or with drop_from=0.17, this is early or late stochastic depth (Liu et al.
    2023, arXiv 2303.01500). Before the first `on_step` the rates are those at the end of training, so that a loaded
    model is evaluated with them.
    `dropped_update` (block mode): how the optimizer updates the parameters of a block that was dropped for the whole
    step. "rest": without a gradient, so it skips them, with their momentum and weight decay. "continue": with a zero
    gradient, so momentum and weight decay go on, as in the code of Huang et al.
    Of each step `active_multiply_adds` is measured, the share of the forward pass's multiply-adds that was computed.
    `use_same_gpu_seed` (block mode): all processes drop the same blocks. Otherwise, and always for samples, each
    process takes its own part of the draws. The seed must be the same in all processes.
    """

    order = 40
    counted = "residual blocks"

    def __init__(
        self,
        *,
        drop_rate: float = 0.2,
        drop_distribution: str = "linear",
        stochastic_method: str = "block",
        rescale: str = "inference",
        drop_warmup: float = 0.0,
        drop_cooldown: float = 0.0,
        drop_from: float = 0.0,
        drop_until: float = 1.0,
        dropped_update: str = "rest",
        target_layer_name: str | None = None,
        use_same_gpu_seed: bool = True,
    ) -> None:
        self.settings = {
            "drop_rate": drop_rate,
            "drop_distribution": drop_distribution,
            "stochastic_method": stochastic_method,
            "rescale": rescale,
            "target_layer_name": target_layer_name,
        }
        self.window = {"drop_from": drop_from, "drop_until": drop_until}
        self.window |= {"drop_warmup": drop_warmup, "drop_cooldown": drop_cooldown}
        check("stochastic_depth", **self.settings, **self.window, dropped_update=dropped_update)
        if drop_from >= drop_until:
            raise ValueError(
                f"drop_from={drop_from}: no block is ever dropped, since drop_until={drop_until} comes no later. "
                "Choose a smaller drop_from, or a larger drop_until."
            )
        self.dropped_update = dropped_update
        self.leaves_unused = stochastic_method == "block" and drop_rate > 0
        self.differs_by_rank = stochastic_method == "sample" or not use_same_gpu_seed
        self.generator = torch.Generator()
        self.gates: list[StochasticDepth] = []
        self.parameters: list[nn.Parameter] = []  # of all blocks
        self.costs: list[float] = []  # of the gates' branches, as a share of the model's multiply-adds
        self.progress: float | None = None

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        self.generator.manual_seed(seed)
        num_blocks = apply_stochastic_depth(model, **self.settings, generator=self.generator)
        self.gates = _gates(model)
        self.costs = branch_costs(model, self.gates, example_input)
        blocks = [
            module for module in model.modules() if any(isinstance(m, StochasticDepth) for m in module.children())
        ]
        self.parameters = [parameter for block in blocks for parameter in block.parameters()]
        self._set_rates(self.gates)
        if self.differs_by_rank and torch.distributed.is_available() and torch.distributed.is_initialized():
            for gate in self.gates:
                gate.rank, gate.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return num_blocks

    def on_step(self, progress: float) -> None:
        """Set the rates of the next forward pass."""
        self.progress = progress
        self._set_rates(self.gates)

    def transform_gradients(self, model: nn.Module) -> Mapping[str, Tensor]:
        """With dropped_update="continue", give the parameters of dropped blocks a zero gradient; return the cost."""
        if self.dropped_update == "continue":
            for parameter in self.parameters:
                if parameter.grad is None and parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
        saved = sum(cost * gate.take_dropped_share() for cost, gate in zip(self.costs, self.gates, strict=True))
        return {"active_multiply_adds": torch.tensor(1 - saved)}

    def before_evaluation(self, model: nn.Module, train_images: Callable[[], Iterator[Tensor]]) -> None:
        """Set the current rates in `model`, which may be an averaged copy of the model that `apply` changed."""
        self._set_rates(_gates(model))

    def state_dict(self) -> dict[str, Tensor]:
        state = {"generator": self.generator.get_state()}
        if self.progress is not None:
            state["progress"] = torch.tensor(self.progress, dtype=torch.float64)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"].cpu())
        self.progress = state["progress"].item() if "progress" in state else None
        self._set_rates(self.gates)

    def _set_rates(self, gates: list[StochasticDepth]) -> None:
        share = _share_of_rate(1.0 if self.progress is None else self.progress, **self.window)
        for gate in gates:
            gate.warm_up(share)


def _share_of_rate(
    progress: float, *, drop_from: float, drop_until: float, drop_warmup: float, drop_cooldown: float
) -> float:
    """The share of the full rates at the completed share `progress` of training."""
    if progress < drop_from or (drop_until < 1 and progress >= drop_until):
        return 0.0
    rise = (progress - drop_from) / drop_warmup if drop_warmup else 1.0
    fall = (drop_until - progress) / drop_cooldown if drop_cooldown else 1.0
    return min(1.0, rise, fall)


def apply_stochastic_depth(
    model: nn.Module,
    *,
    drop_rate: float = 0.2,
    drop_distribution: str = "linear",
    stochastic_method: str = "block",
    rescale: str = "inference",
    target_layer_name: str | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """Put a gate (`runner.layers.stochastic_depth.StochasticDepth`) into each residual block; return their number.

    The rate of block l of L, in the order of registration, which in the models here is that of execution:

        drop_distribution="linear"     drop_rate * l / L, l = 1..L
        drop_distribution="uniform"    drop_rate

    `stochastic_method`: "block" draws one gate for the mini-batch and does not compute a dropped branch, "sample"
    draws one for each sample. `rescale`: "inference" multiplies branches by 1 - rate in evaluation, "training"
    divides kept branches by it in training. `generator`: a CPU generator for all gates; None is torch's global one.

    Blocks are torchvision's `BasicBlock` and `Bottleneck` (and subclasses that keep their `forward`), where the ReLU
    after the sum and the convolution of the shortcut always act; and modules that call their gate themselves, in an
    attribute `stochastic_depth` that is None or a gate, as `NFResBlock`. Where a block calls a layer on its branch,
    `drop_path` in timm's blocks and `torchvision.ops.StochasticDepth` in torchvision's, a gate takes the layer's place
    (and with it the rate that torchvision's models are made with); "block" then computes a dropped branch too. A block
    of two branches, as in transformers, has two gates with the rate of the block.

    `target_layer_name` selects the blocks of one class by its name. A class that is neither of the above is *assumed*
    to compute F(x) = x + f(x) from its first argument, and not to change x in place. A dropped block then returns x,
    and scaling gives x + s * (F(x) - x). This is exact for that form; with a ReLU after the sum only where x >= 0 and
    s = 0 or 1. Blocks whose output has another shape than x are never dropped nor scaled: the first forward runs the
    block once more, in evaluation mode, to find the shape.

    Blocks change their class in place; parameters, state-dict keys, hooks and class names stay. A second call gives the
    blocks new gates. With `zero_grad(set_to_none=True)`, torch's default, the parameters of a dropped block have no
    gradient, so the optimizer skips them, with their momentum and weight decay. `DistributedDataParallel` must know:
    pass find_unused_parameters=True, or choose stochastic_method="sample", which gives every parameter a gradient.

    Raises ValueError for a setting outside its range, an unknown class name, and a model without residual blocks.

    >>> from torchvision.models import resnet18
    >>> from runner.methods import apply_stochastic_depth
    >>> model = resnet18()
    >>> apply_stochastic_depth(model, drop_rate=0.2)
    8
    >>> model.layer1[0].stochastic_depth
    StochasticDepth(drop_rate=0.025, method=block, rescale=inference)
    >>> model.layer4[1].stochastic_depth
    StochasticDepth(drop_rate=0.2, method=block, rescale=inference)
    """
    check(
        "stochastic_depth",
        drop_rate=drop_rate,
        drop_distribution=drop_distribution,
        stochastic_method=stochastic_method,
        rescale=rescale,
    )
    blocks = _residual_blocks(model, target_layer_name)
    for block in blocks:
        refuse_other_rate(block)
        if hasattr(block, "stochastic_depth") and not _calls_its_gate(block) and not gate_names(block):
            raise ValueError(
                f"target_layer_name={target_layer_name}: a {type(block).__name__} has an attribute "
                f"stochastic_depth of another kind, a {type(block.stochastic_depth).__name__}, so that it may drop its "
                "branch already; set its own rate and leave stochastic_depth out, or name another class."
            )
    for index, block in enumerate(blocks, start=1):
        rate = drop_rate * index / len(blocks) if drop_distribution == "linear" else drop_rate
        names = gate_names(block)
        if not names and not _calls_its_gate(block):
            block.__class__ = gated_class(type(block))
        for name in names or ["stochastic_depth"]:
            gate_class = BranchGate if names else StochasticDepth
            gate = gate_class(rate, method=stochastic_method, rescale=rescale, generator=generator)
            setattr(block, name, gate.train(block.training))
    return len(blocks)


def fold_stochastic_depth(model: nn.Module) -> int:
    """Take the gates out of the blocks of `model`, in place; return their number. Evaluation stays, up to rounding.

    Blocks get their own class back. With rescale="inference" the factor 1 - rate goes into new Parameters of the
    norm that ends the branch of torchvision's blocks. Do not train the model further. Blocks that call a gate
    themselves, timm's with a `drop_path` among them, keep it.

    Raises ValueError, and changes nothing, if there is no such block, or one whose branch does not end in a norm with
    weight and bias: of a class of your own, say.

    >>> from torchvision.models import resnet18
    >>> from runner.methods import apply_stochastic_depth, fold_stochastic_depth
    >>> model = resnet18()
    >>> apply_stochastic_depth(model), fold_stochastic_depth(model), hasattr(model.layer1[0], "stochastic_depth")
    (8, 8, False)
    """
    blocks = [module for module in model.modules() if hasattr(module, "_ungated_class")]
    if not blocks:
        raise nothing_to_change(model, "residual blocks that apply_stochastic_depth changed")
    factors = [b.stochastic_depth.evaluation_factor for b in blocks]
    norms = [_last_norm(block) if factor != 1 else None for block, factor in zip(blocks, factors, strict=True)]
    for block, norm, factor in zip(blocks, norms, factors, strict=True):
        del block.stochastic_depth
        block.__class__ = block._ungated_class
        for name in ("weight", "bias") if norm is not None else ():
            parameter = getattr(norm, name)
            setattr(norm, name, nn.Parameter(parameter.detach() * factor, requires_grad=parameter.requires_grad))
    return len(blocks)


def _last_norm(block: nn.Module) -> nn.Module:
    """The norm at the end of the block's branch, as the block's own class has it."""
    norm = getattr(block, "bn3", getattr(block, "bn2", None)) if is_torchvision_block(block._ungated_class) else None
    if not isinstance(norm, LAST_NORMS) or isinstance(norm, BatchChannelNorm2d) or norm.weight is None:
        raise ValueError(
            f"a {type(block).__name__}'s branch ends in no norm with weight and bias that could take up the factor "
            '1 - rate of evaluation: apply stochastic depth with rescale="training", which has none'
        )
    return norm


def _residual_blocks(model: nn.Module, target_layer_name: str | None) -> list[nn.Module]:
    classes = _classes_of_blocks(model)
    if target_layer_name is None:
        blocks = [
            module
            for module in model.modules()
            if _calls_its_gate(module) or is_torchvision_block(type(module)) or gate_names(module)
        ]
        if not blocks:
            raise ValueError(
                "stochastic_depth: the model has no residual block: looked for torchvision's BasicBlock and Bottleneck "
                "and for modules with an attribute stochastic_depth or drop_path. Name the class of its blocks with "
                f"target_layer_name=CLASS; found: {', '.join(classes) or 'none'}."
            )
        return blocks
    names = {type(module).__name__ for module in model.modules()}
    name = target_layer_name if target_layer_name in names else ALIASES.get(target_layer_name, target_layer_name)
    blocks = [module for module in model.modules() if type(module).__name__ == name]
    if not any(list(block.children()) for block in blocks):
        fault = "that is a single layer, not a residual block" if blocks else "the model has no block of that class"
        raise ValueError(
            f"target_layer_name={target_layer_name}: {fault}; found: {', '.join(classes) or 'none'}. "
            f"{did_you_mean(target_layer_name, classes)}".rstrip()
        )
    return blocks


def _classes_of_blocks(model: nn.Module) -> list[str]:
    """The class names of the modules that contain others, as blocks do."""
    modules = [module for module in model.modules() if module is not model and next(module.children(), None)]
    return sorted({type(module).__name__ for module in modules} - {"Sequential", "ModuleList", "ModuleDict"})


def _gates(model: nn.Module) -> list[StochasticDepth]:
    return [module for module in model.modules() if isinstance(module, StochasticDepth)]


def _calls_its_gate(module: nn.Module) -> bool:
    return hasattr(module, "stochastic_depth") and isinstance(module.stochastic_depth, StochasticDepth | None)
