"""The check before a run that images can be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from PIL import Image

from runner.data.dataset import Findings
from runner.data.file_cache import FileCache, in_threads
from runner.data.file_finder import first
from runner.data.file_loader import READ_ERRORS
from runner.data.image_reading import OddShape, check_header, read_image

T = TypeVar("T")

SPLIT_WORDS = {"train": "training", "validation": "validation", "test": "test"}
MAX_HEADERS = 10_000  # per split, which takes some tenths of a second


def check_images(
    splits: Mapping[str, Sequence[tuple[str, int]]],
    class_names: Sequence[str],
    *,
    root: str,
    max_unreadable: int,
    unreadable: dict[str, str],
) -> Findings:
    """Add unreadable images to `unreadable` (file -> reason), and report the classes without a readable image.

    Reads the headers of up to `MAX_HEADERS` files of each split, evenly spaced, and whole images of each class up to
    the first readable one. Raises ValueError for more than `max_unreadable` files, for a split without a readable
    image, and for an odd aspect ratio.
    """
    cache = FileCache("images", root)
    unseen = {}
    for name, samples in splits.items():
        by_class: dict[int, list[str]] = {}
        for path, number in samples:
            by_class.setdefault(number, []).append(path)
        first_of_each = [(paths[0], None) for paths in by_class.values()]
        checked = list(dict(first_of_each + evenly_spaced(samples, MAX_HEADERS)))
        errors = dict(zip(checked, in_threads(_header_error, checked), strict=True))
        if odd := {path: str(error) for path, error in errors.items() if isinstance(error, OddShape)}:
            raise ValueError(f"dataset.root={root}: images have a shape that none can be seen in: {with_reason(odd)}.")
        unreadable |= {path: str(error) for path, error in errors.items() if error is not None}
        unreadable |= _pixel_errors(list(by_class.values()), cache, max_unreadable)
        unseen[name] = unseen_classes(samples, class_names, unreadable)
        if len(unseen[name]) == len(class_names):
            raise ValueError(
                f"dataset.root={root}: no {SPLIT_WORDS[name]} image can be read: {with_reason(unreadable)}. Convert or "
                "replace them."
            )
    check_number(unreadable, max_unreadable)
    notes = [("warning", unseen_text(name, classes)) for name, classes in unseen.items() if classes]
    if unreadable:
        notes.append(
            ("warning", f"{len(unreadable):,} files cannot be read and are left out: {with_reason(unreadable)}")
        )
    return Findings(notes)


def check_number(unreadable: Mapping[str, str], max_unreadable: int) -> None:
    """Raise a ValueError for more than `max_unreadable` unreadable files."""
    if len(unreadable) > max_unreadable:
        raise ValueError(
            f"dataset.max_unreadable={max_unreadable}: {len(unreadable):,} files cannot be read: "
            f"{with_reason(unreadable)}. Convert, repair or remove them, or raise the limit."
        )


def unseen_classes(
    samples: Iterable[tuple[str, int]], class_names: Sequence[str], unreadable: Mapping[str, str]
) -> list[str]:
    """The classes without a readable image."""
    readable = {number for path, number in samples if str(path) not in unreadable}
    return [name for number, name in enumerate(class_names) if number not in readable]


def unseen_text(split: str, classes: Sequence[str]) -> str:
    """A sentence about the `unseen_classes` of a split."""
    return f"classes without a {SPLIT_WORDS[split]} image that can be read: {first(classes)}"


def with_reason(files: Mapping[str, str]) -> str:
    """The first file with its reason, and how many more there are."""
    path, reason = next(iter(files.items()))
    return f"{path} ({reason}){f' and {len(files) - 1:,} more' if len(files) > 1 else ''}"


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """Up to `most` of the items, evenly spaced.

    >>> from runner.data.image_check import evenly_spaced
    >>> evenly_spaced("abcdefg", 3)
    ['a', 'c', 'e']
    """
    number = min(len(items), most)
    return [items[place * len(items) // number] for place in range(number)]


def _header_error(path: str) -> Exception | None:
    try:
        with Image.open(path) as image:
            check_header(image)
    except READ_ERRORS as error:
        return error
    return None


def _pixel_errors(classes: Sequence[Sequence[str]], cache: FileCache, most: int) -> dict[str, str]:
    """The errors of each class's images before the first readable one, at most `most` + 1 of a class."""
    errors: dict[str, str] = {}
    firsts = cache.get([paths[0] for paths in classes], _read_size)
    for paths, result in zip(classes, firsts, strict=True):
        for number, path in enumerate(paths[: most + 1]):
            if number > 0:
                [result] = cache.get([path], _read_size)
            if not isinstance(result, Exception):
                break
            errors[path] = str(result)
    return errors


def _read_size(path: str) -> list[int]:
    return list(read_image(path).size)
