"""The cluttered digits: the same each time, balanced, test digits apart from training ones, and really digits."""

import hashlib

import pytest
import torch
from sklearn.datasets import load_digits

from runner.data import cluttered_digits as module
from runner.data.cluttered_digits import cluttered_digits
from runner.data.digits import digits, source_splits


@pytest.fixture(scope="module")
def data():
    return cluttered_digits()


def test_sizes_and_classes(data):
    assert [len(split) for split in (data.train, data.validation, data.test)] == [8_999, 1_001, 2_000]
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert data.train.images.dtype == torch.uint8
    assert (data.num_classes, data.image_size) == (10, 32)
    counts = data.train.targets.bincount()
    assert counts.min() > 800
    assert counts.max() < 1_000
    assert torch.equal(data.test.images[:, 0], data.test.images[:, 2])


@pytest.fixture
def fewer(monkeypatch):
    """The same for fewer images, of two chunks and of one."""
    monkeypatch.setattr(module, "NUM_TRAIN", 1_100)
    monkeypatch.setattr(module, "NUM_TEST", 200)


def test_it_is_the_same_each_time(data, fewer):
    first = cluttered_digits()
    torch.manual_seed(123)
    again = cluttered_digits()
    assert torch.equal(again.test.images, first.test.images)
    assert torch.equal(again.train.images, first.train.images)
    assert torch.equal(again.train.targets, first.train.targets)
    # the labels need no floating point, so that they are the same on every machine
    digest = hashlib.sha256(data.test.targets.to(torch.uint8).numpy().tobytes()).hexdigest()
    assert digest[:16] == "af8097e45fb5c543"


def test_the_digits_of_the_test_images_are_in_no_training_image():
    train, test = source_splits()
    assert len(train) + len(test) == 1_797
    rows = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in rows for image in test.images)
    source = load_digits()
    assert sorted(torch.cat([train.targets, test.targets]).tolist()) == sorted(source.target.tolist())
    assert torch.equal(digits(validation="test").test.targets, test.targets)


def test_a_digit_is_placed_where_the_affine_map_says(monkeypatch):
    """Without turn, shear and move, and at half the canvas: the digit enlarged in the middle, nothing around it."""
    fixed = {(0.45, 0.75): 0.5, (0.6, 1.0): 1.0}
    monkeypatch.setattr(
        module, "_uniform", lambda shape, low, high, generator: torch.full((shape,), fixed.get((low, high), 0.0))
    )
    train, _ = source_splits()
    placed = module._placed(train.images[:5], torch.Generator())
    enlarged = torch.nn.functional.interpolate(train.images[:5], size=16, mode="bilinear", align_corners=False)
    torch.testing.assert_close(placed[:, :, 9:23, 9:23], enlarged[:, :, 1:15, 1:15])
    assert not placed[:, :, :7].any()
    assert not placed[:, :, :, 25:].any()


def test_strokes_are_bright_on_their_line_and_dark_away_from_it(monkeypatch):
    """One stroke from (4, 10), rightwards, 8 pixels long, of width 1."""
    values = {(0, 32): [4.0, 10.5], (5, 14): [8.0], (0.7, 1.3): [1.0], (0.5, 1.0): [0.8]}
    monkeypatch.setattr(
        module,
        "_uniform",
        lambda shape, low, high, generator: torch.full(shape, values[low, high].pop(0) if (low, high) in values else 0),
    )
    image = module._strokes(1, torch.Generator())[0, 0]
    torch.testing.assert_close(image[10, 5:11], torch.full((6,), 0.8))
    torch.testing.assert_close(image[12, 6], torch.tensor(0.8 * 2.718281828**-2))
    assert image[10, 20] < 1e-6


def test_smaller_images_are_the_same_ones_averaged(fewer):
    data, small = cluttered_digits(), cluttered_digits(image_size=16)
    assert torch.equal(small.train.targets, data.train.targets)
    assert small.image_size == 16
    exact = data.test.images[:50].double().reshape(50, 3, 16, 2, 16, 2).mean((3, 5))
    assert (small.test.images[:50].double() - exact).abs().max() <= 1  # each is rounded to whole numbers
    with pytest.raises(ValueError, match=r"dataset.image_size=20: .* 8, 16, 32"):
        cluttered_digits(image_size=20)
