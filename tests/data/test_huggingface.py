"""Sets that the library datasets reads: parquet files and folders of images made here, by number and as streams."""

import io
import json
import sys

import pytest
import torch
from PIL import Image

from runner.config.text import SettingError
from runner.data.dataset import DataFault
from runner.data.huggingface import huggingface
from runner.data.sampling import Shard
from runner.experiment.builders import build_data

library = pytest.importorskip("datasets")
CPU = torch.device("cpu")
NAMES = ["ant", "bee", "cat"]
SMALL = {"image_size": 16, "test_size": 16, "test_resize": 16, "scale_min": 1.0, "flip": False, "num_workers": 0}
SMALL |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
NUM_TRAIN, NUM_TEST, NUM_FILES = 60, 12, 4


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own for each test, in the place of the user's; no hub."""
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    library.disable_progress_bars()


def picture(number):
    """A constant image of 20x20, whose red says which it is."""
    return Image.new("RGB", (20, 20), (number, 100, 200))


def write_parquet(folder, *, label=None, encode=None):
    """Four files for training and one for the test; an image is number `i`, of class i % 3."""
    folder.mkdir(exist_ok=True)
    for split, first, number, files in (("train", 0, NUM_TRAIN, NUM_FILES), ("test", 200, NUM_TEST, 1)):
        numbers = range(first, first + number)
        features = library.Features(
            {"image": library.Image(), "label": label or library.ClassLabel(names=NAMES)}
            if encode is None
            else {"image": library.Value("binary"), "label": library.ClassLabel(names=NAMES)}
        )
        labels = [NAMES[i % 3] if label == library.Value("string") else i % 3 for i in numbers]
        images = [picture(i) if encode is None else encode(picture(i)) for i in numbers]
        rows = library.Dataset.from_dict({"image": images, "label": labels}, features=features)
        for index in range(files):
            rows.shard(files, index).to_parquet(str(folder / f"{split}-{index:05}-of-{files:05}.parquet"))
    return str(folder)


def write_images(folder):
    """The same as image files, in a folder for each class."""
    for split, first, number in (("train", 0, NUM_TRAIN), ("test", 200, NUM_TEST)):
        for i in range(first, first + number):
            place = folder / split / NAMES[i % 3]
            place.mkdir(parents=True, exist_ok=True)
            picture(i).save(place / f"{i:03}.png")
    return str(folder)


def as_png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def numbers_of(batches):
    """The numbers of the images in batches, with their classes."""
    return [(round(255 * image[0, 0, 0].item()), target.item()) for images, targets in batches
            for image, target in zip(images, targets, strict=True)]  # fmt: skip


def evaluated(data, split, **placing):
    return numbers_of(data.evaluation_batches(split, batch_size=5, device=CPU, **placing))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", [write_parquet, write_images])
def test_every_image_is_in_one_split_with_its_class(write, streaming, tmp_path):
    data = huggingface(path=write(tmp_path / "set"), streaming=streaming, validation=0.2, **SMALL)
    assert (data.num_classes, data.class_names) == (3, tuple(NAMES))
    read = {split: evaluated(data, split) for split in ("train", "validation", "test")}
    assert sorted(read["train"] + read["validation"]) == [(i, i % 3) for i in range(NUM_TRAIN)]
    assert sorted(read["test"]) == [(i, i % 3) for i in range(200, 200 + NUM_TEST)]
    assert 4 <= len(read["validation"]) <= 22
    assert len(data.train) + len(data.validation) == NUM_TRAIN


@pytest.mark.parametrize("streaming", [False, True])
def test_an_epoch_goes_on_where_it_was_left_and_differs_from_the_next(streaming, tmp_path):
    data = huggingface(
        path=write_parquet(tmp_path / "set"), streaming=streaming, validation="test", shuffle_buffer=20,
        **SMALL | {"scale_min": 0.3, "flip": True},
    )  # fmt: skip
    assert data.validation_source == "test"

    def batches(epoch, start=0):
        return list(data.train_batches(batch_size=8, seed=3, device=CPU).epoch(epoch, start))

    whole, rest, other = batches(1), batches(1, start=4), batches(2)
    assert len(whole) == len(other) == NUM_TRAIN // 8
    assert len(rest) == len(whole) - 4
    for (images, targets), (expected, same) in zip(rest, whole[4:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(targets, same)
    assert numbers_of(whole) != numbers_of(other)
    assert len({number for number, _ in numbers_of(whole)}) == 8 * len(whole)


def test_a_stream_is_shared_out_over_processes_and_workers(tmp_path):
    data = huggingface(path=write_parquet(tmp_path / "set"), streaming=True, validation="test", **SMALL)
    for num_workers in (0, 2):
        parts = [
            evaluated(data.__class__(**{**data.__dict__, "num_workers": num_workers}), split, shard=Shard(rank, 2))
            for split in ("train", "test")
            for rank in range(2)
        ]
        assert sorted(parts[0] + parts[1]) == [(i, i % 3) for i in range(NUM_TRAIN)]
        assert sorted(parts[2] + parts[3]) == [(i, i % 3) for i in range(200, 200 + NUM_TEST)]
    shown = [
        numbers_of(data.train_batches(batch_size=12, seed=0, device=CPU, shard=Shard(rank, 2)).epoch(0))
        for rank in range(2)
    ]
    assert [len(part) for part in shown] == [30, 30]
    assert len({*shown[0], *shown[1]}) == NUM_TRAIN


def test_workers_give_the_same_batches_each_time_and_when_resumed(tmp_path):
    data = huggingface(
        path=write_parquet(tmp_path / "set"), streaming=True, validation="test", **SMALL | {"num_workers": 2}
    )

    def batches(start=0):
        return numbers_of(data.train_batches(batch_size=6, seed=1, device=CPU).epoch(0, start))

    whole = batches()
    assert len(whole) == NUM_TRAIN
    assert batches() == whole
    assert batches(start=3) == whole[18:]


@pytest.mark.parametrize("streaming", [False, True])
def test_bytes_are_images_and_words_are_classes(streaming, tmp_path):
    data = huggingface(path=write_parquet(tmp_path / "bytes", encode=as_png), streaming=streaming, **SMALL)
    assert sorted(evaluated(data, "test")) == [(i, i % 3) for i in range(200, 200 + NUM_TEST)]
    if not streaming:
        path = write_parquet(tmp_path / "words", label=library.Value("string"))
        assert huggingface(path=path, **SMALL).class_names == tuple(NAMES)


def test_a_set_of_one_split_has_a_fifth_for_the_test(tmp_path):
    data = huggingface(path=write_parquet(tmp_path / "set"), test_split=None, **SMALL)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [42, 6, 12]


@pytest.mark.parametrize("streaming", [False, True])
def test_images_that_cannot_be_read_are_replaced_and_limited(streaming, tmp_path):
    def damaged(image):
        content = as_png(image)
        return b"text" if image.getpixel((0, 0))[0] in (3, 205) else content

    path = write_parquet(tmp_path / "set", encode=damaged)
    data = huggingface(path=path, streaming=streaming, validation="test", **SMALL)
    assert (205, 205 % 3) not in evaluated(data, "test")
    assert len(evaluated(data, "test")) == NUM_TEST - 1
    shown = numbers_of(data.train_batches(batch_size=10, seed=0, device=CPU).epoch(0))
    assert len(shown) == NUM_TRAIN
    assert 3 not in {number for number, _ in shown}
    data = huggingface(path=path, streaming=streaming, validation="test", max_unreadable=0, **SMALL)
    with pytest.raises(DataFault, match=r"dataset\.max_unreadable=0: 1 files could not be read"):
        evaluated(data, "test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"path": "/nowhere/at/all"},
            r"dataset\.path=/nowhere/at/all: it is no folder here.* read \(.*\)\. Give a folder",
        ),
        (
            {"path": "someone/something"},
            r"dataset\.path=someone/something: it is no .* read .* the Hugging Face hub",
        ),
        ({"image_column": "img"}, r"dataset\.image_column=img: there is no such column; there are image, label\."),
        ({"label_column": "image"}, r"dataset\.label_column=image: it must hold a class"),
        ({"test_split": "val"}, r"dataset\.test_split=val: .* has the splits train, test\. .* null has a fifth"),
        ({"test_split": None, "streaming": True}, r"dataset\.test_split=null: a stream has nothing to set apart"),
    ],
)
def test_what_does_not_fit_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        huggingface(**{"path": write_parquet(tmp_path / "set"), **options})


def test_a_missing_library_is_told_with_its_extra(composed, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SettingError, match=r"datasets is not installed\. Install it: pip install '\.\[huggingface\]'"):
        build_data(composed("dataset=huggingface", "dataset.path=none").dataset)


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_it_trains_and_resumes_from_the_command_line(streaming, runner, tmp_path):
    path = write_parquet(tmp_path / "set")
    outcome = runner(
        "dataset=huggingface", f"dataset.path={path}", f"dataset.streaming={streaming}", "dataset.image_size=16",
        "dataset.test_size=16", "dataset.test_resize=16", "dataset.num_workers=0", "model=resnet20", "name=run",
        "train.epochs=2", "train.max_steps=3", "train.global_batch_size=20", "train.device=cpu", "wandb.mode=disabled",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "outputs/runs/run"
    outcome = runner(f"resume={folder}", "train.max_steps=null")
    assert outcome.code == 0, outcome.err
    assert json.loads((folder / "summary.json").read_text())["data"]["test"] == NUM_TEST
