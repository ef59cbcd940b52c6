"""Fashion scenes: a segmentation task made of Fashion-MNIST's clothes on textured grounds."""

from __future__ import annotations

from typing import Any

import torch

from runner.data import fashion_mnist
from runner.data.dataset import SEGMENTATION
from runner.data.object_scenes import draw_scenes
from runner.data.sampling import set_apart
from runner.data.splits import Split, TensorData, make_data

NUM_TEST = 1_000
CLASS_NAMES = ("background", *fashion_mnist.CLASS_NAMES)
SIDES = (26, 36)  # of an object's image, in pixels


def fashion_scenes(
    *,
    root: str = "data",
    download: bool = True,
    num_scenes: int = 4_000,
    validation: float | str = 0.1,
    **settings: Any,
) -> TensorData:
    """`num_scenes` for training and validation, 1,000 for the test, of 64x64 pixels with masks of 11 classes.

    Their objects are the silhouettes of Fashion-MNIST's 70,000 images, of pixels above 0, shaded as the images are; see
    `draw_scenes`, and `fashion_mnist.source_splits` for the files. No two splits show the same object: `validation` is
    the share of the 60,000 objects, and of the scenes, for validation; or "test", as in `make_data`, which see for
    `settings`. The same in each call.
    """
    source, test = (_objects(split) for split in fashion_mnist.source_splits(root, download))
    parts = [source]
    if validation != "test":
        parts = [source.part(indices) for indices in set_apart(source.targets, float(validation))]
        num_validation = max(1, round(validation * num_scenes))
        validation = _scenes(parts[1], num_validation, seed=1)
        num_scenes -= num_validation
    return make_data(
        "fashion_scenes",
        _scenes(parts[0], num_scenes, seed=2),
        _scenes(test, NUM_TEST, seed=0),
        num_classes=len(CLASS_NAMES),
        task=SEGMENTATION,
        class_names=CLASS_NAMES,
        validation=validation,
        **settings,
    )


def _objects(split: Split) -> Split:
    """Silhouettes and shading of grey images, (N, 2, 28, 28) as bytes."""
    return Split(torch.cat([split.images.gt(0).byte() * 255, split.images], dim=1), split.targets)


def _scenes(source: Split, number: int, *, seed: int) -> Split:
    return draw_scenes(source, number, torch.Generator().manual_seed(seed), threshold=0.5, sides=SIDES)
