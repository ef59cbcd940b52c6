"""Images that are trained on and tested on: byte for byte the same, under two names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

from torch import Tensor

from runner.data.dataset import Findings
from runner.data.file_facts import FileFacts
from runner.data.first_look import SPLIT_WORDS

# beyond these check_duplicates=null does not look: 10,000 files of 2 kB take half a second, a gigabyte some seconds
MOST_FILES = 100_000
MOST_BYTES = 2**30  # to be read
CHUNK = 2**20


def duplicate_files(splits: Mapping[str, Sequence[str]], check: bool | None, *, root: str) -> Findings:
    """How many training files are byte-identical to files of the other splits.

    Only files whose size occurs on both sides are read. `check=None` looks where that takes seconds.
    """
    number = sum(map(len, splits.values()))
    if check is False or (check is None and number > MOST_FILES):
        return _unchecked(check, f"among {number:,} files")
    sizes = {name: _sizes(paths) for name, paths in splits.items()}
    of_train = set(sizes["train"].values())
    of_others = {size for name in sizes if name != "train" for size in sizes[name].values()}
    read = {
        name: [path for path, size in known.items() if size in (of_others if name == "train" else of_train)]
        for name, known in sizes.items()
    }
    num_bytes = sum(sizes[name][path] for name, paths in read.items() for path in paths)
    if check is None and num_bytes > MOST_BYTES:
        return _unchecked(check, f"in {num_bytes / 2**30:,.1f} GiB of files")
    facts = FileFacts("digests", root)
    digests = {name: dict(zip(paths, facts.of(paths, _digest), strict=True)) for name, paths in read.items()}
    return _compared(digests, {name: len(paths) for name, paths in splits.items()})


def duplicate_images(splits: Mapping[str, Tensor], check: bool | None) -> Findings:
    """How many training images (N, C, H, W) are identical to images of the other splits."""
    if check is False:
        return _unchecked(check, "")
    digests = {
        name: {f"number {place}": _hash(image.numpy().tobytes()) for place, image in enumerate(images)}
        for name, images in splits.items()
    }
    return _compared(digests, {name: len(images) for name, images in splits.items()})


def _compared(digests: Mapping[str, Mapping[str, object]], numbers: Mapping[str, int]) -> Findings:
    """`digests` are those of images by name, or why one has none, for each split; `numbers` how many it has."""
    findings = Findings(entries={"duplicates": {}})
    for name in (name for name in digests if name != "train"):
        same = {digest: image for image, digest in digests[name].items() if isinstance(digest, str)}
        found = {image: same[digest] for image, digest in digests["train"].items() if digest in same}
        findings.entries["duplicates"][name] = len(found)
        if found:
            image, other = next(iter(found.items()))
            word = SPLIT_WORDS[name]
            text = (
                f"{len(found):,} of {numbers['train']:,} training images are byte-identical to {word} images; the "
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
            continue  # it is told as unreadable
    return sizes


def _digest(path: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
