"""Images that cannot be read are told before a run, with what to do; whole ones need no word."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runner.data import file_cache, image_check
from runner.data.image_check import evenly_spaced
from runner.data.image_folder import image_folder
from runner.data.sampling import set_apart

CLASSES = ("ant", "bee", "cat")
SETTINGS = {"image_size": 16, "test_size": 16, "test_resize": 16, "num_workers": 0, "validation": 0.25}


@pytest.fixture
def root(tmp_path):
    """Three classes with 8 images each in train and 2 each in val."""
    draw = np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 2)):
        for name in CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = draw.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def data_of(root, **settings):
    return image_folder(root=str(root), **SETTINGS | settings)


def deepen(*folders):
    """Write the images of folders again with 16 bits a pixel."""
    for file in (file for folder in folders for file in folder.rglob("*.png")):
        Image.fromarray(np.full((12, 10), 40_000, np.uint16)).save(file)


def cut(*folders):
    for file in (file for folder in folders for file in folder.rglob("*.png")):
        file.write_bytes(file.read_bytes()[:200])


def test_whole_images_have_nothing_to_tell(root):
    data = data_of(root)
    assert data.findings.notes == []
    assert data.unreadable == {}
    assert data.unseen_classes() == {"train": [], "validation": [], "test": []}


@pytest.mark.parametrize("spoil", [deepen, cut])
def test_a_class_that_is_never_seen_is_told(root, spoil):
    spoil(root / "train" / "bee", root / "val" / "cat")
    data = data_of(root)
    assert data.unseen_classes() == {"train": ["bee"], "validation": ["bee"], "test": ["cat"]}
    texts = [text for kind, text in data.findings.notes if kind == "warning"]
    assert texts[:3] == [
        "classes without a training image that can be read: bee",
        "classes without a validation image that can be read: bee",
        "classes without a test image that can be read: cat",
    ]
    assert texts[3].startswith("10 files cannot be read and are left out: ")
    assert len(data.unreadable) == 10


def test_a_set_of_16_bits_is_refused_with_the_way_to_convert(root):
    deepen(root / "train", root / "val")
    message = r"^dataset\.root=\S+: no training image can be read: .* \(more than 8 bits a channel .*; convert"
    with pytest.raises(ValueError, match=message):
        data_of(root)


def test_more_unreadable_files_than_allowed_are_refused_before_the_run(root):
    deepen(root / "train" / "bee", root / "train" / "ant")
    with pytest.raises(ValueError, match=r"^dataset\.max_unreadable=10: 16 files cannot be read: .*16\); convert"):
        data_of(root)
    assert len(data_of(root, max_unreadable=16).unreadable) == 16


def test_an_image_of_odd_shape_is_refused(root):
    Image.new("RGB", (3000, 1)).save(root / "train" / "bee" / "3.png")
    message = r"images have a shape that none can be seen in: .*/3\.png \(3000x1 pixels: one side .* 100 times"
    with pytest.raises(ValueError, match=message):
        data_of(root)


def test_of_many_files_some_of_each_class_are_looked_at(root, monkeypatch):
    monkeypatch.setattr(image_check, "MAX_HEADERS", 2)
    deepen(root / "train" / "cat")
    [*_, last] = [path for path, number in data_of(root).train if number == 1]
    Path(last).write_bytes(b"")
    data = data_of(root)
    assert data.unseen_classes()["train"] == ["cat"]
    assert last not in data.unreadable


def test_an_image_of_each_class_is_read_whole_once(root, monkeypatch):
    read = []
    whole = image_check.read_image
    monkeypatch.setattr(image_check, "read_image", lambda path: read.append(path) or whole(path))
    monkeypatch.setattr(file_cache, "MIN_NEW_RESULTS", 1)
    data_of(root)
    assert len(read) == 9  # of three splits
    data_of(root)
    assert len(read) == 9


def test_evenly_spaced_items_reach_from_the_first_to_near_the_last():
    assert evenly_spaced(range(10), 10) == list(range(10))
    assert evenly_spaced(range(10), 50) == list(range(10))
    assert evenly_spaced(range(1001), 500)[::499] == [0, 998]
    assert evenly_spaced([], 5) == []


def test_one_class_alone_is_refused(root):
    for split in ("train", "val"):
        for name in CLASSES[1:]:
            (root / split / name).rename(root / split / f".{name}")
    with pytest.raises(ValueError, match=r"^dataset\.root=.*: there is one class, ant, and nothing to tell it f"):
        data_of(root)


@pytest.mark.parametrize(
    ("counts", "share", "message"),
    [
        ([5, 5], 0.05, r"of the training images of a class is none, in every class"),
        (
            [1, 9],
            0.6,
            r"takes all training images of 1 class, and leaves none to train on\. Choose a smaller share, or",
        ),
        ([1, 1], 0.9, r"takes all training images, and leaves none to train on"),
    ],
)
def test_a_validation_share_that_leaves_nothing_is_refused(counts, share, message):
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    with pytest.raises(ValueError, match=rf"^dataset\.validation={share}: that share {message}"):
        set_apart(targets, share)


RUN = ("dataset=image_folder", "dataset.image_size=16", "dataset.test_size=16", "dataset.test_resize=16")
RUN += ("dataset.num_workers=0", "dataset.validation=0.25", "model=resnet20", "train.global_batch_size=4")
RUN += ("train.epochs=1", "train.device=cpu", "wandb.mode=disabled", "name=run")


def test_start_and_summary_of_a_run_tell_what_was_found(runner, root, tmp_path):
    cut(root / "val" / "cat")
    (root / "train" / "ant" / ".ipynb_checkpoints").mkdir()
    outcome = runner(*RUN, f"dataset.root={root}")
    assert outcome.code == 0, outcome.err
    start, _, end = outcome.out.partition("epoch 1/1")
    assert "note: 1 file or folder left out, which file managers, notebooks or archives leave behind: ant/.ipy" in start
    assert "warning: classes without a test image that can be read: cat" in start
    assert "unseen: classes without a test image that can be read: cat" in end
    data = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())["data"]
    assert data["left_out"] == {"leftovers": 1, "repeated": 0, "beside": 0, "others": 0}
    assert data["unseen_classes"] == {"train": [], "validation": [], "test": ["cat"]}
    assert len(data["unreadable"]) == 2


def test_a_class_that_cannot_be_read_below_its_header_is_told_at_the_latest_at_the_end(runner, root, tmp_path):
    """All but the header of the first image is whole as the run starts, and goes bad then."""
    data = data_of(root)
    cut(root / "train" / "bee")
    list(data.train_batches(batch_size=6, seed=0, device=torch.device("cpu")).epoch(0))
    list(data.evaluation_batches("validation", batch_size=6, device=torch.device("cpu")))
    assert data.unseen_classes() == {"train": ["bee"], "validation": ["bee"], "test": []}


@pytest.mark.parametrize("share", ["0.99", "0.01"])
def test_a_share_that_leaves_nothing_ends_in_exit_code_2(runner, root, tmp_path, share):
    outcome = runner(*RUN, f"dataset.root={root}", f"dataset.validation={share}")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"dataset.validation={share}: " in outcome.err
    assert not (tmp_path / "outputs").exists()
