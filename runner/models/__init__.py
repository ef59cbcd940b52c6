"""The models: functions that take `num_classes` and settings of their own.

An experiment finds its model by the `_target_` of the option's YAML file; the names here are for use as a library.
"""

from __future__ import annotations

from runner.models.cifar_resnet import CifarResNet, resnet20, resnet32, resnet44, resnet56, resnet110
from runner.models.deeplab import (
    DeepLabV3Plus,
    deeplabv3plus_resnet18,
    deeplabv3plus_resnet50,
    deeplabv3plus_resnet101,
)
from runner.models.nf_resnet import (
    NFResBlock,
    NFResNet,
    nf_resnet26,
    nf_resnet50,
    nf_resnet101,
    nf_resnet152,
    nf_resnet200,
)
from runner.models.nfnet import (
    NFBlock,
    NFNet,
    nfnet_f0,
    nfnet_f1,
    nfnet_f2,
    nfnet_f3,
    nfnet_f4,
    nfnet_f5,
    nfnet_f6,
    nfnet_f7,
)
from runner.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152

__all__ = [
    "CifarResNet",
    "DeepLabV3Plus",
    "NFBlock",
    "NFNet",
    "NFResBlock",
    "NFResNet",
    "deeplabv3plus_resnet18",
    "deeplabv3plus_resnet50",
    "deeplabv3plus_resnet101",
    "nf_resnet26",
    "nf_resnet50",
    "nf_resnet101",
    "nf_resnet152",
    "nf_resnet200",
    "nfnet_f0",
    "nfnet_f1",
    "nfnet_f2",
    "nfnet_f3",
    "nfnet_f4",
    "nfnet_f5",
    "nfnet_f6",
    "nfnet_f7",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
]
