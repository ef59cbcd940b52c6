"""What a probe found, as it stands on disk; reading and drawing it takes no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

NUMBER, TEXT = "number/", "text/"


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a probe found: arrays to draw, the numbers that sum them up, and texts such as the names of layers.

    A name in `arrays` starts with neither "number/" nor "text/".
    """

    arrays: dict[str, np.ndarray]
    numbers: dict[str, float]
    texts: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file, whole or not at all: arrays under their names, "number/<name>" and "text/<name>"."""
        path = Path(path)
        numbers = {NUMBER + name: np.float64(number) for name, number in self.numbers.items()}
        texts = {TEXT + name: np.array(text) for name, text in self.texts.items()}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **self.arrays, **numbers, **texts)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Measurement:
        """Read what `save` wrote."""
        arrays, numbers, texts = {}, {}, {}
        with np.load(path) as file:
            for name, value in file.items():
                if name.startswith(NUMBER):
                    numbers[name.removeprefix(NUMBER)] = float(value)
                elif name.startswith(TEXT):
                    texts[name.removeprefix(TEXT)] = str(value)
                else:
                    arrays[name] = value
        return cls(arrays, numbers, texts)
