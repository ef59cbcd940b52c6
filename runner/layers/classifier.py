"""Finding the layer that gives a model's logits."""

from __future__ import annotations

from torch import nn

from runner.layers.surgery import CONVOLUTIONS

# Names of the module that holds the classifier in torchvision, timm and the CIFAR ResNets.
_NAMES = frozenset({"fc", "classifier", "head", "heads", "linear", "logits", "output"})


def find_classifier(
    model: nn.Module, *, setting: str = "", remedy: str = "name the weight in exclude=[...]"
) -> nn.Module:
    """The layer that gives the logits: an `nn.Linear`, or a convolution with a 1x1 kernel.

    Types and names decide, not the order of registration. The first of these rules that applies to a module leads to a
    module inside it, until a layer is reached:

    1. what the module's method `get_classifier()` returns (timm's convention; any model may define it);
    2. in an `nn.Sequential`, the last child that has parameters;
    3. the only child that has parameters (a wrapper such as `DistributedDataParallel`);
    4. the only child named fc, classifier, head, heads, linear, logits or output;
    5. the only `nn.Linear` at any depth;
    6. the only `nn.Linear` among the children, when others, as in squeeze-and-excitation, lie deeper.

    Raises ValueError if no rule applies, if two children have such names, or if the rules lead to another layer. Its
    message begins with `setting`, as in "fixup=True: ", and ends with `remedy`.
    """
    classifier = _search(model)
    if classifier is None:
        raise ValueError(
            f"{setting}cannot tell which layer of the {type(model).__name__} is its classifier: give the model a "
            f"method get_classifier() that returns the layer, or {remedy}"
        )
    return classifier


def _search(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.Linear) or (isinstance(module, CONVOLUTIONS) and set(module.kernel_size) == {1}):
        return module
    get_classifier = getattr(module, "get_classifier", None)
    if get_classifier is not None:
        classifier = get_classifier()
        return _search(classifier) if isinstance(classifier, nn.Module) else None
    children = {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}
    if not children:
        return None
    if isinstance(module, nn.Sequential) or len(children) == 1:
        return _search(list(children.values())[-1])
    named = [child for name, child in children.items() if name in _NAMES]
    if named:
        return _search(named[0]) if len(named) == 1 else None
    linear_layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if len(linear_layers) == 1:
        return linear_layers[0]
    own_linear_layers = [child for child in children.values() if isinstance(child, nn.Linear)]
    return own_linear_layers[0] if len(own_linear_layers) == 1 else None
