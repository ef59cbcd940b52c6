"""`bench.py photos`: the runner's reader and loader beside torchvision's transforms of PIL images, and timm's loader.

JPEG files of 500x375 and 640x480 pixels, made of scikit-learn's two photos, are cropped at random to 224 pixels and
mirrored. A loader gives normalized batches. Torch has one thread: reading, and loading without workers, is on one core
and is timed by that core's clock, which other work on the machine hardly changes; with workers by the wall's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from runner.data.dataset import Data
from runner.data.file_loader import Reader
from runner.data.image_folder import image_folder
from runner.data.image_transforms import IMAGENET_MEAN, IMAGENET_STD

from .part import Report, table_of
from .result import Result
from .timing import Stopwatch

HELP = "reading and augmenting photos"
IN_ALL: list[str] = []
SIZES = ((500, 375), (640, 480))
OURS, PIL_WAY, TIMM = "the runner", "PIL's way", "timm's loader"
AT_LEAST = {PIL_WAY: 1.6, TIMM: 1.5}
CPU = torch.device("cpu")
Arms = dict[str, Callable[[], object]]  # by who does it


@dataclass(frozen=True)
class PhotosScale:
    """How large the measurement is; `workers` are the numbers of loader processes that are tried."""

    blocks: int
    photos: int = 32  # in a pass of each arm
    batch_size: int = 16
    image_size: int = 224
    workers: tuple[int, ...] = (0, 1)


QUICK = {"blocks": 2, "photos": 8, "batch_size": 4, "image_size": 32, "workers": (0,)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This part has none of its own."""


def measure(arguments: argparse.Namespace, device: torch.device, console: Console) -> Report:
    """Time passes over the photos, in turn."""
    scale = PhotosScale(arguments.blocks)
    scale = replace(scale, **QUICK) if arguments.quick else scale
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    speeds: dict[str, dict[str, list[float]]] = {}
    with TemporaryDirectory() as root:
        write_photos(Path(root), scale.photos)
        speeds["reading a photo"] = _speeds(dict(_readers(root, scale)), scale, "cpu")
        for workers in scale.workers:
            clock = "wall" if workers else "cpu"
            speeds[f"loading photos, {workers} workers"] = _speeds(dict(_loaders(root, scale, workers)), scale, clock)
    torch.set_num_threads(threads)
    table = table_of("images/s", *AT_LEAST, OURS)
    for what, arms in speeds.items():
        table.add_row(what, *(f"{max(arms[name]):.0f}" if name in arms else "" for name in (*AT_LEAST, OURS)))
    console.print(table)
    return Report(asdict(scale), {"images_per_second": speeds}, list(_results(speeds)))


def _speeds(arms: Arms, scale: PhotosScale, clock: str) -> dict[str, list[float]]:
    """Images/s of each arm in each block, after a pass that is not timed."""
    names = list(arms)
    for run in arms.values():
        run()
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for block in range(scale.blocks):
        turn = block % len(names)
        for name in names[turn:] + names[:turn]:
            watch = Stopwatch(CPU)
            arms[name]()
            speeds[name].append(scale.photos / getattr(watch.read(), clock))
    return speeds


def _results(speeds: dict[str, dict[str, list[float]]]) -> Iterator[Result]:
    """The fastest pass over the fastest one of each other."""
    for what, arms in speeds.items():
        for other, bound in AT_LEAST.items():
            if other in arms:
                blocks = [ours / theirs for ours, theirs in zip(arms[OURS], arms[other], strict=True)]
                ours, theirs = max(arms[OURS]), max(arms[other])
                yield Result(what, ours, "images/s", theirs, other, bound, is_upper=False, blocks=blocks)


def write_photos(root: Path, number: int) -> None:
    """Write `number` training photos of two classes, and a test photo of each, below `root`."""
    from sklearn.datasets import load_sample_images

    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    draw = np.random.default_rng(0)
    for place in range(number + 2):
        folder = root / ("train" if place < number else "val") / f"class{place % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        source, (width, height) = sources[place % 2], SIZES[place // 2 % 2]
        part = source.height * draw.uniform(0.6, 1)
        left, top = draw.uniform(0, source.width - part * 4 / 3), draw.uniform(0, source.height - part)
        box = (left, top, left + part * 4 / 3, top + part)
        source.resize((width, height), Image.Resampling.BICUBIC, box).save(folder / f"{place}.jpg", quality=90)


def _readers(root: str, scale: PhotosScale) -> Iterator[tuple[str, Callable[[], object]]]:
    data = _data(root, scale, workers=0)
    read, seeds = Reader(data.load_train), count()
    yield OURS, lambda: [read[sample, next(seeds)] for sample in data.train]
    crop = T.Compose([*_crops(scale), T.PILToTensor()])
    folder = ImageFolder(f"{root}/train", crop)
    yield PIL_WAY, lambda: [folder[place] for place in range(len(folder))]


def _loaders(root: str, scale: PhotosScale, workers: int) -> Iterator[tuple[str, Callable[[], object]]]:
    placing = {"batch_size": scale.batch_size, "device": CPU}
    batches = _data(root, scale, workers).train_batches(seed=0, **placing)
    epochs = count()
    yield OURS, lambda: _consume(batches.epoch(next(epochs)))
    normalized = T.Compose([*_crops(scale), T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    loading = {"batch_size": scale.batch_size, "num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(ImageFolder(f"{root}/train", normalized), shuffle=True, drop_last=True, **loading)
    yield PIL_WAY, lambda: _consume(loader)
    try:
        from timm.data import create_loader
    except ImportError:
        return
    of_timm = create_loader(
        ImageFolder(f"{root}/train"),
        (3, scale.image_size, scale.image_size),
        scale.batch_size,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=False,
        device=CPU,
    )
    yield TIMM, lambda: _consume(of_timm)


def _data(root: str, scale: PhotosScale, workers: int) -> Data:
    settings = {"validation": "test", "check_duplicates": False, "decode": "torchvision"}
    return image_folder(root=root, image_size=scale.image_size, num_workers=workers, **settings)


def _crops(scale: PhotosScale) -> list:
    return [T.RandomResizedCrop(scale.image_size), T.RandomHorizontalFlip()]


def _consume(batches: Iterable) -> None:
    for _ in batches:
        pass
