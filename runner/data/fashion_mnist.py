"""Fashion-MNIST (arXiv 1708.07747), 28x28 grey images of clothes, read from its four files into memory."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST

from runner.data.download import open_dataset
from runner.data.splits import Split, TensorData, make_data

IMAGE_SIZE = 28
PREFIXES = ("train", "t10k")  # of the files of the training and the test images
FILES = tuple(f"{prefix}-{kind}-ubyte" for prefix in PREFIXES for kind in ("images-idx3", "labels-idx1"))
PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts them
CLASS_NAMES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def fashion_mnist(
    *, root: str = "data", download: bool = True, image_size: int = 28, channels: int = 1, **settings: Any
) -> TensorData:
    """60,000 training and 10,000 test images of 28x28 in 10 classes, as equal `channels`.

    See `source_splits` for the files and `make_data` for `settings`.
    """
    if image_size != IMAGE_SIZE:
        raise ValueError(f"dataset.image_size={image_size}: the images of fashion_mnist are {IMAGE_SIZE} pixels wide.")
    splits = (split.with_channels(channels) for split in source_splits(root, download))
    return make_data("fashion_mnist", *splits, num_classes=len(CLASS_NAMES), class_names=CLASS_NAMES, **settings)


def source_splits(root: str, download: bool) -> tuple[Split, Split]:
    """The images (N, 1, 28, 28) uint8 for training and for the test.

    Looks for the files, compressed or not, in `root`, below it where torchvision puts them, and where Debian's package
    does; else downloads them. FileNotFoundError if that fails, ValueError if one is damaged.
    """
    below_root = Path(root, "FashionMNIST", "raw")
    folders = [folder for folder in (Path(root), below_root, PACKAGE_FOLDER) if _has_files(folder)]
    if not folders:
        open_dataset(
            lambda: FashionMNIST(root, download=download),
            root=Path(root),
            name="FashionMNIST",
            download=download,
            remedy=(
                f"Put {', '.join(FILES)}, with or without .gz, into {Path(root).resolve()}; or install Debian's "
                f"package dataset-fashion-mnist, which puts them into {PACKAGE_FOLDER}; or let dataset.download=true "
                "download them where there is a network."
            ),
        )
        folders = [below_root]
    train, test = (_read_split(folders[0], prefix) for prefix in PREFIXES)
    return train, test


def _has_files(folder: Path) -> bool:
    return all(_file(folder, name).is_file() for name in FILES)


def _file(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_file() else folder / f"{name}.gz"


def _read_split(folder: Path, prefix: str) -> Split:
    images = _read(_file(folder, f"{prefix}-images-idx3-ubyte"), IMAGE_SIZE, IMAGE_SIZE)
    targets = _read(_file(folder, f"{prefix}-labels-idx1-ubyte"))
    if len(images) != len(targets) or targets.max() >= len(CLASS_NAMES):
        raise ValueError(
            f"dataset.root: {folder} has {len(images):,} images and {len(targets):,} labels up to {targets.max()} in "
            f"its files {prefix}-*; it must be as many, up to 9. Fetch the files anew."
        )
    return Split(images.unsqueeze(1), targets.long())


def _read(file: Path, *shape: int) -> Tensor:
    """The bytes of an IDX file as (N, *shape): a header of big-endian 32-bit numbers, magic and sizes, then bytes."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"dataset.root: {file} cannot be read ({error}). Fetch it anew.") from None
    header = [int.from_bytes(content[place : place + 4]) for place in range(0, 8 + 4 * len(shape), 4)]
    expected = header[1] * torch.Size(shape).numel()
    data = content[4 * len(header) :]
    if header[0] != 0x801 + len(shape) or tuple(header[2:]) != shape or not 0 < len(data) == expected:
        raise ValueError(f"dataset.root: {file} is damaged, or no file of Fashion-MNIST. Fetch it anew.")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, *shape)
