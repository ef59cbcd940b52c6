"""The settings of each option of a group, and of which type they are; the defaults stand in conf/ alone.

The types are written as OmegaConf reads them. Methods are not among them: the schema of a method is its YAML file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union


@dataclass
class Model:
    """What every model has."""

    name: str
    initialization: str
    initialized_layers: str
    pretrained: Optional[str]


@dataclass
class ResNet(Model):
    stem: str
    width: float
    zero_init_residual: bool


@dataclass
class CifarResNet(Model):
    shortcut: str
    zero_init_residual: bool


@dataclass
class NFResNet(Model):
    stem: str
    width: float
    alpha: float
    activation: str
    dropout: float


@dataclass
class NFNet(Model):
    alpha: float
    activation: str
    dropout: Optional[float]


@dataclass
class DeepLab(Model):
    output_stride: int
    separable: bool
    head_channels: int
    dropout: float
    zero_init_residual: bool
    methods_on: str


@dataclass
class SGD:
    name: str
    lr: float
    lr_batch_size: Optional[int]
    momentum: float
    nesterov: bool
    weight_decay: float
    decay_norm_and_bias: bool


@dataclass
class AdamW:
    name: str
    lr: float
    lr_batch_size: Optional[int]
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decay_norm_and_bias: bool


@dataclass
class Lars:
    name: str
    lr: float
    lr_batch_size: Optional[int]
    momentum: float
    nesterov: bool
    weight_decay: float
    trust_coefficient: float
    decay_norm_and_bias: bool


@dataclass
class Cosine:
    name: str
    warmup_epochs: float
    final_lr_share: float


@dataclass
class MultiStep:
    name: str
    warmup_epochs: float
    milestones: list[float]
    gamma: float


@dataclass
class Poly:
    name: str
    warmup_epochs: float
    power: float
    final_lr_share: float


@dataclass
class OneCycle:
    name: str
    warmup_epochs: float
    pct_start: float
    div_factor: float
    final_div_factor: float
    anneal: str


@dataclass
class Plateau:
    name: str
    warmup_epochs: float
    milestones: list[float]
    gamma: float
    patience: int
    max_doublings: int


@dataclass
class Constant:
    name: str
    warmup_epochs: float


@dataclass
class Digits:
    name: str
    image_size: int
    crop_padding: int
    flip: bool
    validation: Union[float, str]
    check_duplicates: Optional[bool]


@dataclass
class DigitScenes:
    name: str
    crop_padding: int
    flip: bool
    validation: Union[float, str]
    check_duplicates: Optional[bool]


@dataclass
class Cifar:
    name: str
    root: str
    download: bool
    image_size: int
    crop_padding: int
    flip: bool
    validation: Union[float, str]
    check_duplicates: Optional[bool]


@dataclass
class Scenes:
    name: str
    root: str
    image_size: int
    test_size: Optional[int]
    scale_min: float
    scale_max: float
    max_class_share: float
    flip: bool
    photometric: bool
    validation: Union[float, str]
    num_workers: Optional[int]
    max_unreadable: int
    check_duplicates: Optional[bool]
    timeout_seconds: float


@dataclass
class MaskFolder(Scenes):
    num_classes: int
    ignore_label: Optional[Union[int, str]]
    reduce_zero_label: bool
    mask_values: Optional[list[int]]


@dataclass
class ImageFolder:
    name: str
    root: str
    image_size: int
    test_size: int
    test_resize: int
    scale_min: float
    flip: bool
    rand_augment_layers: int
    rand_augment_magnitude: int
    random_erasing: float
    interpolation: str
    mean: list[float]
    std: list[float]
    validation: Union[float, str]
    num_workers: Optional[int]
    max_unreadable: int
    check_duplicates: Optional[bool]
    timeout_seconds: float


@dataclass
class RandomImages:
    name: str
    num_images: int
    image_size: int
    num_classes: int


# for each group, the type of its options: the first whose pattern is the option's name
OPTION_TYPES: dict[str, dict[str, type]] = {
    "model": {
        r"resnet(20|32|44|56|110)": CifarResNet,
        r"resnet\d+": ResNet,
        r"nf_resnet\d+": NFResNet,
        r"nfnet_f\d": NFNet,
        r"deeplabv3plus_resnet\d+": DeepLab,
    },
    "optimizer": {"sgd": SGD, "adamw": AdamW, "lars": Lars},
    "schedule": {
        "cosine": Cosine,
        "multistep": MultiStep,
        "poly": Poly,
        "onecycle": OneCycle,
        "plateau": Plateau,
        "constant": Constant,
    },
    "dataset": {
        r"digits|cluttered_digits": Digits,
        "digit_scenes": DigitScenes,
        r"cifar\d+": Cifar,
        "image_folder": ImageFolder,
        "imagenet": ImageFolder,
        "mask_folder": MaskFolder,
        "ade20k": Scenes,
        "random": RandomImages,
    },
}
