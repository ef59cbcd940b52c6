"""Images that are trained on and tested on are counted, in files and in memory."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from runner.data import duplicates, file_cache
from runner.data.duplicates import duplicate_files, duplicate_images
from runner.data.image_folder import image_folder
from runner.data.mask_folder import mask_folder
from runner.data.splits import Split, make_data

SETTINGS = {"image_size": 16, "test_size": 16, "num_workers": 0}


@pytest.fixture
def root(tmp_path):
    """Two classes with 8 images each in train and 4 each in val, all of them different."""
    draw = np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 4)):
        for name in ("ant", "bee"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = draw.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{i}.bmp")  # all of one size
    return tmp_path / "set"


def data_of(root, **settings):
    return image_folder(root=str(root), **SETTINGS | {"test_resize": 16, "validation": 0.25} | settings)


def test_different_images_have_nothing_to_tell(root):
    data = data_of(root)
    assert data.findings.notes == []
    assert data.findings.entries["duplicates"] == {"validation": 0, "test": 0}


def test_copies_in_both_splits_are_counted_and_the_first_is_named(root):
    for i in range(3):
        shutil.copy(root / "train" / "bee" / f"{i}.bmp", root / "val" / "ant" / f"copy{i}.bmp")
    data = data_of(root, validation="test")
    assert data.findings.entries["duplicates"] == {"test": 3}
    [(kind, text)] = data.findings.notes
    assert kind == "warning"
    assert text.startswith("3 of 16 training images are byte-identical to test images; the first is ")
    assert text.endswith("train/bee/0.bmp, " + str(root / "val/ant/copy0.bmp") + " of the test split")


def test_copies_in_the_share_for_validation_are_counted(root):
    """Two of eight copies of one image are set apart."""
    for i in range(1, 8):
        shutil.copy(root / "train" / "bee" / "0.bmp", root / "train" / "bee" / f"{i}.bmp")
    assert data_of(root).findings.entries["duplicates"] == {"validation": 6, "test": 0}


def test_scenes_that_exist_twice_are_counted(tmp_path, make_scenes):
    make_scenes(tmp_path, training=8, validation=4)
    for kind in ("images", "annotations"):
        shutil.copy(tmp_path / kind / "training" / "03.png", tmp_path / kind / "validation" / "07.png")
    data = mask_folder(root=str(tmp_path), num_classes=3, **SETTINGS, validation="test")
    assert data.findings.entries["duplicates"] == {"test": 1}


def test_only_files_of_a_size_that_both_sides_have_are_read(root, monkeypatch):
    read = []
    whole = duplicates._digest
    monkeypatch.setattr(duplicates, "_digest", lambda path: read.append(path) or whole(path))
    (root / "val" / "ant" / "0.bmp").write_bytes(b"of another size")
    train = [str(path) for path in root.glob("train/*/*")]
    (root / "train" / "ant" / "1.bmp").write_bytes(b"of a size of its own")
    findings = duplicate_files({"train": train, "test": [str(path) for path in root.glob("val/*/*")]}, None, root="x")
    assert findings.entries == {"duplicates": {"test": 0}}
    assert len(read) == 15 + 7


@pytest.mark.parametrize(("limit", "text"), [("MAX_FILES", "among 24 files"), ("MAX_BYTES", "in 0.0 GiB of files")])
def test_of_a_large_set_it_is_said_that_nothing_was_looked_for(root, monkeypatch, limit, text):
    monkeypatch.setattr(duplicates, limit, 20)
    findings = data_of(root).findings
    assert findings.entries["duplicates"] is None
    expected = f"duplicates were not looked for {text}; dataset.check_duplicates=true does, and keeps what it finds out"
    assert findings.notes == [("note", expected)]
    assert data_of(root, check_duplicates=True).findings.entries["duplicates"] == {"validation": 0, "test": 0}
    silent = data_of(root, check_duplicates=False).findings
    assert (silent.notes, silent.entries["duplicates"]) == ([], None)


def test_a_file_is_hashed_once(root, monkeypatch, cache_folder):
    monkeypatch.setattr(file_cache, "MIN_NEW_RESULTS", 10)
    shutil.copy(root / "train" / "bee" / "1.bmp", root / "val" / "ant" / "copy.bmp")
    assert data_of(root).findings.entries["duplicates"]["test"] == 1
    assert [file.name.split("-")[0] for file in cache_folder.iterdir()] == ["digests"]
    monkeypatch.setattr(duplicates, "_digest", None)  # cannot be called
    assert data_of(root).findings.entries["duplicates"]["test"] == 1


@pytest.mark.parametrize("of_bytes", [True, False])
def test_images_in_memory_are_compared_whole(of_bytes):
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    images[10, 2, 7, 7] = images[5, 2, 7, 7] + 1
    images = images if of_bytes else images / 255
    almost = images[5].clone()
    almost[2, 7, 7] += 0.25 if not of_bytes else 1
    splits = {"train": images[:20], "validation": torch.stack([almost, *images[20:22]])}
    splits["test"] = torch.stack([images[3], images[3], images[17], images[30]])
    findings = duplicate_images(splits, None)
    assert findings.entries == {"duplicates": {"validation": 0, "test": 2}}
    [(_, text)] = findings.notes
    assert text.endswith("; the first is number 3, number 1 of the test split")
    assert duplicate_images(splits, False).entries == {"duplicates": None}


def test_data_sets_in_memory_are_checked():
    targets = torch.arange(20) % 2
    train = Split(torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8), targets)
    test = train.part(torch.arange(4))
    data = make_data("x", train, test, num_classes=2, validation="test")
    assert data.findings.entries == {"duplicates": {"test": 4}}
    data = make_data("x", train, test, num_classes=2, validation=0.2)
    set_apart = {image.numpy().tobytes() for image in data.validation.images}
    expected = sum(image.numpy().tobytes() not in set_apart for image in test.images)
    assert data.findings.entries == {"duplicates": {"validation": 0, "test": expected}}


def test_the_setting_is_one_of_every_data_set(composed, runner, root, tmp_path):
    assert make_data.__kwdefaults__["check_duplicates"] is None
    for name in ("digits", "cluttered_digits", "digit_scenes", "cifar10", "imagenet", "ade20k"):
        assert (
            composed(f"dataset={name}", *(["model=deeplabv3plus_resnet18"] * (name in ("digit_scenes", "ade20k"))))[
                "dataset"
            ]["check_duplicates"]
            is None
        )
    shutil.copy(root / "train" / "bee" / "1.bmp", root / "val" / "ant" / "copy.bmp")
    outcome = runner(
        "dataset=image_folder", f"dataset.root={root}", "dataset.image_size=16", "dataset.test_size=16",
        "dataset.test_resize=16", "dataset.num_workers=0", "dataset.validation=test", "model=resnet20",
        "train.global_batch_size=4", "train.max_steps=1", "train.device=cpu", "wandb.mode=disabled", "name=run",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "warning: 1 of 16 training images are byte-identical to test images; the first is" in outcome.out
    summary = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())
    assert summary["data"]["duplicates"] == {"test": 1}
