"""What `model=timm` and `model=torchvision` share: a library's model by its own name, with its keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn

from runner.config.text import did_you_mean, first_line, to_override

# keyword arguments of the libraries that the runner gives, or that would read files past its checks
OF_THE_RUNNER = {
    "num_classes": "the data set gives it",
    "in_chans": "the data set gives it",
    **dict.fromkeys(("pretrained", "weights", "weights_backbone", "checkpoint_path"), "choose model.pretrained"),
    **dict.fromkeys(("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"), "choose model.pretrained"),
    **dict.fromkeys(("aux_logits", "aux_loss"), "the loss is that of the last layer alone"),
    **dict.fromkeys(("features_only", "out_indices"), "the model gives the scores of classes"),
}


def check_architecture(library: str, architecture: str, names: Collection[str]) -> None:
    """Raise a ValueError if `names`, those of the library, lack `architecture`."""
    if architecture not in names:
        hint = did_you_mean(architecture, names) or f"It has {len(names)}, as {min(names)}."
        raise ValueError(f"model.architecture={architecture}: {library} has no model of that name. {hint}")


def build_architecture(
    library: str, architecture: str, build: Callable[..., nn.Module], settings: Mapping[str, object]
) -> nn.Module:
    """`build(**settings)`. Raises ValueError for settings that are the runner's and those that the library refuses."""
    for key in settings.keys() & OF_THE_RUNNER.keys():
        raise ValueError(f"model.settings.{key}={to_override(settings[key])}: leave it out; {OF_THE_RUNNER[key]}.")
    try:
        return _build(build, settings)
    except Exception as error:  # whatever a model of the library raises for arguments that it does not take
        if not settings:
            raise
        reason = first_line(error)
        raise ValueError(
            f"model.settings={to_override(dict(settings))}: {library} cannot make a {architecture} with these keyword "
            f"arguments ({reason})."
        ) from error


def set_in_channels(model: nn.Module, in_channels: int) -> None:
    """Let a model of 3 channels take images of `in_channels`: its first convolution's weights are taken in turn.

    Drawn at random, they keep their distribution.
    """
    conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    channels = torch.arange(in_channels, device=conv.weight.device) % conv.in_channels
    conv.in_channels, conv.weight = in_channels, nn.Parameter(conv.weight.detach()[:, channels])


def _build(build: Callable[..., nn.Module], settings: Mapping[str, object]) -> nn.Module:
    """`build(**settings)`, on the meta device too where it reads values, as torchvision's RegNet and Swin do."""
    try:
        return build(**settings)
    except NotImplementedError:
        if torch.get_default_device().type != "meta":
            raise
        with torch.device("cpu"):
            return build(**settings).to("meta")
