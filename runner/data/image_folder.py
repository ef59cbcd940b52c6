"""Folders of images, one folder a class, as torchvision's ImageFolder reads them; ImageNet is one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS

from runner.data.file_data import TIMEOUT_SECONDS, FileData, make_file_data
from runner.data.file_finder import FileFinder, Identity, check_disjoint, first
from runner.data.gpu_decoding import LoadBytes, check_gpu_decoding
from runner.data.image_transforms import LoadImage, image_transforms

TRAIN, TEST = "train", "val"  # the folders
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
    """The images in `root`/train/<class> and `root`/val/<class>, with the settings of `image_data`.

    Raises FileNotFoundError if a folder, a class or its images are missing, and what `image_data` raises.
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
        fault = f"{first(others)} in {TRAIN}: no synset" if others else number
        raise FileNotFoundError(
            f"{folders.place}: {fault}. {GET_IMAGENET} Other sets of images can be read with dataset=image_folder."
        )
    return image_data("imagenet", folders, validation=validation, **settings)


def image_data(
    name: str,
    folders: ClassFolders,
    *,
    image_size: int | Sequence[int] = 224,
    channels: int = 3,
    validation: float | str = 0.1,
    num_workers: int | None = None,
    max_unreadable: int = 10,
    check_duplicates: bool | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    **transforming: Any,
) -> FileData:
    """The images of `folders`, transformed as `image_transforms` says of its settings `transforming`.

    See `make_file_data` for the others. Raises what `ClassFolders.samples` does, and ValueError for settings that do
    not fit.
    """
    on_gpu = transforming.get("decode") == "cuda"
    if on_gpu:
        check_gpu_decoding()
    transforms = image_transforms(image_size=image_size, channels=channels, may_decode_later=on_gpu, **transforming)
    loads = [
        LoadBytes(transform, channels) if on_gpu else LoadImage(transform, transforms.read)
        for transform in (transforms.train, transforms.evaluation)
    ]
    return make_file_data(
        *folders.samples(),
        folders.finder,
        name=name,
        num_classes=len(folders.classes),
        class_names=tuple(folders.classes),
        root=str(folders.root),
        image_size=image_size,
        mean=transforms.mean,
        std=transforms.std,
        load_train=loads[0],
        load_evaluation=loads[1],
        validation=validation,
        num_workers=num_workers,
        max_unreadable=max_unreadable,
        check_duplicates=check_duplicates,
        timeout_seconds=timeout_seconds,
    )


class ClassFolders:
    """The folders `root`/train and `root`/val, which have one folder per class, the same classes in both.

    Raises FileNotFoundError, with `remedy`, if a folder is missing or a class is in only one of the two; ValueError if
    there is only one class.
    """

    def __init__(self, root: str, remedy: str) -> None:
        self.root, self.remedy = Path(root), remedy
        self.place = f"dataset.root={root}: in {self.root.resolve()}"
        self.finder = FileFinder()
        self.classes = self._classes()

    def samples(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """The (path, class) of the images in train and in val, sorted by class, folder and name.

        Raises FileNotFoundError if a class has no images, ValueError if a file has two classes or is in both splits.
        """
        train, test = (self._files(folder) for folder in (TRAIN, TEST))
        paths = ({identity: path for identity, (path, _) in files.items()} for files in (train, test))
        check_disjoint(*paths, place=self.place, what=f"{TRAIN} and {TEST} must have no image in common")
        return list(train.values()), list(test.values())

    def _classes(self) -> list[str]:
        classes = {}
        for folder in (TRAIN, TEST):
            is_folder = (self.root / folder).is_dir()
            classes[folder] = self.finder.folders(self.root / folder, IMG_EXTENSIONS) if is_folder else []
            if not classes[folder]:
                what = "no folder of a class is in" if is_folder else "there is no folder"
                raise FileNotFoundError(f"{self.place}: {what} {folder}. {self.remedy}")
        for here, there in ((TRAIN, TEST), (TEST, TRAIN)):
            if missing := sorted(set(classes[there]) - set(classes[here])):
                what = f"{first(missing)} of {there} is missing in {here}"
                raise FileNotFoundError(f"{self.place}: {what}. {self.remedy}")
        if len(classes[TRAIN]) == 1:
            raise ValueError(
                f"{self.place}: there is one class, {classes[TRAIN][0]}, and nothing to tell it from. {self.remedy}"
            )
        return classes[TRAIN]

    def _files(self, folder: str) -> dict[Identity, tuple[str, int]]:
        """The (path, class) of each image in a folder."""
        files: dict[Identity, tuple[str, int]] = {}
        empty = []
        for number, name in enumerate(self.classes):
            images = self.finder.below(self.root / folder / name, IMG_EXTENSIONS)
            if not images:
                empty.append(f"{folder}/{name}")
            of_others = {identity: files[identity][0] for identity in images if identity in files}
            check_disjoint(of_others, images, place=self.place, what="an image has one class")
            files |= {identity: (path, number) for identity, path in images.items()}
        if empty:
            raise FileNotFoundError(
                f"{self.place}: no image is in {first(empty)}; looked for {', '.join(IMG_EXTENSIONS)}. {self.remedy}"
            )
        return files
