"""Any of torchvision's models for classification and for segmentation, by its own name."""

from __future__ import annotations

from collections.abc import Mapping

import torchvision
from torch import Tensor, nn

from runner.models.architecture import build_architecture, check_architecture, set_in_channels

# without these the two add auxiliary classifiers and warn that their initialization will change
DEFAULTS = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}
SEGMENTATION = torchvision.models.segmentation


def torchvision_model(
    num_classes: int = 1000,
    *,
    architecture: str = "resnet50",
    settings: Mapping[str, object] | None = None,
    in_channels: int = 3,
) -> nn.Module:
    """torchvision's model of that name, its weights drawn at random; `settings` are its keyword arguments.

    Those for segmentation give logits (N, num_classes, H, W) instead of a dictionary. Without an auxiliary classifier.
    Raises ValueError for an unknown name and for settings that the model does not take.

    >>> from runner.models.torchvision import torchvision_model
    >>> torchvision_model(10, architecture="efficientnet_b0", settings={"stochastic_depth_prob": 0.1}).classifier[1]
    Linear(in_features=1280, out_features=10, bias=True)
    """
    segments = torchvision.models.list_models(module=SEGMENTATION)
    check_architecture(
        "torchvision", architecture, [*torchvision.models.list_models(module=torchvision.models), *segments]
    )
    own = DEFAULTS.get(architecture, {"weights_backbone": None} if architecture in segments else {})
    model = build_architecture(
        "torchvision",
        architecture,
        lambda **settings: torchvision.models.get_model(
            architecture, weights=None, num_classes=num_classes, **own, **settings
        ),
        dict(settings or {}),
    )
    if in_channels != 3:
        set_in_channels(model, in_channels)
    if architecture in segments:
        model.register_forward_hook(_logits)  # a module around it would change the names in its state dict
    return model


def _logits(_model: nn.Module, _inputs: tuple[Tensor, ...], output: dict[str, Tensor]) -> Tensor:
    return output["out"]
