"""The samples of torchvision's data sets: how a class is opened, and what its targets and its images are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2 import functional as F

from runner.config.text import first_line, to_override
from runner.data.dataset import sides_of
from runner.data.download import open_dataset
from runner.data.indexed_data import Source

CLASSES = {name: kind for name in datasets.__all__ if inspect.isclass(kind := getattr(datasets, name))}
# what the splits are called, in the order in which that is tried
SPLIT_WORDS = {"train": ("train", "trainval", "train-standard"), "test": ("test", "val")}


def open_splits(class_name: str, root: Path, download: bool, settings: dict[str, Any]) -> dict[str, Source]:
    """The sources train and test of a class; train alone if nothing chooses between them."""
    kind = CLASSES[class_name]
    parameters = inspect.signature(kind).parameters
    is_mnist = issubclass(kind, datasets.MNIST)  # EMNIST's `split` is another choice
    can_download = "download" in parameters or is_mnist
    remedy = f"The documentation of torchvision.datasets.{class_name} says which files belong into {root.resolve()}."

    def open_one(**chosen: Any) -> Source:
        chosen |= {"download": False} if can_download else {}
        try:  # some classes would download whatever is there
            return kind(str(root), **settings, **chosen)
        except (RuntimeError, OSError):
            chosen |= {"download": download} if can_download else {}
        return open_dataset(
            lambda: kind(str(root), **settings, **chosen),
            root=root,
            name=class_name,
            download=download and can_download,
            remedy=remedy,
        )

    try:
        if is_mnist or "train" in parameters:
            return {split: open_one(train=split == "train") for split in ("train", "test")}
        key = next((key for key in ("split", "image_set") if key in parameters and key not in settings), None)
        if key is None:
            return {"train": open_one()}
        return {split: _open_first(open_one, key, words) for split, words in SPLIT_WORDS.items()}
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a class raises for arguments that it does not take
        reason = first_line(error)
        raise ValueError(
            f"dataset.class_name={class_name} dataset.settings={to_override(settings)}: torchvision cannot open it "
            f"({reason})."
        ) from None


def _open_first(open_one: Callable[..., Source], key: str, words: Sequence[str]) -> Source:
    """The split of the first of the words that the class knows."""
    *others, last = words
    for word in others:
        try:
            return open_one(**{key: word})
        except ValueError:  # torchvision's, for a word that it does not know
            continue
    return open_one(**{key: last})


def first_target(class_name: str, source: Source) -> int | Image.Image:
    """The first sample's class or mask. Raises ValueError unless the samples are images, each with one of the two."""
    sample = source[0]
    image, target = sample if isinstance(sample, tuple) and len(sample) == 2 else (None, None)
    if not isinstance(image, Image.Image) or not isinstance(target, (int, np.integer, Image.Image)):
        raise ValueError(
            f"dataset.class_name={class_name}: its samples are no images with a class or a mask each. Choose another, "
            "or dataset.settings that make it so."
        )
    if isinstance(target, Image.Image):
        target.load()  # which closes its file
    return target


def targets_of(class_name: str, source: Source) -> Tensor:
    """The classes (N,), from the attribute in which torchvision keeps them, if there is one, else by reading all."""
    pairs = next((getattr(source, key) for key in ("samples", "_samples") if hasattr(source, key)), ())
    kept = [getattr(source, key, ()) for key in ("targets", "labels", "_labels", "y")]
    kept.append([pair[1] for pair in pairs if isinstance(pair, tuple)])
    ends = {place: source[place][1] for place in (0, len(source) - 1)}
    for values in kept:
        if values is not None and len(values) == len(source) and all(values[i] == ends[i] for i in ends):
            return torch.as_tensor(values).long()
    return torch.tensor([source[index][1] for index in range(len(source))])


def is_array(source: Source) -> bool:
    """Whether torchvision holds the images as one array of bytes."""
    data = getattr(source, "data", None)
    return isinstance(data, (np.ndarray, Tensor)) and data.ndim in (3, 4) and len(data) == len(source)


def images_of(source: Source, image_size: int | Sequence[int] | None, channels: int | None) -> Tensor:
    """The images (N, C, H, W) of an array, in the size and the number of channels asked for."""
    images = torch.as_tensor(source.data)
    images = images.unsqueeze(1) if images.ndim == 3 else images
    images = images.permute(0, 3, 1, 2) if images.shape[1] not in (1, 3) else images
    if channels == 1 and images.shape[1] == 3:
        images = F.rgb_to_grayscale(images)
    if image_size is not None:
        images = F.resize(images, list(sides_of(image_size)))
    return images.expand(-1, channels or images.shape[1], -1, -1).contiguous()
