"""Weight standardization: convolutions whose output filters have mean 0 and about variance 1 (arXiv 1903.10520)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from runner.config.limits import check
from runner.config.text import did_you_mean
from runner.layers.execution_order import execution_order
from runner.layers.matrix_conv import MatrixConv2d
from runner.layers.same_padding import SamePadConv2d
from runner.layers.scaled_std_conv import ScaledStdConv2d
from runner.layers.standardized_conv import StandardizedConv, is_channels_last, standardize_by_kernel
from runner.layers.surgery import CONVOLUTIONS, nothing_to_change, replace_modules
from runner.methods.method import Method
from runner.methods.norm_replacement import was_trained


def standardize(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """W_hat = (W - mean) / sqrt(var + eps) for each output filter (Qiao et al. 2019, arXiv 1903.10520).

    `weight` is (out, in / groups, *kernel) in any memory format, which stays; var is biased. So W_hat has the variance
    var / (var + eps): 1 unless the weights are small, 0.71 at a deviation of 0.005.
    """
    by_kernel = standardize_by_kernel(weight, None, eps, _formula)
    if by_kernel is not None:
        return by_kernel
    if is_channels_last(weight):
        return standardize(weight.movedim(1, -1), eps).movedim(-1, 1)
    return _formula(weight, None, eps)


def _formula(weight: Tensor, _: None, eps: float) -> Tensor:
    return F.layer_norm(weight, weight.shape[1:], eps=eps)


class _StdConv(StandardizedConv):
    """The base of `StdConv1d`, `StdConv2d` and `StdConv3d`, before the torch class."""

    def __init__(self, *args, eps: float = 1e-5, **kwargs) -> None:
        check("weight_standardization", eps=eps)
        super().__init__(*args, **kwargs)
        self.eps = eps

    def standardized_weight(self) -> Tensor:
        """The weight the convolution uses, of the shape of `weight`."""
        return standardize(self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"


class StdConv1d(_StdConv, nn.Conv1d):
    """`StdConv2d` in one dimension.

    >>> import torch
    >>> from runner.methods import StdConv1d
    >>> conv = StdConv1d(1, 1, 2, eps=0)
    >>> conv.weight.data = torch.tensor([[[3.0, 7.0]]])  # mean 5, standard deviation 2
    >>> conv.standardized_weight()
    tensor([[[-1.,  1.]]], grad_fn=<...>)
    """


class StdConv2d(_StdConv, MatrixConv2d):
    """`nn.Conv2d` with weight standardization (Qiao et al. 2019, arXiv 1903.10520).

    For each output filter, with mean and biased variance over (in_channels / groups, *kernel_size),

        W_hat = (W - mean) / sqrt(var + eps).

    Arguments, parameters and state-dict keys are those of `nn.Conv2d`, beside `eps`. Under autocast the weight is
    standardized in fp32 and then rounded. Each forward computes W_hat; within `cached_standardized_weights`
    an evaluation computes it once, and `fold_weight_standardization` makes final weights plain.

    >>> import torch
    >>> from runner.methods import StdConv2d
    >>> conv = StdConv2d(3, 8, 3, eps=0)
    >>> var, mean = torch.var_mean(conv.standardized_weight(), (1, 2, 3), correction=0)
    >>> torch.allclose(mean, torch.zeros(8), atol=1e-6), torch.allclose(var, torch.ones(8), atol=1e-5)
    (True, True)
    """


class StdConv3d(_StdConv, nn.Conv3d):
    """`StdConv2d` in three dimensions.

    >>> import torch
    >>> from runner.methods import StdConv3d
    >>> conv = StdConv3d(2, 4, 3)
    >>> torch.allclose(conv.standardized_weight().mean((1, 2, 3, 4)), torch.zeros(4), atol=1e-6)
    True
    """


_STANDARDIZED = {nn.Conv1d: StdConv1d, nn.Conv2d: StdConv2d, nn.Conv3d: StdConv3d}
_PLAIN = {standardized: plain for plain, standardized in _STANDARDIZED.items()}


def apply_weight_standardization(
    model: nn.Module,
    *,
    n_last_layers_ignore: int = 0,
    example_input: Tensor | None = None,
    eps: float = 1e-5,
    ignore: Iterable[str] = (),
) -> int:
    """Standardize the weights of the model's convolutions, in place; return how many were changed.

    `nn.Conv1d/2d/3d` become `StdConv1d/2d/3d` and keep their names and Parameter objects. Standardized convolutions
    (`ScaledStdConv2d` too) and transposed ones stay as they are, and so do, with a warning, those of a single weight
    per filter (1x1 over one channel), which standardization would turn to 0.

    `n_last_layers_ignore` leaves out the last convolutions in order of execution, found by running the model on
    `example_input` in evaluation mode. Every convolution counts, whatever its class and whether or not `ignore` names
    it, so that a second call changes nothing. One that runs several times counts at its last run; those that do not run
    come first. `ignore` names modules to leave out, with all they contain.

    Raises ValueError if there is nothing to standardize; if `n_last_layers_ignore` leaves none or lacks
    `example_input`; for an unknown name in `ignore`; and for a subclass of a torch convolution that `ignore` does not
    name, since it may compute something else. Warns if batch norms show that the model was trained before: weights
    trained without standardization are unlikely to work with it.

    >>> import torch
    >>> from torchvision.models import resnet18
    >>> from runner.methods import apply_weight_standardization
    >>> apply_weight_standardization(resnet18(), n_last_layers_ignore=2, example_input=torch.randn(1, 3, 32, 32))
    18
    """
    check("weight_standardization", n_last_layers_ignore=n_last_layers_ignore, eps=eps)
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)}
    if all(isinstance(module, ScaledStdConv2d) for module in convolutions.values()):
        if convolutions:
            raise ValueError(
                f"the {type(model).__name__}'s convolutions have scaled weight standardization already: "
                f"leave weight_standardization out, or choose a model without it"
            )
        raise nothing_to_change(model, "convolutions (nn.Conv1d, nn.Conv2d, nn.Conv3d)")

    left_out = set(_last_executed(model, list(convolutions.values()), n_last_layers_ignore, example_input))
    left_out |= _inside(model, (ignore,) if isinstance(ignore, str) else ignore)
    chosen = {name: module for name, module in convolutions.items() if module not in left_out}
    if not chosen:
        raise nothing_to_change(model, f"convolutions beside the {len(convolutions)} that are left out")
    for name, module in chosen.items():
        if not (type(module) in _STANDARDIZED or isinstance(module, (_StdConv, ScaledStdConv2d))):
            raise ValueError(
                f"{name} is a {type(module).__module__}.{type(module).__name__}, which may compute something else "
                f"than its torch base: name it in ignore=[...] to leave it as it is"
            )
        if extra := (module._parameters.keys() | module._buffers.keys()) - {"weight", "bias", "gain"}:
            raise ValueError(
                f"{name} has {', '.join(sorted(extra))} beside weight and bias, as pruned and reparametrized layers "
                "have, which would be lost: make that permanent first (torch.nn.utils.prune.remove, "
                "remove_weight_norm), or name the layer in ignore=[...]"
            )
    single = [n for n, module in chosen.items() if type(module) in _STANDARDIZED and module.weight[0].numel() == 1]
    chosen = {name: module for name, module in chosen.items() if name not in single}
    if not chosen:
        raise nothing_to_change(model, "convolutions whose filters have more than one weight")
    if single:
        warnings.warn(
            f"weight_standardization: {len(single)} convolutions are left as they are, since their filters have a "
            f"single weight, which would become 0: {', '.join(single)}",
            stacklevel=2,
        )
    to_change = {module for module in chosen.values() if type(module) in _STANDARDIZED}
    if to_change and any(was_trained(module) for module in model.modules()):
        warnings.warn(
            f"weight_standardization: the {type(model).__name__} was trained before (its batch norms hold statistics "
            "of data). Weights that were trained without standardization are unlikely to work with it: train from "
            "scratch, or load weights that were trained with it.",
            stacklevel=2,
        )
    return replace_modules(
        model, lambda module: module in to_change, lambda module: _rebuild(module, _STANDARDIZED[type(module)], eps=eps)
    )


def fold_weight_standardization(model: nn.Module) -> int:
    """Replace standardized convolutions by plain ones with the standardized weights; return how many were replaced.

    >>> import torch
    >>> from runner.methods import StdConv2d, fold_weight_standardization
    >>> model = torch.nn.Sequential(StdConv2d(3, 8, 3), torch.nn.ReLU())
    >>> x = torch.randn(1, 3, 5, 5)
    >>> before = model(x)
    >>> fold_weight_standardization(model)
    1
    >>> type(model[0]).__name__, torch.equal(model(x), before)
    ('Conv2d', True)

    The model computes the same at the cost of plain convolutions; do not train it further. Weights become new
    Parameters, which include the gain of a `ScaledStdConv2d`; biases stay the same objects. The new layers are
    `nn.Conv1d/2d/3d`, or a `SamePadConv2d` with the same keys where TensorFlow's SAME padding is uneven or depends on
    the size of the input (a stride, or an even kernel).

    Raises ValueError if no layer has standardized weights.
    """
    folded: list[tuple[nn.Module, nn.Module]] = []

    def fold(layer: nn.Module) -> nn.Module:
        plain = _plain_form(layer)
        folded.append((layer, plain))
        return plain

    changed = replace_modules(model, lambda module: isinstance(module, (_StdConv, ScaledStdConv2d)), fold)
    if not changed:
        raise nothing_to_change(model, "convolutions with standardized weights (StdConv1d/2d/3d, ScaledStdConv2d)")
    for layer, plain in folded:
        plain.weight = nn.Parameter(layer.standardized_weight().detach(), requires_grad=layer.weight.requires_grad)
    return changed


class WeightStandardization(Method):
    """Weight standardization of all convolutions but the last `n_last_layers_ignore` and those inside `ignore`."""

    order = 30
    capturable = True
    counted = "convolutions"

    def __init__(self, *, n_last_layers_ignore: int = 0, eps: float = 1e-5, ignore: Iterable[str] = ()) -> None:
        check("weight_standardization", n_last_layers_ignore=n_last_layers_ignore, eps=eps)
        self.settings = {"n_last_layers_ignore": n_last_layers_ignore, "eps": eps, "ignore": tuple(ignore)}

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return apply_weight_standardization(model, example_input=example_input, **self.settings)


def _last_executed(
    model: nn.Module, convolutions: list[nn.Module], number: int, example_input: Tensor | None
) -> list[nn.Module]:
    """The last `number` of `convolutions`, ordered by their last run; those that do not run come first."""
    if number == 0:
        return []
    if number >= len(convolutions):
        raise ValueError(
            f"n_last_layers_ignore={number}: the {type(model).__name__} has "
            f"{len(convolutions)} convolutions, so none would be standardized; it must be less"
        )
    if example_input is None:
        raise ValueError(
            f"n_last_layers_ignore={number} needs example_input, a batch on the model's device: "
            f"the order of the layers is that of their execution"
        )
    last_run = {layer: index for index, layer in enumerate(execution_order(model, convolutions, example_input))}
    return sorted(convolutions, key=lambda layer: last_run.get(layer, -1))[-number:]


def _inside(model: nn.Module, names: Iterable[str]) -> set[nn.Module]:
    """The modules of these names and all they contain."""
    modules = dict(model.named_modules(remove_duplicate=False))
    inside: set[nn.Module] = set()
    for name in names:
        if name not in modules:
            hint = did_you_mean(name, modules)
            raise ValueError(f"ignore: the {type(model).__name__} has no module {name!r}. {hint}".rstrip())
        inside.update(modules[name].modules())
    return inside


def _plain_form(layer: nn.Module) -> nn.Module:
    """`layer` without standardization, on the meta device."""
    if isinstance(layer, _StdConv):
        return _rebuild(layer, _PLAIN[type(layer)])
    if layer.padding != "same":
        return _rebuild(layer, nn.Conv2d)
    spans = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    if all(span == 0 or (stride == 1 and span % 2 == 0) for span, stride in zip(spans, layer.stride, strict=True)):
        return _rebuild(layer, nn.Conv2d, padding=tuple(span // 2 for span in spans))
    return _rebuild(layer, SamePadConv2d)


def _rebuild(conv: nn.Module, convolution_class: type[nn.Module], **changes: object) -> nn.Module:
    """A `convolution_class` with the settings of `conv`, on the meta device: it takes over the parameters."""
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    settings = {name: getattr(conv, name) for name in names} | {"bias": conv.bias is not None, "device": "meta"}
    return convolution_class(**settings | changes)
