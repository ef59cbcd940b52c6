"""Dropout before the classifier (Srivastava et al. 2014), where NF-ResNets have it (arXiv 2101.08692)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from runner.config.limits import check
from runner.layers.classifier import find_classifier
from runner.methods.method import Method

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class DropInput:
    """A forward pre-hook that applies dropout to the layer's input.

    A hook keeps the layer's class and keys, so a 1x1 convolution can be standardized before or after.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, layer: nn.Module, inputs: tuple) -> tuple:
        x, *others = inputs
        return F.dropout(x, self.rate, layer.training), *others


def apply_dropout(model: nn.Module, *, rate: float = 0.2) -> int:
    """Apply dropout to the input of the model's classifier; return the number of layers changed, 1 or 0.

    With z ~ Bernoulli(1 - rate) drawn for each value x of the input (JMLR 15:1929),

        training    z * x / (1 - rate)        evaluation    x.

    The classifier is the layer that `runner.layers.classifier.find_classifier` finds. Parameters, keys and the classes
    of layers stay. A second call sets the new rate, and returns 0 if it is the same.

    Raises ValueError for a rate outside [0, 1), an unknown classifier, and a model that has a dropout layer with p > 0
    beside its classifier, so that nothing is dropped twice unnoticed.

    >>> from torch import nn
    >>> from runner.methods import apply_dropout
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> apply_dropout(model, rate=0.5), apply_dropout(model, rate=0.2), apply_dropout(model, rate=0.2)
    (1, 1, 0)
    """
    check("dropout", rate=rate)
    classifier = find_classifier(model, remedy="leave dropout out")
    _refuse_own_dropout(model, classifier)
    present = [hook for hook in classifier._forward_pre_hooks.values() if isinstance(hook, DropInput)]
    if not present:
        classifier.register_forward_pre_hook(DropInput(rate))
        return 1
    changed = present[0].rate != rate
    present[0].rate = rate
    return int(changed)


class DropoutMethod(Method):
    """Dropout before the classifier, drawn from torch's global generator; see `apply_dropout`."""

    capturable = True
    counted = "classifier with dropout before it"

    def __init__(self, *, rate: float = 0.2) -> None:
        check("dropout", rate=rate)
        self.rate = rate

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        return apply_dropout(model, rate=self.rate)


def _refuse_own_dropout(model: nn.Module, classifier: nn.Module) -> None:
    for parent_name, parent in model.named_modules():
        children = dict(parent.named_children())
        if classifier not in children.values():
            continue
        for name, child in children.items():
            if isinstance(child, _DROPOUTS) and child.p > 0:
                place = f"{parent_name}.{name}" if parent_name else name
                raise ValueError(
                    f"the {type(model).__name__} drops before its classifier already: {place} is a "
                    f"{type(child).__name__} with p={child.p}; set that to 0 (model.dropout=0; of torchvision's models "
                    "model.settings.dropout=0), or leave dropout out"
                )
