"""Images and classes that Hugging Face's library `datasets` reads, from parquet files, folders of images or its hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from runner.config.text import did_you_mean, first_line
from runner.data.dataset import Data, as_size
from runner.data.file_data import TIMEOUT_SECONDS
from runner.data.image_transforms import ImageTransforms, image_transforms
from runner.data.indexed_data import LoadIndexedImage, consecutive_classes, make_indexed_data
from runner.data.stream_data import LoadEncodedImage, Stream, StreamData, set_apart_stream


def huggingface(
    *,
    path: str = "data/images",
    config_name: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    train_split: str = "train",
    test_split: str | None = "test",
    streaming: bool = False,
    shuffle_buffer: int = 10_000,
    image_size: int | Sequence[int] = 224,
    channels: int = 3,
    validation: float | str = 0.1,
    num_workers: int | None = None,
    max_unreadable: int = 10,
    timeout_seconds: float = TIMEOUT_SECONDS,
    **transforming: Any,
) -> Data:
    """The set that `datasets.load_dataset(path, config_name)` reads, its images transformed as `image_transforms` says.

    `path` is a folder of parquet files, or of images with a folder a class, or a name on the hub. Without `test_split`
    a fifth of each class is set apart for the test. `streaming` reads the files anew in each epoch instead of making
    a copy that is mapped into memory first; see `stream_data`. Raises ValueError where the library is missing, for
    what it cannot read, and for splits and columns that are not there.
    """
    transforms = image_transforms(image_size=image_size, channels=channels, **transforming)
    names = {"train": train_split} | ({"test": test_split} if test_split is not None else {})
    splits = _open(path, config_name, names, streaming)
    for split in splits.values():
        _check_columns(split.features, image_column, label_column)
    reading = {"num_workers": num_workers, "max_unreadable": max_unreadable, "timeout_seconds": timeout_seconds}
    about = {"transforms": transforms, "image_size": image_size, "validation": validation, **reading}
    columns = (image_column, label_column)
    if streaming:
        return _streamed(path, splits, columns, channels, shuffle_buffer=shuffle_buffer, **about)
    return _mapped(path, splits, columns, channels, **about)


def _mapped(path: str, splits: Mapping[str, Any], columns: tuple[str, str], channels: int, **about: Any) -> Data:
    """A set whose samples are got by their number."""
    image_column, label_column = columns
    names = getattr(splits["train"].features[label_column], "names", ())
    labels = {split: rows.select_columns([label_column])[:][label_column] for split, rows in splits.items()}
    for split, values in labels.items():
        if any(value is None or value == -1 for value in values):
            raise ValueError(f"dataset.{split}_split: some of its images have no class. Choose another split.")
    if any(isinstance(value, str) for values in labels.values() for value in values):
        names = sorted({value for values in labels.values() for value in values})
        labels = {split: [names.index(value) for value in values] for split, values in labels.items()}
    targets, names = consecutive_classes({split: torch.tensor(values) for split, values in labels.items()}, names)
    sources = {split: ImageColumn(_with_images(rows, image_column), image_column) for split, rows in splits.items()}
    transforms: ImageTransforms = about["transforms"]
    return make_indexed_data(
        path,
        targets,
        num_classes=len(names),
        class_names=names,
        load_train=LoadIndexedImage(sources, transforms.train, transforms.read),
        load_evaluation=LoadIndexedImage(sources, transforms.evaluation, transforms.read),
        **about,
    )


def _streamed(
    path: str,
    splits: Mapping[str, Any],
    columns: tuple[str, str],
    channels: int,
    *,
    transforms: ImageTransforms,
    image_size: int | Sequence[int],
    validation: float | str,
    **reading: Any,
) -> StreamData:
    """A set that is read as a stream."""
    image_column, label_column = columns
    names = getattr(splits["train"].features[label_column], "names", ())
    if not names or "test" not in splits:
        missing = "test_split=null" if names else f"label_column={label_column}"
        reason = "a stream has nothing to set apart for the test" if names else "a stream's classes must have names"
        raise ValueError(f"dataset.{missing}: {reason}. Set dataset.streaming=false, or choose another.")
    streams = {
        split: Stream(_with_images(rows, image_column), _length(rows, label_column)) for split, rows in splits.items()
    }
    train, held_out, source = streams["train"], streams["test"], "test"
    if validation != "test":
        (train, held_out), source = set_apart_stream(train, float(validation)), "train"
    return StreamData(
        name=path,
        num_classes=len(names),
        class_names=tuple(names),
        image_size=as_size(image_size),
        train=train,
        validation=held_out,
        test=streams["test"],
        validation_source=source,
        mean=torch.tensor(transforms.mean),
        std=torch.tensor(transforms.std),
        columns=columns,
        load_train=LoadEncodedImage(transforms.train, transforms.read),
        load_evaluation=LoadEncodedImage(transforms.evaluation, transforms.read),
        **reading,
    )


@dataclass(frozen=True)
class ImageColumn:
    """The images of a column by number, without targets."""

    rows: Any
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[bytes | str, None]:
        encoded = self.rows[index][self.name]
        return encoded["bytes"] or encoded["path"], None


def _open(path: str, config_name: str | None, names: Mapping[str, str], streaming: bool) -> dict[str, Any]:
    """The splits train and test, if `names` has one, by these names of theirs."""
    library = _library()
    try:
        found = library.load_dataset(path, config_name, streaming=streaming)
    except Exception as error:  # of the libraries beneath, one for each kind of file and of connection
        reason = first_line(error)
        no_folder = "" if Path(path).is_dir() else "it is no folder here, and "
        raise ValueError(
            f"dataset.path={path}: {no_folder}it cannot be read ({reason}). Give a folder of parquet files, or of "
            "images with a folder for each class, or a name on the Hugging Face hub, for which a network is needed "
            "unless it lies in its cache."
        ) from None
    for key, name in names.items():
        if name not in found:
            others = f" null has a fifth of {names['train']} set apart." if key == "test" else ""
            raise ValueError(
                f"dataset.{key}_split={name}: {path} has the splits {', '.join(found)}. Choose one of them.{others}"
            )
    return {key: found[name] for key, name in names.items()}


def _library() -> ModuleType:
    """Raises ValueError with the way to install it."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "dataset=huggingface: the library datasets is not installed. Install it: pip install '.[huggingface]'."
        ) from None
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each attempt to reach the hub
    return datasets


def _check_columns(features: Mapping[str, Any], image_column: str, label_column: str) -> None:
    """Raise a ValueError for a column that is missing or holds no classes."""
    for key, name in (("image_column", image_column), ("label_column", label_column)):
        if name not in features:
            raise ValueError(
                f"dataset.{key}={name}: there is no such column; there are {', '.join(features)}. "
                f"{did_you_mean(name, features)}".rstrip()
            )
    if not getattr(features[label_column], "dtype", "").startswith(("int", "uint", "string", "large_string")):
        raise ValueError(f"dataset.label_column={label_column}: it must hold a class, a whole number or a word.")


def _with_images(rows: Any, column: str) -> Any:
    """The rows with a column of images as their files have them, {"bytes", "path"}."""
    return rows.cast_column(column, _library().Image(decode=False))


def _length(rows: Any, column: str) -> int:
    """The number of rows, as the set says it, or counted."""
    known = (rows.info.splits or {}).get(rows.split)
    return known.num_examples if known else sum(1 for _ in rows.select_columns([column]))
