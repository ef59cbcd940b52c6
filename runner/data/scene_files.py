"""Images and their index masks as files: pairing and reading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from runner.data.file_finder import FileEntry, FileFinder, Identity, check_disjoint
from runner.data.image_reading import ImageReader
from runner.data.mask_labels import MaskLabels, read_values

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SPLIT_FOLDERS = (("training", "train"), ("validation", "val"))
LAYOUT = (
    "Expected there: images/training and images/validation (or train and val) with .jpg or .png files, and in "
    "annotations the same folders with index masks, .png files of the same names."
)


class Scene(NamedTuple):
    """The files of an image and of its mask."""

    image: str
    mask: str


@dataclass(frozen=True, kw_only=True)
class LoadScene:
    """Reads a scene and transforms it: uint8 image (`channels`, H, W) and uint8 mask (H, W) of class indices.

    Raises OSError or SyntaxError if a file cannot be read, ValueError if the sizes of image and mask differ, DataFault
    if a mask does not fit `labels`.
    """

    transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    labels: MaskLabels
    channels: int = 3

    def __call__(self, scene: Scene) -> tuple[Tensor, Tensor]:
        image = ImageReader(self.channels, "torchvision")(scene.image)
        mask = self.labels.classes_of(read_values(scene.mask), scene.mask)
        check_sizes(image, mask, scene.mask)
        return self.transform(image, mask)


def check_sizes(image: Tensor, mask: Tensor, name: str) -> None:
    """Raise a ValueError unless an image (C, H, W) and its mask (H, W) are of one size."""
    if image.shape[1:] != mask.shape:
        height, width = mask.shape
        raise ValueError(f"the mask {name} has {width}x{height} pixels, the image {image.shape[2]}x{image.shape[1]}")


def scene_splits(root: Path, *, finder: FileFinder, place: str, remedy: str) -> tuple[list[Scene], list[Scene]]:
    """The scenes for training and for the test, from the folders `SPLIT_FOLDERS`, each sorted by name.

    Raises FileNotFoundError, which begins with `place` and ends with `remedy`, if a folder, an image or a mask is
    missing; ValueError if it is not clear which files belong together, and if the splits share an image.
    """
    training, validation = (_scenes(root, names, finder, place, remedy) for names in SPLIT_FOLDERS)
    paths = ({identity: scene.image for identity, scene in scenes.items()} for scenes in (training, validation))
    check_disjoint(*paths, place=place, what="training and validation must have no image in common")
    return list(training.values()), list(validation.values())


def _scenes(root: Path, names: Sequence[str], finder: FileFinder, place: str, remedy: str) -> dict[Identity, Scene]:
    """The scenes by their image's identity. An image with several names, through links, and one mask counts once."""
    folders = [_split_folder(root / kind, names, place, remedy) for kind in ("images", "annotations")]
    endings = (IMAGE_SUFFIXES, (".png",))
    images, masks = (_by_stem(finder.here(*each), finder, place) for each in zip(folders, endings, strict=True))
    scenes: dict[Identity, tuple[FileEntry, FileEntry]] = {}
    for stem in sorted(images.keys() & masks.keys()):
        image, mask = images[stem], masks[stem]
        taken, its_mask = scenes.setdefault(image.identity, (image, mask))
        if its_mask.identity != mask.identity:
            raise ValueError(
                f"{place}: {image.path} is {taken.path} too, through a link, and has another mask, {mask.path}. Remove "
                "one of the two."
            )
        if taken is not image:
            finder.repeated.append(image.path)
    known = {file.identity for scene in scenes.values() for file in scene}
    for files, others, what, folder in ((images, masks, "mask", folders[1]), (masks, images, "image", folders[0])):
        alone = sorted(stem for stem in files.keys() - others.keys() if files[stem].identity not in known)
        if alone:
            raise FileNotFoundError(
                f"{place}: {len(alone):,} of {len(files):,} files have no {what} in {folder.resolve()}; the first is "
                f"{files[alone[0]].path}. {remedy}"
            )
        finder.repeated += [files[stem].path for stem in files.keys() - others.keys()]
    if not scenes:
        raise FileNotFoundError(f"{place}: no image lies in {folders[0].resolve()}. {remedy}")
    return {identity: Scene(image.path, mask.path) for identity, (image, mask) in scenes.items()}


def _split_folder(parent: Path, names: Sequence[str], place: str, remedy: str) -> Path:
    there = [parent / name for name in names if (parent / name).is_dir()]
    if not there:
        raise FileNotFoundError(f"{place}: no folder {' or '.join(names)} in {parent.resolve()}. {remedy}")
    if len(there) > 1 and not there[0].samefile(there[1]):
        raise ValueError(f"{place}: {there[0]} and {there[1]} are both there, of which one is read. Remove the other.")
    return there[0]


def _by_stem(files: Iterable[FileEntry], finder: FileFinder, place: str) -> dict[str, FileEntry]:
    """The files by name without ending. Raises ValueError if two have the same."""
    by_stem: dict[str, FileEntry] = {}
    for file in files:
        taken = by_stem.setdefault(Path(file.path).stem, file)
        if taken.identity != file.identity:
            raise ValueError(
                f"{place}: {taken.path} and {Path(file.path).name} have the same name but for the ending, so that it "
                "is not clear to which of them the other file of that name belongs. Remove or rename one."
            )
        if taken is not file:
            finder.repeated.append(file.path)
    return by_stem
