"""Adaptive gradient clipping: a unit's gradient norm is limited relative to its weight norm (arXiv 2102.06171)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, compress

import numpy
import torch
from torch import Tensor, nn

from runner.config.limits import check, own_ranges
from runner.config.text import did_you_mean
from runner.layers.classifier import find_classifier
from runner.layers.surgery import nothing_to_change
from runner.layers.triton_kernels import import_kernels
from runner.layers.unitwise_norm import is_one_unit, norm_dtype
from runner.methods.gradient_clipping import cache_sized_parts
from runner.methods.method import Method


@torch.no_grad()
def adaptive_clip_grad_(
    parameters: nn.Module | Tensor | Iterable[Tensor | tuple[str, Tensor]],
    *,
    clip: float = 0.01,
    eps: float = 1e-3,
    exclude: Iterable[str | Tensor] = (),
    granularity: str = "unit",
    groups: Mapping[str, float] | None = None,
    clip_classifier: bool = False,
) -> dict[str, Tensor]:
    """Clip gradients in place, unit by unit, relative to the weights (Brock et al. 2021, arXiv 2102.06171).

    For each unit i with |G_i| / max(|W_i|, eps) > clip:

        G_i <- clip * max(|W_i|, eps) * G_i / max(|G_i|, 1e-6).

    `granularity="unit"` takes the units of `unitwise_norm`; "layer" takes each tensor as one unit. `groups` maps names
    of parameters or modules to a clip of their own; the longest matching name counts.

    `parameters` is a model, a tensor, or an iterable of tensors or of (name, tensor) pairs. In a model the classifier's
    weight (see `find_classifier`) is not clipped, unless `clip_classifier`; its bias is. `exclude` leaves out more:
    parameters, or names of parameters or modules; it must name a classifier that `find_classifier` does not find.
    Parameters without a gradient are skipped, and shared ones clipped once. The units of a transposed convolution's
    weight are its input channels.

    A unit with a NaN stays as it is, and an infinity becomes a NaN: neither turns finite, nor changes other units.

    The gradients must be what the optimizer will see: summed over micro-batches, reduced over processes and unscaled
    (`GradScaler.unscale_`).

    Returns "clipped_share", the share of the units that were clipped, and "largest_ratio", the largest
    |G_i| / max(|W_i|, eps) before clipping: 0-dim tensors on the parameters' device; the host does not wait for them.

    Raises ValueError for an unknown name in `exclude` or `groups`, a sparse gradient, and an unknown classifier.

    >>> import torch
    >>> from runner.methods import adaptive_clip_grad_
    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))  # two units, of norms 5 and 2
    >>> weight.grad = torch.tensor([[0.6, 0.8], [0.0, 0.01]])  # of norms 1 and 0.01
    >>> metrics = adaptive_clip_grad_(weight, clip=0.1)
    >>> weight.grad  # the first is clipped to 0.1 * 5
    tensor([[0.3000, 0.4000],
            [0.0000, 0.0100]])
    >>> round(metrics["clipped_share"].item(), 3), round(metrics["largest_ratio"].item(), 3)
    (0.5, 0.2)
    """
    check("agc", clip=clip, eps=eps, granularity=granularity)
    entries = _clipped_parameters(parameters, exclude, clip, groups, clip_classifier)
    return _clip_gradients(entries, eps, granularity, {})


def _clip_gradients(
    entries: Iterable[tuple[str, Tensor, float]], eps: float, granularity: str, tables: dict
) -> dict[str, Tensor]:
    """`adaptive_clip_grad_` for (name, parameter, clip) entries; `tables` keeps a kernel's for the next call."""
    groups: dict[tuple[torch.device, torch.dtype, float], list[Tensor]] = defaultdict(list)
    for name, parameter, clip in entries:
        grad = parameter.grad
        if grad is None or grad.numel() == 0:
            continue
        if grad.layout is not torch.strided:
            raise ValueError(
                f"{name or 'a parameter'} of shape {tuple(parameter.shape)} has a sparse gradient, which adaptive "
                f"gradient clipping does not take: use a dense one (sparse=False), or name it in exclude=[...]"
            )
        groups[parameter.device, parameter.dtype, clip].append(parameter)
    if not groups:
        return {"clipped_share": torch.zeros(()), "largest_ratio": torch.zeros(())}
    counts = [
        _clip_group(group, key[-1], eps, granularity, tables.setdefault(key, {})) for key, group in groups.items()
    ]
    device = counts[0][0].device
    num_units = sum(number for _, _, number in counts)
    return {
        "clipped_share": torch.stack([clipped.to(device) for clipped, _, _ in counts]).sum() / num_units,
        "largest_ratio": torch.stack([ratio.to(device) for _, ratio, _ in counts]).amax(),
    }


class AdaptiveGradientClipping(Method):
    """Adaptive gradient clipping of all parameters but those in `exclude` and, unless `clip_classifier`, the
    classifier's weight.
    """

    capturable = True
    counted = "parameter tensors to clip"

    def __init__(
        self,
        *,
        clip: float = 0.01,
        eps: float = 1e-3,
        granularity: str = "unit",
        exclude: Sequence[str] = (),
        groups: Mapping[str, float] | None = None,
        clip_classifier: bool = False,
    ) -> None:
        check("agc", clip=clip, eps=eps, granularity=granularity)
        self.clip = clip
        self.eps = eps
        self.granularity = granularity
        self._selection = (tuple(exclude), clip, groups, clip_classifier)
        self._model: nn.Module | None = None  # whose parameters, after all surgery, are `_entries`
        self._entries: list[tuple[str, Tensor, float]] = []
        self._tables: dict = {}  # of the kernel; a CUDA graph reads them again and again

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        """Return the number of parameter tensors that will be clipped; no module changes."""
        number = sum(parameter.requires_grad for _, parameter, _ in _clipped_parameters(model, *self._selection))
        if number == 0:
            raise nothing_to_change(model, "parameters to train beside the classifier's weight and those in exclude")
        return number

    def transform_gradients(self, model: nn.Module) -> Mapping[str, Tensor]:
        if self._model is not model:
            self._model, self._entries = model, _clipped_parameters(model, *self._selection)
        with torch.no_grad():
            return _clip_gradients(self._entries, self.eps, self.granularity, self._tables)


def _clip_group(
    parameters: Sequence[Tensor], clip: float, eps: float, granularity: str, tables: dict
) -> tuple[Tensor, Tensor, int]:
    """Clip parameters of one device and dtype; return the number of clipped units, the largest ratio, and all units.

    The norms of many units go into one vector, so that a few calls do the arithmetic for all of them; on a GPU with
    Triton a kernel does all but the two numbers.
    """
    split: list[Tensor] = []
    whole: list[Tensor] = []
    for parameter in parameters:
        (whole if granularity == "layer" or is_one_unit(parameter) else split).append(parameter)
    on_cpu = parameters[0].is_cpu
    kernels = import_kernels("runner.layers.clip_kernels") if parameters[0].is_cuda else None
    if kernels is not None and kernels.can_clip(parameters):
        units = [*(parameter.shape[0] for parameter in split), *[1] * len(whole)]
        weight_norm, grad_norm = kernels.clip_units(split + whole, units, clip, eps, tables)
        return (grad_norm > weight_norm * clip).sum(), (grad_norm / weight_norm).amax(), weight_norm.numel()
    parts = [*((part, []) for part in cache_sized_parts(split)), ([], whole)] if on_cpu else [(split, whole)]
    norms = [_clip_part(*part, clip, eps) for part in parts if any(part)]
    weight_norm, grad_norm = (torch.cat(of_one_kind) for of_one_kind in zip(*norms, strict=True))
    return (grad_norm > weight_norm * clip).sum(), (grad_norm / weight_norm).amax(), weight_norm.numel()


def _clip_part(split: list[Tensor], whole: list[Tensor], clip: float, eps: float) -> tuple[Tensor, Tensor]:
    """Clip parameters of one unit per row (`split`) and of one unit (`whole`); return max(|W|, eps) and |G|."""
    weight_norm = _norms(split, whole).clamp_(min=eps)
    grad_norm = _norms([p.grad for p in split], [p.grad for p in whole])
    max_norm = weight_norm * clip
    is_clipped = grad_norm > max_norm
    factor = torch.where(is_clipped, max_norm / grad_norm.clamp(min=1e-6), 1.0)
    grads = [p.grad for p in split + whole]
    # Reading numbers is free on a CPU and multiplying by them cheaper than by tensors; half precision would round them.
    if factor.is_cpu and not split and all(grad.dtype == factor.dtype for grad in grads):
        chosen = [(grad, number) for grad, number in zip(grads, factor.tolist(), strict=True) if number != 1]
        if chosen:
            torch._foreach_mul_([grad for grad, _ in chosen], [number for _, number in chosen])
        return weight_norm, grad_norm
    sizes = [*(p.shape[0] for p in split), *[1] * len(whole)]
    factors = factor.split(sizes)
    if factor.is_cpu:  # on a GPU, reading which are clipped would wait for it
        starts = [0, *accumulate(sizes[:-1])]
        has_clipped = numpy.logical_or.reduceat(is_clipped.numpy(), starts)
        grads, factors = list(compress(grads, has_clipped)), list(compress(factors, has_clipped))
    if grads:
        shapes = [
            (-1, *(1,) * (grad.ndim - 1)) if grad.ndim > 1 and factor.shape[0] > 1 else ()
            for factor, grad in zip(factors, grads, strict=True)
        ]
        torch._foreach_mul_(grads, [factor.view(shape) for factor, shape in zip(factors, shapes, strict=True)])
    return weight_norm, grad_norm


def _norms(split: Sequence[Tensor], whole: Sequence[Tensor]) -> Tensor:
    """The norms of the units of `split`, then those of the tensors in `whole`, in one vector."""
    dtype = norm_dtype((*split, *whole)[0])
    norms = [torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), dtype=dtype) for tensor in split]
    if whole:
        norms.append(torch.stack(torch._foreach_norm(whole, 2, dtype=dtype)))
    return torch.cat(norms)


def _clipped_parameters(
    parameters: nn.Module | Tensor | Iterable[Tensor | tuple[str, Tensor]],
    exclude: Iterable[str | Tensor],
    clip: float,
    groups: Mapping[str, float] | None,
    clip_classifier: bool,
) -> list[tuple[str, Tensor, float]]:
    """(name, parameter, clip) of each parameter to clip, once; the name is "" if unknown."""
    exclude = (exclude,) if isinstance(exclude, (str, Tensor)) else tuple(exclude)
    if wrong := [entry for entry in exclude if not isinstance(entry, (str, Tensor))]:
        raise ValueError(f"exclude={wrong}: it takes the names of parameters or modules, or parameters.")
    left_out = {id(entry) for entry in exclude if isinstance(entry, Tensor)}
    if isinstance(parameters, nn.Module):
        named = list(_unwrapped(parameters).named_parameters(remove_duplicate=False))
        if not clip_classifier:
            left_out |= _classifier_weight(parameters, required=not exclude)
    else:
        entries = [parameters] if isinstance(parameters, Tensor) else parameters
        named = [("", entry) if isinstance(entry, Tensor) else entry for entry in entries]
    for entry in exclude:
        if isinstance(entry, str):
            left_out |= _members_of(entry, named, "exclude")
    own_clips: dict[int, float] = {}
    for name, own_clip in sorted((groups or {}).items(), key=lambda item: len(str(item[0]))):
        if own_clip not in (limit := own_ranges("agc")["clip"]):
            raise ValueError(f"groups.{name}={own_clip}: {limit}.")
        members = _members_of(name, named, "groups")
        if members <= left_out:
            raise ValueError(
                f"groups.{name}={own_clip}: nothing in it is clipped, being the classifier's weight or named in "
                "exclude; leave it out."
            )
        own_clips |= dict.fromkeys(members, own_clip)
    unique: dict[int, tuple[str, Tensor, float]] = {}
    for name, parameter in named:
        unique.setdefault(id(parameter), (name, parameter, own_clips.get(id(parameter), clip)))
    return [entry for key, entry in unique.items() if key not in left_out]


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel and torch.compile's wrapper."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return _unwrapped(model.module)
    return _unwrapped(model._orig_mod) if type(model).__name__ == "OptimizedModule" else model


def _classifier_weight(model: nn.Module, required: bool) -> set[int]:
    """The ids of the classifier's parameters but its bias; several if its weight is parametrized."""
    try:
        classifier = find_classifier(model)
    except ValueError:
        if required:
            raise
        return set()
    return {id(parameter) for name, parameter in classifier.named_parameters() if name != "bias"}


def _members_of(name: str, named: Sequence[tuple[str, Tensor]], setting: str) -> set[int]:
    """The ids of the parameters whose name, or its last part, is `name`, or that lie in the module `name`."""
    name = str(name)
    members = {
        id(parameter)
        for full, parameter in named
        if name in (full, full.rpartition(".")[2]) or full.startswith(f"{name}.")
    }
    if not members:
        names = list(dict.fromkeys(part for full, _ in named for part in accumulate(full.split("."), "{}.{}".format)))
        hint = did_you_mean(name, names) if any(names) else "Names need a model, or (name, tensor) pairs."
        raise ValueError(f"{setting}: no parameter or module is called {name!r}. {hint}".rstrip())
    return members
