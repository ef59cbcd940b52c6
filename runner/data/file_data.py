"""Data sets in files: how a split is made, checked before a run, and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from runner.data.dataset import CLASSIFICATION, SPLITS, Data, Findings, as_size, check_batch_size, own_splits
from runner.data.duplicates import duplicate_files
from runner.data.file_batches import FileEvaluationBatches, FileTrainBatches
from runner.data.file_finder import FileFinder
from runner.data.file_loader import Load, Sample
from runner.data.image_check import check_images, unseen_classes
from runner.data.sampling import split_validation

TIMEOUT_SECONDS = 300.0  # without a batch
Splits = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, kw_only=True)
class FileData(Data):
    """A data set in files. Each split is a sequence of samples.

    `load_train(sample)` returns a uint8 image (C, H, W) and its class, or a uint8 mask (H, W); torch's global generator
    is seeded before. `load_evaluation(sample)` returns an image (C, h, w) and its class, or a mask (H, W) at its own
    resolution. Both must be picklable. `num_workers=None`: one per available CPU core, at most 8.
    """

    train: Sequence[Sample]
    validation: Sequence[Sample]
    test: Sequence[Sample]
    load_train: Load
    load_evaluation: Load
    num_workers: int | None = None
    max_unreadable: int = 0
    timeout_seconds: float = TIMEOUT_SECONDS

    def unseen_classes(self) -> dict[str, list[str]]:
        if self.task != CLASSIFICATION:
            return {}
        return {name: unseen_classes(getattr(self, name), self.class_names, self.unreadable) for name in SPLITS}

    def train_batches(self, *, batch_size: int, seed: int, **placing: Any) -> FileTrainBatches:
        check_batch_size(batch_size, self)
        return FileTrainBatches(self, seed=seed, batch_size=batch_size, **placing)

    def evaluation_batches(self, split: str, *, batch_size: int, **placing: Any) -> FileEvaluationBatches:
        return FileEvaluationBatches(self, split, batch_size=batch_size, **placing)


def make_file_data(
    train: Sequence[Sample],
    test: Sequence[Sample],
    finder: FileFinder,
    *,
    root: str,
    image_size: int | Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    validation: float | str = 0.1,
    max_unreadable: int = 10,
    check_duplicates: bool | None = None,
    task: str = CLASSIFICATION,
    class_names: tuple[str, ...] = (),
    check_masks: Callable[[Splits, dict[str, str]], Findings] | None = None,
    **about: Any,
) -> FileData:
    """Make a data set of the published training and test samples, and check its files.

    The first entry of a sample is the path of its image; for classification the second one is its class. `validation`
    is the share of the training samples that becomes the validation split, always the same samples, stratified by
    class; or "test": the test split stands in for it. `check_masks(splits, unreadable)` checks the masks of scenes;
    `about` are further fields of `FileData`. Raises what `check_images` and `check_masks` do.
    """

    def image_of(sample: Sample) -> tuple[str, int]:
        return sample[0], sample[1] if task == CLASSIFICATION else 0

    classes = torch.tensor([image_of(sample)[1] for sample in train], dtype=torch.int64)
    train, held_out, source = split_validation(train, classes, test, validation)
    splits = own_splits(train, held_out, test, source)
    unreadable = dict(finder.unreadable)
    findings = finder.findings()
    if check_masks is not None:
        findings.add(check_masks(splits, unreadable))
    images = {name: [image_of(sample) for sample in samples] for name, samples in splits.items()}
    names = class_names if task == CLASSIFICATION else ("all",)
    findings.add(check_images(images, names, root=root, max_unreadable=max_unreadable, unreadable=unreadable))
    paths = {name: [path for path, _ in samples if path not in unreadable] for name, samples in images.items()}
    findings.add(duplicate_files(paths, check_duplicates, root=root))
    return FileData(
        image_size=as_size(image_size),
        train=train,
        validation=held_out,
        test=test,
        validation_source=source,
        mean=torch.tensor(mean),
        std=torch.tensor(std),
        task=task,
        class_names=class_names,
        max_unreadable=max_unreadable,
        unreadable=unreadable,
        findings=findings,
        **about,
    )
