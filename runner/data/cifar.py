"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read from torchvision's files into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision

from runner.data.download import open_dataset
from runner.data.splits import Split, TensorData, make_data


def cifar(
    name: str,
    *,
    root: str = "data",
    download: bool = True,
    image_size: int = 32,
    crop_padding: int = 4,
    flip: bool = True,
    **settings: Any,
) -> TensorData:
    """CIFAR: `name` is cifar10 or cifar100, of 50,000 training and 10,000 test images of 32x32.

    Downloads missing files to `root`; if that fails, a FileNotFoundError says which files belong where. See
    `make_data` for `settings`.
    """
    if image_size != 32:
        raise ValueError(f"dataset.image_size={image_size}: the images of {name} are 32 pixels wide.")
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    train, test = (_split(kind, Path(root), training, download) for training in (True, False))
    num_classes = len(kind(root, train=False).classes)
    return make_data(name, train, test, num_classes=num_classes, crop_padding=crop_padding, flip=flip, **settings)


def cifar10(**settings) -> TensorData:
    """CIFAR-10; see `cifar`."""
    return cifar("cifar10", **settings)


def cifar100(**settings) -> TensorData:
    """CIFAR-100; see `cifar`."""
    return cifar("cifar100", **settings)


def _split(kind: type, root: Path, training: bool, download: bool) -> Split:
    source = open_dataset(
        lambda: kind(root, train=training, download=download),
        root=root,
        name=kind.__name__,
        download=download,
        remedy=f"Put the folder {kind.base_folder} with the files of {kind.filename} into {root.resolve()}.",
    )
    return Split(torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(source.targets))
