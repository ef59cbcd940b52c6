"""The check before a run that masks have pixels of each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runner.data.dataset import IGNORE_INDEX, Findings
from runner.data.file_cache import FileCache
from runner.data.file_finder import first
from runner.data.image_check import SPLIT_WORDS, evenly_spaced
from runner.data.mask_labels import MaskLabels, count_values, listed
from runner.data.scene_files import Scene

MAX_MASKS = 500  # per split, which takes some seconds once; the counts are cached


@dataclass
class LabelCounts:
    """Pixels by value in the masks of a split, or in a sample of them."""

    split: str
    number: int  # of all masks
    read: int = 0
    pixels: Counter[int] = field(default_factory=Counter)

    @property
    def is_sample(self) -> bool:
        return self.number > MAX_MASKS

    @property
    def masks(self) -> str:
        """The counted masks, in words."""
        return f"{f'{self.read:,} of ' * self.is_sample}the {self.number:,} {self.split} masks"

    def present(self, labels: MaskLabels) -> set[int]:
        """The classes with pixels."""
        return {labels.class_of(value) for value in self.pixels} - {IGNORE_INDEX}


def check_labels(
    splits: Mapping[str, Sequence[Scene]],
    labels: MaskLabels,
    *,
    root: str,
    class_names: Sequence[str],
    unreadable: dict[str, str],
) -> Findings:
    """Report classes without pixels in a split; raise a ValueError if `labels` cannot be what the masks mean.

    Reads up to `MAX_MASKS` masks of each split, evenly spaced, and adds those that it cannot read to `unreadable`
    (image -> reason).
    """
    cache = FileCache("masks", root)
    counts = {name: _count(SPLIT_WORDS[name], scenes, labels, cache, unreadable) for name, scenes in splits.items()}
    _check_present(list(counts.values()), labels, root)
    names = class_names or [str(number) for number in range(labels.num_classes)]
    absent = {
        name: [names[number] for number in range(labels.num_classes) if number not in split.present(labels)]
        for name, split in counts.items()
    }
    findings = Findings(entries={"classes_without_pixels": absent})
    findings.entries["masks_counted"] = {name: split.read for name, split in counts.items()}
    for name, classes in absent.items():
        if classes:
            text = f"no pixel of {counts[name].masks} is of class {first(classes)}"
            findings.notes.append(("note" if counts[name].is_sample else "warning", text))
    return findings


def _check_present(counts: Sequence[LabelCounts], labels: MaskLabels, root: str) -> None:
    """Raise a ValueError for a split without a labelled pixel, for a training split with pixels of one class only, and
    if the value ignored by default may be that of a class without pixels.

    The second does not apply to a sample of the masks, and the third only if all its pixels are of one class.
    """
    for split in counts:
        if split.read and not split.present(labels):
            values = listed(sorted(split.pixels))
            raise ValueError(
                f"dataset.root={root}: no pixel of {split.masks} has a class; their values are {values}. "
                f"{_remedy(counts, labels, 'label some of them')}"
            )
    present = set().union(*(split.present(labels) for split in counts))
    absent = [str(number) for number in range(labels.num_classes) if number not in present]
    ignored = sum(split.pixels[labels.ignored] for split in counts)
    pixels = sum(split.pixels.total() for split in counts)
    is_sample = any(split.is_sample for split in counts)
    if labels.ignore_label == "auto" and ignored and absent and not (is_sample and len(present) > 1):
        raise ValueError(
            f"dataset.ignore_label=auto: no pixel of the masks is of class {first(absent)}, and "
            f"{ignored:,} of {pixels:,} pixels have the value {labels.ignored}, which is taken for no class. "
            f"{_remedy(counts, labels, f'say so: dataset.ignore_label={labels.ignored}')}"
        )
    train = counts[0]
    if len(train.present(labels)) == 1 and not train.is_sample:
        raise ValueError(
            f"dataset.num_classes={labels.num_classes}: all labelled pixels of {train.masks} are of class "
            f"{min(train.present(labels))}, and nothing is there to tell it from. "
            f"{_remedy(counts, labels, 'add masks with pixels of another class')}"
        )


def _remedy(counts: Sequence[LabelCounts], labels: MaskLabels, otherwise: str) -> str:
    """What to set if the ignored value is a class, and what to do if it is not."""
    if not any(split.pixels[labels.ignored] for split in counts):
        return f"Set dataset.mask_values to the values of the classes, or {otherwise}."
    values = list(labels.values)
    absent = [place for place, value in enumerate(values) if not any(split.pixels[value] for split in counts)]
    if len(absent) == 1:
        values[absent[0]] = labels.ignored
    suggested = listed(values) if len(absent) == 1 else "[VALUE,VALUE,...]"
    zero = " dataset.reduce_zero_label=false dataset.ignore_label=0" if labels.reduce_zero_label else ""
    return (
        f"If {labels.ignored} is the value of a class, name those of all: dataset.mask_values={suggested}{zero}; if "
        f"not, {otherwise}."
    )


def _count(
    split: str, scenes: Sequence[Scene], labels: MaskLabels, cache: FileCache, unreadable: dict[str, str]
) -> LabelCounts:
    counts = LabelCounts(split, len(scenes))
    chosen = evenly_spaced(scenes, MAX_MASKS)
    odd = []
    results = cache.get([scene.mask for scene in chosen], count_values)
    for scene, result in zip(chosen, results, strict=True):
        if isinstance(result, Exception):
            unreadable[scene.image] = str(result)
            continue
        values = {int(value): number for value, number in result.items()}
        odd += [(scene.mask, value) for value in values if labels.class_of(value) is None]
        counts.pixels.update(values)
        counts.read += 1
    if odd:
        path = odd[0][0]
        raise ValueError(str(labels.fault(path, max(value for mask, value in odd if mask == path), counts.pixels)))
    return counts
