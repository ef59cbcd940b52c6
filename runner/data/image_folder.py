"""Folders of images, one folder a class, as torchvision's ImageFolder reads them; ImageNet is one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from runner.data.class_folders import TEST, TRAIN, ClassFolders
from runner.data.duplicates import duplicate_files
from runner.data.file_batches import TIMEOUT_SECONDS, FileData
from runner.data.file_finder import first
from runner.data.file_loader import Sample
from runner.data.first_look import look_at_images
from runner.data.image_file import read_rgb
from runner.data.splits import apart

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000
LAYOUT = (
    f"Put one folder a class with its images into {TRAIN} and into {TEST}, the same classes in both: "
    f"{TRAIN}/cat/1.jpg, {TEST}/cat/2.jpg."
)
GET_IMAGENET = (
    "Unpack the archives ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of ImageNet's 2012 challenge "
    f"(image-net.org, with an account) into {TRAIN} and {TEST}, in both with one folder for each of the 1,000 "
    f"synsets: {TRAIN}/n01440764/n01440764_18.JPEG, {TEST}/n01440764/ILSVRC2012_val_00000293.JPEG."
)


def image_folder(*, root: str = "data/images", **settings) -> FileData:
    """The images in `root`/train/<class> and `root`/val/<class>.

    `settings` are those of `image_data`. Raises FileNotFoundError where a folder, a class or the images of one are
    missing, and what `image_data` raises.
    """
    return image_data("image_folder", ClassFolders(root, LAYOUT), **settings)


def imagenet(*, root: str = "data/imagenet", validation: float | str = 0.02, **settings) -> FileData:
    """ImageNet's 2012 challenge (arXiv 1409.0575): 1,281,167 training and 50,000 validation images, 1,000 classes.

    The latter are the test split here. Folders and errors are those of `image_folder`.
    """
    folders = ClassFolders(root, GET_IMAGENET)
    others = [name for name in folders.classes if not re.fullmatch(r"n\d{8}", name)]
    if len(folders.classes) != IMAGENET_CLASSES or others:
        number = f"{len(folders.classes)} of 1,000 synsets in {TRAIN}"
        found = f"{first(others)} in {TRAIN}: no synset" if others else number
        raise FileNotFoundError(
            f"{folders.place}: {found}. {GET_IMAGENET} Other sets of images can be read with dataset=image_folder."
        )
    return image_data("imagenet", folders, validation=validation, **settings)


def image_data(
    name: str,
    folders: ClassFolders,
    *,
    image_size: int = 224,
    test_size: int = 224,
    test_resize: int = 256,
    scale_min: float = 0.08,
    flip: bool = True,
    rand_augment_layers: int = 0,
    rand_augment_magnitude: int = 0,
    random_erasing: float = 0.0,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    validation: float | str = 0.1,
    num_workers: int | None = None,
    max_unreadable: int = 10,
    check_duplicates: bool | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> FileData:
    """The images of `folders`, augmented as `train_transform` says, tested as `evaluation_transform` says.

    A share `validation` of the training images is set apart, stratified by class, always the same one; or "test":
    all are trained on and the test split stands in for the validation split. `FileData` explains the number of
    workers and of files that cannot be read, `duplicate_files` the last one.

    Raises what `ClassFolders.samples` does, and ValueError for settings that do not fit.
    """
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not all(0 <= value <= 1 for value in values) or (key == "std" and 0 in values):
            raise ValueError(
                f"dataset.{key}={list(values)}: it must be three numbers of the range 0 to 1"
                f"{', none of them 0' if key == 'std' else ''}: red, green, blue."
            )
    if test_resize < test_size:
        raise ValueError(
            f"dataset.test_resize={test_resize}: smaller than the crop of it, dataset.test_size={test_size}. "
            f"Choose {test_size} or more; {test_size + 32} is usual."
        )
    if scale_min > 1:
        raise ValueError(f"dataset.scale_min={scale_min}: it is a share of the image's area, at most 1. Lower it.")
    train, test = folders.samples()
    classes_of = torch.tensor([target for _, target in train])
    train, held_out, source = apart(train, classes_of, test, validation)
    splits = {"train": train, "validation": held_out, "test": test}
    if source == "test":
        del splits["validation"]
    unreadable = dict(folders.finder.unreadable)
    findings = folders.finder.findings()
    looking = {"root": str(folders.root), "max_unreadable": max_unreadable, "unreadable": unreadable}
    findings.add(look_at_images(splits, folders.classes, **looking))
    paths = {name: [path for path, _ in samples if path not in unreadable] for name, samples in splits.items()}
    findings.add(duplicate_files(paths, check_duplicates, root=str(folders.root)))
    load_train = LoadImage(
        train_transform(
            image_size=image_size,
            scale_min=scale_min,
            flip=flip,
            rand_augment_layers=rand_augment_layers,
            rand_augment_magnitude=rand_augment_magnitude,
            random_erasing=random_erasing,
            interpolation=interpolation,
            fill=tuple(round(255 * value) for value in mean),
        )
    )
    load_test = LoadImage(evaluation_transform(size=test_size, resize=test_resize, interpolation=interpolation))
    return FileData(
        name=name,
        num_classes=len(folders.classes),
        image_size=image_size,
        train=train,
        validation=held_out,
        test=test,
        mean=torch.tensor(mean),
        std=torch.tensor(std),
        validation_source=source,
        class_names=tuple(folders.classes),
        load_train=load_train,
        load_evaluation=load_test,
        num_workers=num_workers,
        max_unreadable=max_unreadable,
        unreadable=unreadable,
        findings=findings,
        timeout_seconds=timeout_seconds,
    )


@dataclass(frozen=True)
class LoadImage:
    """`load` of runner.data.file_batches for samples (path, class)."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, sample: Sample) -> tuple[Tensor, int]:
        path, target = sample
        return self.transform(read_rgb(path)), target


def train_transform(
    *,
    image_size: int,
    scale_min: float,
    flip: bool,
    rand_augment_layers: int,
    rand_augment_magnitude: int,
    random_erasing: float,
    interpolation: str,
    fill: tuple[int, int, int],
) -> nn.Module:
    """From a PIL image to a uint8 tensor (3, `image_size`, `image_size`).

    A crop of a share in [`scale_min`, 1] of the area and of an aspect ratio in [3/4, 4/3], resized (Inception's, arXiv
    1409.4842); mirrored with probability 1/2; RandAugment (arXiv 1909.13719) of so many layers, at a magnitude of 0 to
    30 on torchvision's scale; with probability `random_erasing` a rectangle erased (arXiv 1708.04896). What is erased
    or comes in from outside of the image is `fill`, the mean colour: zero once it is normalized.
    """
    mode = InterpolationMode(interpolation)
    steps: list[nn.Module] = [v2.RandomResizedCrop(image_size, scale=(scale_min, 1.0), interpolation=mode)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if rand_augment_layers:
        strength = {"num_ops": rand_augment_layers, "magnitude": rand_augment_magnitude}
        steps.append(v2.RandAugment(**strength, interpolation=mode, fill=list(fill)))
    steps.append(v2.PILToTensor())
    if random_erasing:
        steps.append(v2.RandomErasing(random_erasing, value=list(fill)))
    return v2.Compose(steps)


def evaluation_transform(*, size: int, resize: int, interpolation: str) -> nn.Module:
    """From a PIL image to a uint8 tensor (3, `size`, `size`): the shorter side to `resize`, then the centre."""
    resized = v2.Resize(resize, interpolation=InterpolationMode(interpolation))
    return v2.Compose([resized, v2.CenterCrop(size), v2.PILToTensor()])
