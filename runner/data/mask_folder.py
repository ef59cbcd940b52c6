"""Folders of images with index masks, for segmentation; the scene parsing release of ADE20K is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.data.dataset import SEGMENTATION
from runner.data.file_data import FileData, make_file_data
from runner.data.file_finder import FileFinder
from runner.data.image_transforms import IMAGENET_MEAN, IMAGENET_STD, normalizing
from runner.data.label_check import check_labels
from runner.data.mask_labels import MaskLabels
from runner.data.scene_files import LAYOUT, SPLIT_FOLDERS, LoadScene, Scene, scene_splits
from runner.data.scene_transforms import EvaluationTransform, TrainTransform

ADE20K_FOLDER, ADE20K_CLASSES, ADE20K_SIZES = "ADEChallengeData2016", 150, (20_210, 2_000)


def mask_folder(*, root: str = "data/scenes", **settings) -> FileData:
    """The images in `root`/images/training and validation, or train and val, with masks of the same names.

    Masks are PNG files of class indices in the same folders of `root`/annotations; `settings` are those of
    `scene_data`. Raises FileNotFoundError if files are missing, ValueError if masks do not fit the settings.
    """
    finder = FileFinder()
    train, test = scene_splits(Path(root), finder=finder, place=f"dataset.root={root}", remedy=LAYOUT)
    return scene_data("mask_folder", train, test, finder, root=root, **settings)


def ade20k(*, root: str = "data", **settings) -> FileData:
    """ADE20K's scene parsing release (Zhou et al. 2017): 20,210 training and 2,000 validation images, 150 classes.

    Label 0 of a mask is no class, label c is class c - 1. `root` is the folder ADEChallengeData2016 or its parent;
    `settings` are further ones of `scene_data`. Raises FileNotFoundError if files are missing.
    """
    folder = Path(root)
    if (folder / ADE20K_FOLDER).is_dir():
        folder /= ADE20K_FOLDER
    remedy = (
        "Unpack ADEChallengeData2016.zip of the MIT Scene Parsing Benchmark (the scene parsing release, not the full "
        f"data set) into {Path(root).resolve()}."
    )
    finder = FileFinder()
    splits = scene_splits(folder, finder=finder, place=f"dataset.root={root}", remedy=remedy)
    for scenes, size, names in zip(splits, ADE20K_SIZES, SPLIT_FOLDERS, strict=True):
        if len(scenes) < size:
            raise FileNotFoundError(
                f"dataset.root={root}: {len(scenes):,} of {size:,} images are in images/{names[0]} of "
                f"{folder.resolve()}. {remedy} A part of it can be read with dataset=mask_folder "
                f"dataset.num_classes={ADE20K_CLASSES} dataset.reduce_zero_label=true."
            )
    return scene_data(
        "ade20k",
        *splits,
        finder,
        root=root,
        num_classes=ADE20K_CLASSES,
        ignore_label=None,
        reduce_zero_label=True,
        class_names=_class_names(folder / "objectInfo150.txt"),
        **settings,
    )


def scene_data(
    name: str,
    train: Sequence[Scene],
    test: Sequence[Scene],
    finder: FileFinder,
    *,
    root: str,
    num_classes: int = 2,
    ignore_label: int | str | None = "auto",
    reduce_zero_label: bool = False,
    mask_values: tuple[int, ...] | None = None,
    class_names: tuple[str, ...] = (),
    image_size: int | Sequence[int] = 512,
    test_size: int | None = 512,
    scale_min: float = 0.5,
    scale_max: float = 2.0,
    max_class_share: float = 0.75,
    flip: bool = True,
    photometric: bool = True,
    channels: int = 3,
    **reading: Any,
) -> FileData:
    """A data set of the published training and test scenes, normalized with ImageNet's mean and standard deviation.

    See `MaskLabels` for the values of a mask, and `scene_transforms` for the augmentation. `reading`: validation,
    num_workers, max_unreadable, check_duplicates and timeout_seconds, see `make_file_data`. Raises ValueError if
    settings do not fit each other, and what `check_labels` and `check_images` do.
    """
    if scale_min > scale_max:
        raise ValueError(f"dataset.scale_min={scale_min}: larger than dataset.scale_max={scale_max}. Lower it.")
    labels = MaskLabels(
        num_classes=num_classes,
        ignore_label=ignore_label,
        reduce_zero_label=reduce_zero_label,
        mask_values=mask_values,
    )
    colours = normalizing(channels, IMAGENET_MEAN, IMAGENET_STD)
    augmented = TrainTransform(
        image_size=image_size,
        fill=colours.fill,
        scale_min=scale_min,
        scale_max=scale_max,
        max_class_share=max_class_share,
        flip=flip,
        photometric=photometric,
    )
    if class_names and len(class_names) != num_classes:
        raise ValueError(
            f"dataset.root: objectInfo150.txt names {len(class_names)} classes, not {num_classes}. Put the release's "
            "own file there."
        )
    checking = {"root": root, "class_names": class_names}
    return make_file_data(
        train,
        test,
        finder,
        name=name,
        num_classes=num_classes,
        class_names=class_names,
        root=root,
        task=SEGMENTATION,
        image_size=image_size,
        mean=colours.mean,
        std=colours.std,
        check_masks=lambda splits, unreadable: check_labels(splits, labels, unreadable=unreadable, **checking),
        load_train=LoadScene(transform=augmented, labels=labels, channels=channels),
        load_evaluation=LoadScene(transform=EvaluationTransform(test_size=test_size), labels=labels, channels=channels),
        **reading,
    )


def _class_names(file: Path) -> tuple[str, ...]:
    """The first name of each class in objectInfo150.txt, a table with tabs whose last column is the name."""
    if not file.is_file():
        return ()
    rows = file.read_text(encoding="utf-8").splitlines()[1:]
    return tuple(row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip())
