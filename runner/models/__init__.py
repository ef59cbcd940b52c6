"""The models, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from runner.models.nf_resnet import (
    NFResBlock,
    NFResNet,
    nf_resnet26,
    nf_resnet50,
    nf_resnet101,
    nf_resnet152,
    nf_resnet200,
)
from runner.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152

MODELS: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder
    for builder in (
        resnet18,
        resnet34,
        resnet50,
        resnet101,
        resnet152,
        nf_resnet26,
        nf_resnet50,
        nf_resnet101,
        nf_resnet152,
        nf_resnet200,
    )
}

__all__ = ["MODELS", "NFResBlock", "NFResNet", *MODELS]
