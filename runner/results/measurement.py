"""The result of a probe and its file; reading and drawing it needs no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

from runner.files.atomic import write_atomically
from runner.files.readers import Unreadable, read_arrays

NUMBER, TEXT = "number/", "text/"


@dataclass(frozen=True, eq=False)
class Measurement:
    """The result of a probe: arrays to draw, summary numbers, and texts such as the names of layers.

    Names in `arrays` must not start with "number/" or "text/".
    """

    arrays: dict[str, np.ndarray]
    numbers: dict[str, float]
    texts: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file atomically: arrays under their names, "number/<name>" and "text/<name>"."""
        numbers = {NUMBER + name: np.float64(number) for name, number in self.numbers.items()}
        texts = {TEXT + name: np.array(text) for name, text in self.texts.items()}
        write_atomically(path, lambda file: np.savez(file, **self.arrays, **numbers, **texts))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Measurement:
        """Read a file that `save` wrote. Raises Unreadable for any other file."""
        arrays, numbers, texts = {}, {}, {}
        for name, value in read_arrays(path).items():
            if name.startswith((NUMBER, TEXT)) and value.size != 1:
                raise Unreadable(path, f"{name} is no single value")
            if name.startswith(NUMBER):
                numbers[name.removeprefix(NUMBER)] = number_of(value, path)
            elif name.startswith(TEXT):
                texts[name.removeprefix(TEXT)] = str(value.item())
            else:
                arrays[name] = value
        return cls(arrays, numbers, texts)


def number_of(value: np.ndarray, path: str | os.PathLike[str]) -> float:
    """The number in an array of the file `path`. Raises Unreadable if it has none or several."""
    if value.size != 1 or value.dtype.kind not in "biuf":
        raise Unreadable(path, "what should be a number is none")
    return float(value.item())
