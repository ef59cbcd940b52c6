"""Masks whose values do not mean what the settings say: refused, or said, before a run."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from runner.data import label_check
from runner.data.dataset import IGNORE_INDEX
from runner.data.mask_folder import mask_folder

SETTINGS = {"image_size": 16, "test_size": None, "num_workers": 0, "validation": 0.25}


@pytest.fixture
def write(tmp_path):
    """`write(training, validation)` writes a scene for each list of values, whose mask has a column of each value."""

    def call(training, validation=None):
        draw = np.random.default_rng(0)
        for split, masks in (("training", training), ("validation", validation or training)):
            for kind in ("images", "annotations"):
                (tmp_path / kind / split).mkdir(parents=True, exist_ok=True)
            for number, values in enumerate(masks):
                mask = np.repeat(np.array([values], dtype=np.uint16 if max(values) > 255 else np.uint8), 4, axis=0)
                Image.fromarray(mask).save(tmp_path / "annotations" / split / f"{number}.png")
                image = Image.fromarray(draw.integers(0, 256, (*mask.shape, 3), dtype=np.uint8))
                image.save(tmp_path / "images" / split / f"{number}.png")
        return tmp_path

    return call


def data_of(root, **settings):
    return mask_folder(root=str(root), **SETTINGS | settings)


def test_masks_of_black_and_white_are_refused_with_both_remedies(write):
    message = r"^dataset\.ignore_label=auto: no pixel of the masks is of class 1, and 48 of 96 "
    with pytest.raises(ValueError, match=message) as error:
        data_of(write([[0, 255, 255]] * 4, [[0, 0, 0, 255, 255, 0]] * 2))
    assert "dataset.mask_values=[0,255];" in str(error.value)
    assert str(error.value).endswith("if not, say so: dataset.ignore_label=255.")


def test_the_values_of_classes_can_be_named(write):
    root = write([[0, 255, 255, 7]] * 4)
    data = data_of(root, mask_values=(255, 0), ignore_label=7)
    assert data.findings.entries["classes_without_pixels"] == {"train": [], "validation": [], "test": []}
    [(_, labels)] = data.evaluation_batches("test", batch_size=4, device=torch.device("cpu"))
    for mask, _ in labels:
        assert mask.tolist() == [[1, 0, 0, IGNORE_INDEX]] * 4


def test_a_value_of_a_class_comes_before_the_ignored_one(write):
    data = data_of(write([[0, 255]] * 4), mask_values=(0, 255))
    assert data.load_train.labels.ignored is None
    deep = data_of(write([[1000, 40_000, 255]] * 4), mask_values=(1000, 40_000))
    assert deep.load_evaluation(deep.test[0])[1][0].tolist() == [0, 1, IGNORE_INDEX]


def test_the_last_of_several_classes_drawn_in_white_is_refused(write):
    with pytest.raises(ValueError, match=r"no pixel of the masks is of class 2, and .*mask_values=\[0,1,255\];"):
        data_of(write([[0, 1, 255]] * 4), num_classes=3)


def test_who_says_that_white_is_no_class_is_believed(write):
    data = data_of(write([[0, 1, 255]] * 4), num_classes=3, ignore_label=255)
    assert data.findings.entries["classes_without_pixels"] == {name: ["2"] for name in ("train", "validation", "test")}
    assert ("warning", "no pixel of the 3 training masks is of class 2") in data.findings.notes


def test_a_class_of_another_split_is_no_reason_to_doubt(write):
    data = data_of(write([[0, 1, 255]] * 4, [[0, 1, 2]]), num_classes=3)
    assert data.findings.entries["classes_without_pixels"] == {"train": ["2"], "validation": ["2"], "test": []}


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 1, 2, 255]])
def test_masks_as_they_should_be_have_nothing_to_tell(write, values):
    data = data_of(write([values] * 4), num_classes=3)
    assert data.findings.notes == []
    assert data.findings.entries["masks_counted"] == {"train": 3, "validation": 1, "test": 4}


def test_a_split_without_labelled_pixels_is_refused(write):
    message = r"^dataset\.root=\S+: no pixel of the 2 test masks has a class; their values are \[255\]\. If 255 is"
    with pytest.raises(ValueError, match=message):
        data_of(write([[0, 1]] * 4, [[255, 255]] * 2))
    with pytest.raises(ValueError, match=r"no pixel of the 3 training masks has a class; their values are \[0\]"):
        data_of(write([[0, 0]] * 4), reduce_zero_label=True)


@pytest.mark.parametrize("values", [[0, 0], [1, 255]])
def test_one_class_alone_is_refused(write, values):
    message = rf"all labelled pixels of the 3 training masks are of class {values[0]}, and nothing is there to tell it"
    with pytest.raises(ValueError, match=message):
        data_of(write([values] * 4), ignore_label=255)


def test_values_of_no_class_come_with_what_to_set(write):
    with pytest.raises(ValueError, match=r"the value 255, which is none of 0\.\.1, .*dataset\.mask_values=\[0,255\]"):
        data_of(write([[0, 255]] * 4), ignore_label=None)
    with pytest.raises(ValueError, match=r"has the value 128, .*dataset\.mask_values=\[0,128,255\]\.$"):
        data_of(write([[0, 128, 255]] * 4), num_classes=3)
    with pytest.raises(ValueError, match=r"the value 2, which is none of dataset\.mask_values=\[0, 1\], nor"):
        data_of(write([[0, 1, 2]] * 4), mask_values=(0, 1))


def test_of_many_masks_a_sample_is_counted_and_said_to_be_one(write, monkeypatch):
    monkeypatch.setattr(label_check, "MAX_MASKS", 3)
    data = data_of(write([[0, 1, 255]] * 8), num_classes=3)  # class 2 may be in the others: no refusal
    assert data.findings.entries["masks_counted"] == {"train": 3, "validation": 2, "test": 3}
    assert ("note", "no pixel of 3 of the 6 training masks is of class 2") in data.findings.notes
    with pytest.raises(ValueError, match=r"ignore_label=auto: no pixel of the masks is of class 1"):
        data_of(write([[0, 255, 255]] * 8))  # half of the pixels, in each of the masks that were counted


def test_masks_that_cannot_be_read_are_counted_with_their_images(write):
    root = write([[0, 1]] * 8)
    for number in (1, 2):
        Image.new("RGB", (2, 4)).save(root / "annotations" / "training" / f"{number}.png")
    (root / "annotations" / "validation" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^dataset\.max_unreadable=2: 3 files cannot be read: .*mode RGB"):
        data_of(root, max_unreadable=2)
    assert len(data_of(root, max_unreadable=3).unreadable) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_values": (0, 1), "reduce_zero_label": True}, r"mask_values=\[0, 1\]: they say all; set .*=false"),
        ({"mask_values": (0, 1, 2)}, r"mask_values=\[0, 1, 2\]: it must name 2 different values, as dataset.num_cl"),
        ({"mask_values": (3, 3)}, r"mask_values=\[3, 3\]: it must name 2 different values"),
        ({"mask_values": (0, -1)}, r"mask_values=\[0, -1\]: the values of a mask's pixels lie in \[0, 65535\]"),
    ],
)
def test_values_that_cannot_be_are_refused(write, settings, message):
    with pytest.raises(ValueError, match=message):
        data_of(write([[0, 1]] * 4), **settings)


MODEL = ("dataset=mask_folder", "dataset.num_workers=0", "dataset.image_size=16", "dataset.test_size=16")
MODEL += ("model=deeplabv3plus_resnet18", "model.head_channels=8", "train.global_batch_size=2", "wandb.mode=disabled")
MODEL += ("train.device=cpu", "train.epochs=1", "name=run", "dataset.validation=0.25")


def test_black_and_white_from_the_command_line(runner, write, tmp_path):
    root = write([[0, 255, 255]] * 8)
    outcome = runner(*MODEL, f"dataset.root={root}")
    assert (outcome.code, outcome.out) == (2, "")
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "outputs").exists()
    remedy = re.search(r"dataset\.mask_values=\S+?\]", outcome.err)[0]
    outcome = runner(*MODEL, f"dataset.root={root}", remedy)
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())
    assert summary["data"]["classes_without_pixels"] == {"train": [], "validation": [], "test": []}
    assert summary["iou_by_class"]["0"] != 1


@pytest.mark.parametrize("value", ["often", "-1", "65536", "true", "1.5"])
def test_an_ignored_value_that_cannot_be_is_refused(runner, value):
    outcome = runner(*MODEL, f"dataset.ignore_label={value}")
    assert outcome.code == 2
    assert f"dataset.ignore_label={value}: it must" in outcome.err


@pytest.mark.parametrize("value", ["3", "[0,white]", "{a: 1}"])
def test_values_of_classes_are_a_list_of_numbers(runner, value):
    outcome = runner(*MODEL, f"dataset.mask_values={value}")
    assert outcome.code == 2
    assert "dataset.mask_values=" in outcome.err
    assert ": it must be a list" in outcome.err
