"""Whether the images of a data set can be read, looked at before a run begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from PIL import Image

from runner.data.dataset import Findings
from runner.data.file_facts import FileFacts, in_threads
from runner.data.file_finder import first
from runner.data.file_loader import UNREADABLE
from runner.data.image_file import OddShape, check_header, read_rgb

T = TypeVar("T")

SPLIT_WORDS = {"train": "training", "validation": "validation", "test": "test"}
MOST_HEADERS = 10_000  # of the files of a split: they take some tenths of a second


def look_at_images(
    splits: Mapping[str, Sequence[tuple[str, int]]],
    class_names: Sequence[str],
    *,
    root: str,
    max_unreadable: int,
    unreadable: dict[str, str],
) -> Findings:
    """Put into `unreadable` (file -> reason) which images cannot be read; say which classes have none that can be.

    Of each split the headers of up to `MOST_HEADERS` files are read, evenly spaced, and whole images of each class
    until one of them can be. Raises ValueError beyond `max_unreadable`, where no image of a split can be read, and
    where one has an odd shape.
    """
    facts = FileFacts("images", root)
    unseen = {}
    for name, samples in splits.items():
        by_class: dict[int, list[str]] = {}
        for path, number in samples:
            by_class.setdefault(number, []).append(path)
        first_ones = [(paths[0], None) for paths in by_class.values()]
        looked_at = list(dict(first_ones + evenly_spaced(samples, MOST_HEADERS)))
        errors = dict(zip(looked_at, in_threads(_header_error, looked_at), strict=True))
        if odd := {path: str(error) for path, error in errors.items() if isinstance(error, OddShape)}:
            raise ValueError(f"dataset.root={root}: images have a shape that none can be seen in: {named(odd)}.")
        unreadable |= {path: str(error) for path, error in errors.items() if error is not None}
        unreadable |= _whole_errors(list(by_class.values()), facts, max_unreadable)
        unseen[name] = unseen_classes(samples, class_names, unreadable)
        if len(unseen[name]) == len(class_names):
            raise ValueError(
                f"dataset.root={root}: no {SPLIT_WORDS[name]} image can be read: {named(unreadable)}. Convert or "
                "replace them."
            )
    check_number(unreadable, max_unreadable)
    notes = [("warning", unseen_text(name, classes)) for name, classes in unseen.items() if classes]
    if unreadable:
        notes.append(("warning", f"{len(unreadable):,} files cannot be read and are left out: {named(unreadable)}"))
    return Findings(notes)


def check_number(unreadable: Mapping[str, str], max_unreadable: int) -> None:
    """Raise a ValueError if more files cannot be read than may be."""
    if len(unreadable) > max_unreadable:
        raise ValueError(
            f"dataset.max_unreadable={max_unreadable}: {len(unreadable):,} files cannot be read: {named(unreadable)}. "
            "Convert, repair or remove them, or raise the limit."
        )


def unseen_classes(
    samples: Iterable[tuple[str, int]], class_names: Sequence[str], unreadable: Mapping[str, str]
) -> list[str]:
    """The classes without an image, or without one that can be read."""
    seen = {number for path, number in samples if path not in unreadable}
    return [name for number, name in enumerate(class_names) if number not in seen]


def unseen_text(split: str, classes: Sequence[str]) -> str:
    """`unseen_classes` of a split in words."""
    return f"classes without a {SPLIT_WORDS[split]} image that can be read: {first(classes)}"


def named(files: Mapping[str, str]) -> str:
    """The first of some files with its reason, and how many more there are."""
    path, reason = next(iter(files.items()))
    return f"{path} ({reason}){f' and {len(files) - 1:,} more' if len(files) > 1 else ''}"


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """Up to `most` of the items, in order.

    >>> from runner.data.first_look import evenly_spaced
    >>> evenly_spaced("abcdefg", 3)
    ['a', 'c', 'e']
    """
    number = min(len(items), most)
    return [items[place * len(items) // number] for place in range(number)]


def _header_error(path: str) -> Exception | None:
    try:
        with Image.open(path) as image:
            check_header(image)
    except UNREADABLE as error:
        return error
    return None


def _whole_errors(classes: Sequence[Sequence[str]], facts: FileFacts, most: int) -> dict[str, str]:
    """What is wrong with the first images of each class, up to one that can be read; `most` of a class and one more."""
    errors: dict[str, str] = {}
    for paths, fact in zip(classes, facts.of([paths[0] for paths in classes], _size_of_whole), strict=True):
        number = 0
        while isinstance(fact, Exception):
            errors[paths[number]] = str(fact)
            number += 1
            if number == min(len(paths), most + 1):
                break
            [fact] = facts.of([paths[number]], _size_of_whole)
    return errors


def _size_of_whole(path: str) -> list[int]:
    return list(read_rgb(path).size)
