"""Folders of images and masks as people have them: with junk, links, turned photos, odd masks, copies, broken files."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tortures import survival
from tortures.attack import DONE, REFUSED, RUN, Attack

SETTINGS = ("dataset.root=data", "dataset.image_size=16", "dataset.test_size=16", "dataset.num_workers=0", "name=run")
SETTINGS += ("dataset.validation=0.25", "train.global_batch_size=4", "train.epochs=1", "train.device=cpu")
SETTINGS += ("wandb.mode=disabled",)
COMMANDS = {
    "images": ("dataset=image_folder", "model=resnet20", "dataset.test_resize=16", *SETTINGS),
    "masks": ("dataset=mask_folder", "model=deeplabv3plus_resnet18", *SETTINGS),
}
SPLITS = {"images": ("train", "val"), "masks": ("training", "validation")}
CLASSES, TRAINING, TEST = ("cat", "dog"), 8, 4
SIZE = (24, 20)
FAILED = {1: "a file could not be read, once training had begun"}
TURNED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}  # by EXIF 274
TURNED |= {2: Image.Transpose.FLIP_LEFT_RIGHT}
ORIENTATION = 274
MASK_MODES: dict[str, Callable[[np.ndarray], Image.Image]] = {
    "16 bits": lambda values: Image.fromarray(values.astype(np.uint16)),
    "colours": lambda values: Image.fromarray(np.stack([values * 255] * 3, 2)),
    "one bit": lambda values: Image.fromarray(values.astype(bool)),
    "a palette": lambda values: Image.fromarray(values).convert("P"),
    "an alpha channel": lambda values: Image.fromarray(values).convert("LA"),
}
UNREADABLE = ("unreadable", "cannot be read")
JUNK_FOLDERS = (".ipynb_checkpoints", "__MACOSX", ".thumbnails", ".git", "@eaDir", ".Trash-1000")
JUNK_FILES = (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", ".hidden.png", ".directory")


@dataclass(frozen=True)
class Case:
    """What was done to a data set, and what may come of it.

    `is_same` if the result is to be that of the data set without it. Else one of the words in `told` stands in the
    output, and the run may be refused or fail. `words` are added to the command line.
    """

    text: str
    is_same: bool = False
    told: Sequence[str] = ()
    words: Sequence[str] = ()


def attack(a: Attack) -> None:
    """Do something to a data set, and train on it."""
    kind = a.draw.choice(("images", "images", "masks"))
    expected = _expected(a, kind)
    _make(a.folder / "data", kind)
    case = a.draw.choice(BOTH + (OF_IMAGES if kind == "images" else OF_MASKS))(a.draw, a.folder / "data", kind)
    a.title = f"{kind}: {case.text}"
    before = survival.tree(a.folder / "data")
    ended = a.run(*COMMANDS[kind], *case.words, allowed=DONE if case.is_same else {**REFUSED, **FAILED})
    if changed := survival.changes(before, survival.tree(a.folder / "data")):
        a.fail(f"the data was changed: {', '.join(changed)}")
    if ended.code == 0 and case.is_same:
        a.compare(expected, a.folder / RUN)
    elif ended.code is not None and not case.is_same and not any(word in ended.text for word in case.told):
        a.fail(f"none of {', '.join(case.told)} in the output: silently taken")


def _expected(a: Attack, kind: str) -> dict:
    """The result of a run on the data set as it is."""

    def run(maker: Attack) -> None:
        _make(maker.folder / "data", kind)
        maker.run(*COMMANDS[kind])

    return a.templates.made(f"data-{kind}", run, lambda maker: survival.result(maker.folder / RUN))


def _make(root: Path, kind: str) -> None:
    """Images of noise, the same each time; 8 of each class or 16 with masks in training, half as many for the test."""
    noise = np.random.default_rng(0)
    for split, number in zip(SPLITS[kind], (TRAINING, TEST), strict=True):
        for name, index in product(CLASSES, range(number)):
            folder = root / split / name if kind == "images" else root / "images" / split
            _save(noise.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8), folder / f"{name}{index}.png")
            if kind == "masks":
                mask = noise.integers(0, 2, SIZE[::-1], dtype=np.uint8)
                _save(mask, root / "annotations" / split / f"{name}{index}.png")


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _images(root: Path, kind: str, split: str = "") -> list[Path]:
    """All images, or those of a split."""
    paths = sorted((root if kind == "images" else root / "images").rglob("*.png"))
    return [path for path in paths if not split or split in path.parts]


def _junk_folder(draw: Random, root: Path, kind: str) -> Case:
    place = draw.choice(sorted({root, *(path.parent for path in _images(root, kind)), root / SPLITS["images"][0]}))
    place = place if place.is_dir() else root
    name = draw.choice(JUNK_FOLDERS)
    (place / name).mkdir()
    for path in draw.sample(_images(root, kind), 2):
        shutil.copy(path, place / name / path.name)
    return Case(f"a folder {name} in {place.relative_to(root)}", is_same=True)


def _junk_file(draw: Random, root: Path, kind: str) -> Case:
    image = draw.choice(_images(root, kind))
    name = draw.choice((*JUNK_FILES, f"._{image.name}"))
    (image.parent / name).write_bytes(b"\x00\x05\x16\x07" + bytes(200))
    return Case(f"a file {name} in {image.parent.relative_to(root)}", is_same=True)


def _linked_file(draw: Random, root: Path, kind: str) -> Case:
    for image in draw.sample(_images(root, kind), 3):
        target = root.parent / f"elsewhere-{image.parent.parent.name}-{image.name}"
        image.rename(target)
        image.symlink_to(target)
    return Case("images are links to files elsewhere", is_same=True)


def _linked_folder(draw: Random, root: Path, kind: str) -> Case:
    folder = draw.choice(sorted({path.parent for path in _images(root, kind)}))
    folder.rename(root.parent / "elsewhere")
    folder.symlink_to(root.parent / "elsewhere")
    return Case(f"{folder.relative_to(root)} is a link to a folder elsewhere", is_same=True)


def _loop(draw: Random, root: Path, kind: str) -> Case:
    folder = draw.choice(sorted({path.parent for path in _images(root, kind)}))
    (folder / "up").symlink_to(draw.choice(("..", ".", "../..")))
    return Case(f"a link in {folder.relative_to(root)} that leads back up", is_same=True)


def _turned(draw: Random, root: Path, kind: str) -> Case:
    orientation = draw.choice(list(TURNED))
    for path in _images(root, kind):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.open(path).transpose(TURNED[orientation]).save(path, exif=exif)
    return Case(f"photos with EXIF orientation {orientation}", is_same=True)


def _opaque(draw: Random, root: Path, kind: str) -> Case:
    _each(draw.sample(_images(root, kind), 5), lambda image: image.convert("RGBA"))
    return Case("images with an opaque alpha channel", is_same=True)


def _broken(draw: Random, root: Path, kind: str) -> Case:
    path = draw.choice(_images(root, kind))
    way = draw.choice(("empty", "cut", "text", "pipe", "folder", "nowhere", "bomb"))
    content = path.read_bytes()
    path.unlink()
    if way == "pipe":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    elif way == "nowhere":
        path.symlink_to("nowhere.png")
    else:
        forged = content[:16] + (60_000).to_bytes(4, "big") * 2 + content[24:29]
        forged += zlib.crc32(forged[12:29]).to_bytes(4, "big") + content[33:]
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"text", "bomb": forged}[way])
    return Case(f"an image is broken ({way}): {path.relative_to(root)}", told=(path.name, *UNREADABLE))


def _all_broken(draw: Random, root: Path, kind: str) -> Case:
    for path in _images(root, kind):
        if path.name.startswith("cat"):
            path.write_bytes(b"no image")
    return Case("every image with a cat is unreadable", told=("cat", *UNREADABLE))


def _sixteen_bits(draw: Random, root: Path, kind: str) -> Case:
    _each(_images(root, kind), lambda image: Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257))
    return Case("images of 16 bits", told=("16",))


def _copies(draw: Random, root: Path, kind: str) -> Case:
    first, last = (_images(root, kind, split) for split in SPLITS[kind])
    for one, other in zip(first[:2], last[:2], strict=True):
        shutil.copy(one, other)
    return Case("test images that are copies of training images", told=("identical",))


def _thin(draw: Random, root: Path, kind: str) -> Case:
    path = draw.choice(_images(root, kind, SPLITS[kind][0]))
    width, height = draw.choice(((3000, 1), (1, 3000), (1, 1)))
    Image.new("RGB", (width, height)).save(path)
    return Case(f"{path.name} of {width}x{height} pixels", told=(path.name, f"{width}x{height}", "status: completed"))


def _nothing_left(draw: Random, root: Path, kind: str) -> Case:
    share = draw.choice(("0.001", "0", "0.999", "1", "-1", "nan"))
    told = ("validation", *(("status: completed",) if share == "0.999" else ()))  # an image may be left
    return Case(f"dataset.validation={share}", told=told, words=(f"dataset.validation={share}",))


def _one_class(draw: Random, root: Path, kind: str) -> Case:
    for split in SPLITS[kind]:
        shutil.rmtree(root / split / "dog")
    return Case("one class alone", told=("one class", "1 class", "two classes"))


def _class_of_one_split(draw: Random, root: Path, kind: str) -> Case:
    split = draw.choice(SPLITS[kind])
    shutil.rmtree(root / split / "dog")
    return Case(f"no class dog in {split}", told=("dog",))


def _empty_class(draw: Random, root: Path, kind: str) -> Case:
    (root / draw.choice(SPLITS[kind]) / "empty").mkdir()
    return Case("an empty folder beside the classes", told=("empty",))


def _odd_class_names(draw: Random, root: Path, kind: str) -> Case:
    name = draw.choice(("dög", "d g", "dog=1,2", "d'og", "dog\x1b[31m", "d\nog", "dog[1]", "${dog}"))
    for split in SPLITS[kind]:
        (root / split / "dog").rename(root / split / name)
    return Case(f"a class {name!r}", told=("status: completed",))


def _no_files(draw: Random, root: Path, kind: str) -> Case:
    split = draw.choice(SPLITS[kind])
    for path in _images(root, kind, split):
        path.unlink()
    return Case(f"no image in {split}", told=(split, "data"))


def _same_stem(draw: Random, root: Path, kind: str) -> Case:
    path = draw.choice(_images(root, kind))
    Image.new("RGB", SIZE).save(path.with_suffix(".jpg"))
    return Case(f"{path.stem}.png and {path.stem}.jpg", told=(path.stem,))


def _masks(root: Path) -> list[Path]:
    return sorted((root / "annotations").rglob("*.png"))


def _each(paths: Sequence[Path], change: Callable[[Image.Image], Image.Image]) -> None:
    """Save each image changed."""
    for path in paths:
        change(Image.open(path)).save(path)


def _black_and_white(draw: Random, root: Path, kind: str) -> Case:
    _each(_masks(root), lambda mask: Image.fromarray(np.asarray(mask) * 255))
    return Case("masks of 0 and 255", told=("255",))


def _all_ignored(draw: Random, root: Path, kind: str) -> Case:
    split = draw.choice(("training", "validation"))
    _each([path for path in _masks(root) if split in path.parts], lambda _: Image.new("L", SIZE, 255))
    return Case(f"no labelled pixel in {split}", told=("label", "255"))


def _one_value(draw: Random, root: Path, kind: str) -> Case:
    _each(_masks(root), lambda _: Image.new("L", SIZE, 0))
    return Case("masks with one class alone", told=("class",))


def _other_mode(draw: Random, root: Path, kind: str) -> Case:
    """Masks of another kind of image, which say the same or cannot be read as indices."""
    mode = draw.choice(list(MASK_MODES))
    _each(_masks(root), lambda mask: MASK_MODES[mode](np.asarray(mask)))
    is_same = mode in ("16 bits", "one bit", "a palette")
    return Case(f"masks of {mode}", told=("mask", "colour", "channel"), is_same=is_same)


def _other_mask(draw: Random, root: Path, kind: str) -> Case:
    path = draw.choice(_masks(root))
    way = draw.choice(("missing", "size", "value", "broken", "extra"))
    if way == "missing":
        path.unlink()
    elif way == "size":
        Image.new("L", (SIZE[0] + 1, SIZE[1]), 0).save(path)
    elif way == "value":
        Image.new("L", SIZE, 7).save(path)
    elif way == "broken":
        path.write_bytes(path.read_bytes()[:40])
    else:
        shutil.copy(path, path.with_name("extra.png"))
    name = "extra" if way == "extra" else path.stem
    return Case(f"a mask is odd ({way})", told=(name, "mask", "unreadable"))


Change = Callable[[Random, Path, str], Case]
BOTH: tuple[Change, ...] = (_junk_folder, _junk_file, _linked_file, _linked_folder, _loop, _turned, _opaque, _broken)
BOTH += (_broken, _all_broken, _sixteen_bits, _copies, _thin, _nothing_left, _no_files)
OF_IMAGES: tuple[Change, ...] = (_one_class, _class_of_one_split, _empty_class, _odd_class_names)
OF_MASKS: tuple[Change, ...] = (_black_and_white, _all_ignored, _one_value, _same_stem, _other_mask)
OF_MASKS += (_other_mask, *[_other_mode] * 5)
