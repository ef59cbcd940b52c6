"""Reading photos: the runner's reader and loader beside torchvision's transforms of PIL images, and timm's loader.

JPEG files of 500x375 and 640x480 pixels, made of scikit-learn's two photos, are cropped at random to 224 pixels and
mirrored. A loader gives normalized batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from benchmarks.timing import Arm, Target, interleaved
from runner.data.file_loader import Reader
from runner.data.image_folder import image_folder
from runner.data.image_transforms import IMAGENET_MEAN, IMAGENET_STD

SIZES = ((500, 375), (640, 480))
PIL_WAY, TIMM, OURS = "PIL's way", "timm", "runner"
AT_LEAST = {PIL_WAY: 1.6, TIMM: 1.5}


@dataclass(frozen=True)
class PhotosScale:
    """How large the measurement is; `workers` are the numbers of loader processes that are tried."""

    blocks: int = 10
    photos: int = 64  # in a pass of each arm
    batch_size: int = 16
    image_size: int = 224
    workers: tuple[int, ...] = (0, 1)


QUICK = {"blocks": 2, "photos": 8, "batch_size": 4, "image_size": 32, "workers": (0,)}


def measure(scale: PhotosScale) -> dict:
    """Images/s of each arm, the minimum and the median of its seconds over the blocks, and the targets."""
    with TemporaryDirectory() as root:
        write_photos(Path(root), scale.photos)
        arms: dict[str, Callable[[], object]] = dict(_readers(root, scale))
        loaders = {}
        for workers in scale.workers:
            loaders |= {f"{name}, {workers} workers": load for name, load in _loaders(root, scale, workers)}
        seconds = interleaved(
            {name: Arm(run) for name, run in {**arms, **loaders}.items()},
            blocks=scale.blocks,
            repeats=1,
            device=torch.device("cpu"),
        )
    speed = {name: scale.photos / min(times) for name, times in seconds.items()}
    at_median = {name: scale.photos / median(times) for name, times in seconds.items()}
    return {
        "scale": asdict(scale),
        "images_per_second": speed,
        "images_per_second_at_the_median": at_median,
        "targets": [target.as_dict() for target in targets(speed)],
    }


def targets(speed: dict[str, float]) -> list[Target]:
    """The runner's images/s over those of the others, reading and loading."""
    compared = []
    for name, other in speed.items():
        way, _, how = name.partition(", ")
        if way in AT_LEAST:
            ratio = speed[f"{OURS}, {how}"] / other
            compared.append(Target(f"photos, {how}: over {way}", ratio, AT_LEAST[way], is_upper=False))
    return compared


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
    read = Reader(data.load_train)
    yield f"{OURS}, reading", lambda: [read[sample, place] for place, sample in enumerate(data.train)]
    crop = T.Compose([*_crops(scale), T.PILToTensor()])
    folder = ImageFolder(f"{root}/train", crop)
    yield f"{PIL_WAY}, reading", lambda: [folder[place] for place in range(len(folder))]


def _loaders(root: str, scale: PhotosScale, workers: int) -> Iterator[tuple[str, Callable[[], object]]]:
    placing = {"batch_size": scale.batch_size, "device": torch.device("cpu")}
    batches = _data(root, scale, workers).train_batches(seed=0, **placing)
    epochs = iter(range(10**9))
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
        device=torch.device("cpu"),
    )
    yield TIMM, lambda: _consume(of_timm)


def _data(root: str, scale: PhotosScale, workers: int):
    settings = {"validation": "test", "check_duplicates": False, "decode": "torchvision"}
    return image_folder(root=root, image_size=scale.image_size, num_workers=workers, **settings)


def _crops(scale: PhotosScale) -> list:
    return [T.RandomResizedCrop(scale.image_size), T.RandomHorizontalFlip()]


def _consume(batches: Iterable) -> None:
    for _ in batches:
        pass
