"""Data sets whose samples are got by their number, `source[index]`, as those of torchvision and of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from runner.data.dataset import Findings, as_size
from runner.data.file_data import FileData
from runner.data.image_reading import ImageReader
from runner.data.image_transforms import ImageTransforms
from runner.data.mask_labels import MASK_MODES, MaskLabels
from runner.data.sampling import split_validation, stratified_share
from runner.data.scene_files import check_sizes

TEST_SHARE = 0.2  # of a data set that has one split
Source = Sequence[tuple[Any, Any]]  # of images, as `ImageReader` takes them, and their targets


class Place(NamedTuple):
    """Where a sample lies."""

    split: str
    index: int

    def __str__(self) -> str:
        return f"{self.split}[{self.index}]"


IndexedSample = tuple[Place, int]  # with its class, 0 for an image with a mask


@dataclass(frozen=True)
class LoadIndexedImage:
    """Reads and transforms the image of a sample."""

    sources: Mapping[str, Source]
    transform: Callable[..., Tensor]
    read: ImageReader

    def __call__(self, sample: IndexedSample) -> tuple[Tensor, int]:
        place, target = sample
        image, _ = self.sources[place.split][place.index]
        return self.transform(self.read(image)), target


@dataclass(frozen=True)
class LoadIndexedScene:
    """Reads and transforms an image and its mask, as `LoadScene` does with files."""

    sources: Mapping[str, Source]
    transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    read: ImageReader
    labels: MaskLabels

    def __call__(self, sample: IndexedSample) -> tuple[Tensor, Tensor]:
        place, _ = sample
        image, mask = self.sources[place.split][place.index]
        if mask.mode not in MASK_MODES:
            raise ValueError(f"its mask does not hold one class index a pixel (Pillow's mode {mask.mode})")
        values = torch.from_numpy(np.array(mask).astype(np.int32))
        pixels = self.read(image)
        check_sizes(pixels, values, str(place))
        return self.transform(pixels, self.labels.classes_of(values, str(place)))


def make_indexed_data(
    name: str,
    targets: Mapping[str, Tensor],
    *,
    validation: float | str,
    transforms: ImageTransforms,
    image_size: int | Sequence[int],
    **about: Any,
) -> FileData:
    """A data set of the splits `targets`, train and test, the classes of their samples (N,).

    One without a split test has a fifth of each class set apart for it. `validation` as in `make_file_data`; `about`
    are further fields of `FileData`.
    """
    samples = {split: list(samples_of(split, classes)) for split, classes in targets.items()}
    train, findings = samples["train"], Findings()
    if "test" in samples:
        test = samples["test"]
    else:
        chosen = set(stratified_share(targets["train"], TEST_SHARE).tolist())
        test = [train[index] for index in sorted(chosen)]
        train = [sample for index, sample in enumerate(train) if index not in chosen]
        findings.notes.append(("note", f"it has one split; {len(test):,} images of it are set apart for the test"))
    classes = torch.tensor([target for _, target in train], dtype=torch.int64)
    train, held_out, source = split_validation(train, classes, test, validation)
    return FileData(
        name=name,
        image_size=as_size(image_size),
        train=train,
        validation=held_out,
        test=test,
        validation_source=source,
        mean=torch.tensor(transforms.mean),
        std=torch.tensor(transforms.std),
        findings=findings,
        **about,
    )


def samples_of(split: str, classes: Tensor) -> list[IndexedSample]:
    """The samples of a split by number."""
    return [(Place(split, index), target) for index, target in enumerate(classes.tolist())]


def consecutive_classes(
    targets: Mapping[str, Tensor], names: Sequence[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The classes that occur in any split, numbered from 0, and their names, numbers where `names` lacks them."""
    values = torch.cat(list(targets.values())).unique()
    numbered = {split: torch.searchsorted(values, classes) for split, classes in targets.items()}
    return numbered, tuple(names[value] if value < len(names) else str(value) for value in values.tolist())
