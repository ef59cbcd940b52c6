"""The values of mask pixels, and their classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from runner.data.dataset import IGNORE_INDEX, DataFault
from runner.data.image_reading import upright

MASK_MODES = ("1", "L", "P", "I;16", "I")  # Pillow's: 1 and 8 bits of grey, a palette, 16 bits of grey in two ways
NUM_VALUES = 2**16
UNKNOWN = -1  # the class of a value that has none
MAX_SUGGESTED_VALUES = 24


@dataclass(frozen=True, kw_only=True)
class MaskLabels:
    """The mapping from mask values to classes.

    `mask_values` lists the value of each class: by default 0, 1, 2, ..., or with `reduce_zero_label` 1, 2, 3, ..., and
    0 is ignored. `ignore_label` is ignored too, unless it is in `mask_values`; "auto" is 255. Raises ValueError if
    these do not fit each other.
    """

    num_classes: int
    ignore_label: int | str | None = "auto"
    reduce_zero_label: bool = False
    mask_values: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_classes > IGNORE_INDEX:
            raise ValueError(
                f"dataset.num_classes={self.num_classes}: masks are kept with at most {IGNORE_INDEX} classes."
            )
        if self.mask_values is None:
            return
        key = f"dataset.mask_values={list(self.mask_values)}"
        if self.reduce_zero_label:
            raise ValueError(f"{key}: they say all; set dataset.reduce_zero_label=false.")
        if any(not 0 <= value < NUM_VALUES for value in self.mask_values):
            raise ValueError(f"{key}: the values of a mask's pixels lie in [0, {NUM_VALUES - 1}].")
        if len(set(self.mask_values)) != self.num_classes or len(self.mask_values) != self.num_classes:
            raise ValueError(
                f"{key}: it must name {self.num_classes} different values, as dataset.num_classes={self.num_classes}."
            )

    @property
    def values(self) -> tuple[int, ...]:
        """The value of each class."""
        first = int(self.reduce_zero_label)
        return self.mask_values or tuple(range(first, self.num_classes + first))

    @property
    def ignored(self) -> int | None:
        """The value of `ignore_label`."""
        label = IGNORE_INDEX if self.ignore_label == "auto" else self.ignore_label
        return None if self.mask_values and label in self.mask_values else label

    def class_of(self, value: int) -> int | None:
        """The class of a value; `IGNORE_INDEX` if it is ignored, None if it is unknown."""
        index = int(_table(self)[value])
        return None if index == UNKNOWN else index

    def classes_of(self, values: Tensor, path: str) -> Tensor:
        """The class of each pixel, uint8; `IGNORE_INDEX` if it is ignored. Raises DataFault for an unknown value."""
        classes = _table(self)[values]
        if (classes == UNKNOWN).any():
            raise self.fault(path, values[classes == UNKNOWN].max().item(), values.unique().tolist())
        return classes.to(torch.uint8)

    def fault(self, path: str, value: int, known: Iterable[int]) -> DataFault:
        """The error for an unknown value of the mask at `path`; `known` are values of masks."""
        values = self.values
        names = f"dataset.mask_values={list(values)}" if self.mask_values else f"{values[0]}..{values[-1]}"
        suggested = listed(sorted(set(known))) if len(set(known)) == self.num_classes else "[VALUE,VALUE,...]"
        return DataFault(
            f"dataset.num_classes={self.num_classes}: the mask {path} has the value {value}, which is none of {names}, "
            f"nor dataset.ignore_label={self.ignored}. Set both as the masks have them, or say which value each class "
            f"has: dataset.mask_values={suggested}."
        )


def read_values(path: str) -> Tensor:
    """Read a mask's values, (H, W) int32, turned upright by its EXIF orientation.

    Raises OSError if it cannot be read, ValueError if it is not an image of indices.
    """
    try:
        with Image.open(path) as file:
            # reading scales grey of 2 or 4 bits to 0..255; only the tile has the bits
            mode = file.tile[0].args if file.mode == "L" else file.mode
            file.load()
            values = torch.from_numpy(np.array(upright(file, file)).astype(np.int32))
    except (OSError, SyntaxError) as error:
        raise OSError(f"the mask {path} cannot be read ({error})") from None
    if mode not in MASK_MODES:
        raise ValueError(
            f"the mask {path} does not hold one class index a pixel in 1, 8 or 16 bits of grey or in a "
            f"palette (Pillow's mode {mode}); write it as such"
        )
    return values


def count_values(path: str) -> dict[str, int]:
    """The pixels of each value in a mask's file, as JSON. Raises what `read_values` does."""
    counts = np.bincount(read_values(path).numpy().ravel())
    return {str(value): int(counts[value]) for value in counts.nonzero()[0]}


def listed(values: Iterable[int]) -> str:
    """A list for the command line; dots stand for the end of a long one."""
    values = list(values)
    shown = [str(value) for value in values[:MAX_SUGGESTED_VALUES]]
    return f"[{','.join([*shown, '...'] if len(values) > MAX_SUGGESTED_VALUES else shown)}]"


@lru_cache(maxsize=8)
def _table(labels: MaskLabels) -> Tensor:
    """The class of each value, (65536,) int16."""
    table = torch.full((NUM_VALUES,), UNKNOWN, dtype=torch.int16)
    table[list(labels.values)] = torch.arange(labels.num_classes, dtype=torch.int16)
    if labels.ignored is not None:
        table[labels.ignored] = IGNORE_INDEX
    if labels.reduce_zero_label:
        table[0] = IGNORE_INDEX
    return table
