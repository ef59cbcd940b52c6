"""The data sets of torchvision, by the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from runner.config.text import did_you_mean, to_override
from runner.data.dataset import SEGMENTATION, Data, sides_of
from runner.data.file_data import TIMEOUT_SECONDS, FileData
from runner.data.image_reading import ImageReader
from runner.data.image_transforms import IMAGENET_MEAN, IMAGENET_STD, ImageTransforms, image_transforms, normalizing
from runner.data.indexed_data import (
    TEST_SHARE,
    LoadIndexedImage,
    LoadIndexedScene,
    Source,
    consecutive_classes,
    make_indexed_data,
)
from runner.data.mask_labels import MaskLabels
from runner.data.sampling import stratified_share
from runner.data.scene_transforms import EvaluationTransform, TrainTransform
from runner.data.splits import Split, TensorData, make_data
from runner.data.torchvision_source import CLASSES, first_target, images_of, is_array, open_splits, targets_of

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
MASKS = {"VOCSegmentation": VOC_CLASSES, "SBDataset": VOC_CLASSES}  # the classes of the sets whose masks are known

READING = {"num_workers": None, "max_unreadable": 10, "timeout_seconds": TIMEOUT_SECONDS}  # of files


def torchvision_data(
    *,
    class_name: str = "KMNIST",
    root: str = "data",
    download: bool = True,
    settings: Mapping[str, Any] | None = None,
    validation: float | str = 0.1,
    **options: Any,
) -> Data:
    """The data set `torchvision.datasets.class_name(root, **settings)`, of one class or one mask an image.

    Its splits train and test, or those that come closest to them, are chosen by the argument `train`, `split` or
    `image_set`; of a set without one a fifth of each class is for the test. A set that torchvision holds in memory as
    an array is kept on the device; see `tensor_data`, `image_data` and `scene_data` for the `options` of the kinds.

    Raises FileNotFoundError if files are missing and cannot be downloaded, ValueError for a class that is none of
    torchvision's or has other targets, and for options that have no effect on its kind.
    """
    if class_name not in CLASSES:
        hint = did_you_mean(class_name, CLASSES)
        raise ValueError(f"dataset.class_name={class_name}: torchvision.datasets has no such class. {hint}".rstrip())
    sources = open_splits(class_name, Path(root), download, dict(settings or {}))
    target = first_target(class_name, sources["train"])
    options["validation"] = validation
    reading = {key: options.pop(key, default) for key, default in READING.items()}
    decode = options.pop("decode", "pil")
    if isinstance(target, Image.Image):
        return scene_data(class_name, sources, reading=reading, **options)
    targets = {split: targets_of(class_name, source) for split, source in sources.items()}
    targets, names = consecutive_classes(targets, getattr(sources["train"], "classes", ()))
    if is_array(sources["train"]):
        return tensor_data(class_name, sources, targets, names, **options)
    return image_data(class_name, sources, targets, names, reading=reading, decode=decode, **options)


def tensor_data(
    class_name: str,
    sources: Mapping[str, Source],
    targets: Mapping[str, Tensor],
    class_names: tuple[str, ...],
    *,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    crop_padding: int = 0,
    flip: bool = False,
    random_erasing: float = 0.0,
    validation: float | str,
    check_duplicates: bool | None = None,
    **others: Any,
) -> TensorData:
    """A set in memory. `image_size` and `channels` are by default those of its images; see `make_data`."""
    _refuse_others(f"the images of {class_name} are kept in memory", others)
    splits = {
        split: Split(images_of(source, image_size, channels), targets[split]) for split, source in sources.items()
    }
    if "test" not in splits:
        whole, chosen = splits["train"], stratified_share(targets["train"], TEST_SHARE)
        is_left = torch.ones(len(whole), dtype=torch.bool)
        is_left[chosen] = False
        splits = {"train": whole.part(is_left.nonzero().squeeze(1)), "test": whole.part(chosen)}
    return make_data(
        class_name,
        splits["train"],
        splits["test"],
        num_classes=len(class_names),
        class_names=class_names,
        validation=validation,
        crop_padding=crop_padding,
        flip=flip,
        random_erasing=random_erasing,
        check_duplicates=check_duplicates,
    )


def image_data(
    class_name: str,
    sources: Mapping[str, Source],
    targets: Mapping[str, Tensor],
    class_names: tuple[str, ...],
    *,
    image_size: int | Sequence[int] | None = None,
    test_size: int | Sequence[int] | None = None,
    test_resize: int | None = None,
    scale_min: float | None = None,
    flip: bool = False,
    random_erasing: float = 0.0,
    channels: int | None = None,
    decode: str = "pil",
    validation: float | str,
    reading: Mapping[str, Any],
    **others: Any,
) -> FileData:
    """A set of image files, transformed as `image_transforms` says: by default to 224 pixels of 256.

    The size of a test image is that of a training crop, unless given. `reading` are the settings of `FileData` that say
    how files are read.
    """
    _refuse_others(f"the images of {class_name} lie in files", others)
    image_size, channels = image_size or 224, channels or 3
    test_size = test_size or image_size
    transforms = image_transforms(
        image_size=image_size,
        test_size=test_size,
        test_resize=test_resize or round(min(sides_of(test_size)) * 256 / 224),
        scale_min=scale_min or 0.08,
        flip=flip,
        random_erasing=random_erasing,
        channels=channels,
        decode=decode,
    )
    return make_indexed_data(
        class_name,
        targets,
        validation=validation,
        transforms=transforms,
        image_size=image_size,
        num_classes=len(class_names),
        class_names=class_names,
        load_train=LoadIndexedImage(sources, transforms.train, transforms.read),
        load_evaluation=LoadIndexedImage(sources, transforms.evaluation, transforms.read),
        **reading,
    )


def scene_data(
    class_name: str,
    sources: Mapping[str, Source],
    *,
    num_classes: int | None = None,
    mask_values: Sequence[int] | None = None,
    image_size: int | Sequence[int] | None = None,
    test_size: int | None = None,
    scale_min: float | None = None,
    flip: bool = False,
    channels: int | None = None,
    validation: float | str,
    reading: Mapping[str, Any],
    **others: Any,
) -> FileData:
    """A set of images with masks, augmented as `TrainTransform` says: by default crops of 512 pixels.

    See `MaskLabels` for the values of the masks; the classes of Pascal VOC are known. `reading` as in `image_data`.
    """
    _refuse_others(f"the images of {class_name} have masks", others)
    names = MASKS.get(class_name, ())
    num_classes = num_classes or len(mask_values or names)
    if not num_classes:
        raise ValueError(
            f"dataset.num_classes=null: how many classes the masks of {class_name} have is not known. Set it, or "
            "dataset.mask_values."
        )
    if not isinstance(test_size, int | None):
        raise ValueError(f"dataset.test_size={to_override(test_size)}: it is the shorter side of an image; one number.")
    channels, image_size = channels or 3, image_size or 512
    colours = normalizing(channels, IMAGENET_MEAN, IMAGENET_STD)
    train = TrainTransform(image_size=image_size, fill=colours.fill, scale_min=scale_min or 0.5, flip=flip)
    labels = MaskLabels(num_classes=num_classes, mask_values=mask_values and tuple(mask_values))
    reader = ImageReader(channels, "torchvision")
    transforms = ImageTransforms(train, EvaluationTransform(test_size=test_size), colours.mean, colours.std, reader)
    return make_indexed_data(
        class_name,
        {split: torch.zeros(len(source), dtype=torch.int64) for split, source in sources.items()},
        validation=validation,
        transforms=transforms,
        image_size=image_size,
        task=SEGMENTATION,
        num_classes=num_classes,
        class_names=names if len(names) == num_classes else (),
        load_train=LoadIndexedScene(sources, transforms.train, transforms.read, labels),
        load_evaluation=LoadIndexedScene(sources, transforms.evaluation, transforms.read, labels),
        **reading,
    )


# settings that have no effect on some kinds, with the values that say nothing
NEUTRAL = {"test_size": None, "test_resize": None, "scale_min": None, "num_classes": None, "mask_values": None}
NEUTRAL |= {"crop_padding": 0, "random_erasing": 0, "check_duplicates": None}


def _refuse_others(reason: str, others: Mapping[str, Any]) -> None:
    """Raise a ValueError for a setting that has no effect and says something."""
    for key, value in others.items():
        if key in NEUTRAL and value != NEUTRAL[key]:
            raise ValueError(f"dataset.{key}={to_override(value)}: {reason}, on which it has no effect. Leave it out.")
