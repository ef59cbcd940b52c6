"""The check before a run for images that are both in the training split and in another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

from torch import Tensor

from runner.data.dataset import Findings
from runner.data.file_cache import FileCache
from runner.data.image_check import SPLIT_WORDS

# check_duplicates=null skips larger data sets: 10,000 files of 2 kB take half a second, a gigabyte some seconds
MAX_FILES = 100_000
MAX_BYTES = 2**30  # to be read


def duplicate_files(splits: Mapping[str, Sequence[str]], check: bool | None, *, root: str) -> Findings:
    """Count training files that are byte-identical to files of the other splits.

    Reads only files whose size occurs on both sides. `check=None` checks only if that takes seconds.
    """
    number = sum(map(len, splits.values()))
    if check is False or (check is None and number > MAX_FILES):
        return _unchecked(check, f"among {number:,} files")
    sizes = {name: _sizes(paths) for name, paths in splits.items()}
    of_train = set(sizes["train"].values())
    of_others = {size for name in sizes if name != "train" for size in sizes[name].values()}
    read = {
        name: [path for path, size in known.items() if size in (of_others if name == "train" else of_train)]
        for name, known in sizes.items()
    }
    num_bytes = sum(sizes[name][path] for name, paths in read.items() for path in paths)
    if check is None and num_bytes > MAX_BYTES:
        return _unchecked(check, f"in {num_bytes / 2**30:,.1f} GiB of files")
    cache = FileCache("digests", root)
    digests = {name: dict(zip(paths, cache.get(paths, _digest), strict=True)) for name, paths in read.items()}
    return _compared(digests, {name: len(paths) for name, paths in splits.items()})


def duplicate_images(splits: Mapping[str, Tensor], check: bool | None) -> Findings:
    """Count training images (N, C, H, W) that are identical to images of the other splits."""
    if check is False:
        return _unchecked(check, "")
    digests = {
        name: {f"number {place}": _new_hash(image.numpy().tobytes()).hexdigest() for place, image in enumerate(images)}
        for name, images in splits.items()
    }
    return _compared(digests, {name: len(images) for name, images in splits.items()})


def _compared(digests: Mapping[str, Mapping[str, object]], numbers: Mapping[str, int]) -> Findings:
    """`digests` of each split by image, an exception for an unreadable one; `numbers` of images of each split."""
    findings = Findings(entries={"duplicates": {}})
    for name in (name for name in digests if name != "train"):
        by_digest = {digest: image for image, digest in digests[name].items() if isinstance(digest, str)}
        same = {image: by_digest[digest] for image, digest in digests["train"].items() if digest in by_digest}
        findings.entries["duplicates"][name] = len(same)
        if same:
            image, other = next(iter(same.items()))
            word = SPLIT_WORDS[name]
            text = (
                f"{len(same):,} of {numbers['train']:,} training images are byte-identical to {word} images; the "
                f"first is {image}, {other} of the {word} split"
            )
            findings.notes.append(("warning", text))
    return findings


def _unchecked(check: bool | None, where: str) -> Findings:
    text = f"duplicates were not looked for {where}; dataset.check_duplicates=true does, and keeps what it finds out"
    return Findings([("note", text)] if check is None else [], {"duplicates": None})


def _sizes(paths: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for path in paths:
        try:
            sizes[path] = os.stat(path).st_size
        except OSError:
            continue  # reported as unreadable
    return sizes


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _new_hash).hexdigest()


def _new_hash(content: bytes = b"") -> hashlib._Hash:
    return hashlib.blake2b(content, digest_size=16)
