"""The digit scenes: the same everywhere, test digits apart from training ones, masks where the strokes are."""

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from runner.data import digit_scenes, object_scenes
from runner.data.dataset import SEGMENTATION
from runner.data.digit_scenes import SIDES, STROKE_THRESHOLD
from runner.data.digits import source_splits
from runner.data.splits import Split

HOW = {"threshold": STROKE_THRESHOLD, "sides": SIDES}


@pytest.fixture(scope="module")
def data():
    return digit_scenes.digit_scenes()


def draw_instead(monkeypatch, fixed):
    """Every draw from an interval gives the value that `fixed` has for it, or 0."""

    def value(shape, low, high, generator):
        return torch.full(
            (shape,) if isinstance(shape, int) else shape, fixed.get((low, high), 0.0), dtype=torch.float64
        )

    monkeypatch.setattr(object_scenes, "_uniform", value)


def test_sizes_and_classes(data):
    assert [len(split) for split in (data.train, data.validation, data.test)] == [1_800, 200, 500]
    for split in (data.train, data.validation, data.test):
        assert (split.images.shape[1:], split.images.dtype) == ((3, 64, 64), torch.uint8)
        assert (split.targets.shape[1:], split.targets.dtype) == ((64, 64), torch.uint8)
        shares = split.targets.flatten().bincount(minlength=11) / split.targets.numel()
        assert len(shares) == data.num_classes == len(data.class_names) == 11
        assert 0.65 < shares[0] < 0.85
        assert shares[1:].min() > 0.01
        assert shares[1:].max() < 0.04
    assert (data.task, data.image_size, data.class_names[1]) == (SEGMENTATION, 64, "zero")


def test_it_is_the_same_everywhere(data):
    digest = hashlib.sha256()
    for tensor in (data.test.images, data.test.targets, data.train.images, data.train.targets):
        digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest()[:16] == "bcbf187e278f1f75"


def test_the_digits_of_the_test_scenes_are_in_no_training_scene(monkeypatch):
    sources = []

    def empty_scenes(source, number, **_):
        sources.append(source)
        return Split(torch.zeros(20, 3, 64, 64, dtype=torch.uint8), torch.zeros(20, 64, 64, dtype=torch.uint8))

    monkeypatch.setattr(digit_scenes, "draw_scenes", empty_scenes)
    digit_scenes.digit_scenes()
    assert [len(source) for source in sources] == [1_438, 359]
    train, test = ({image.numpy().tobytes() for image in source.images} for source in sources)
    assert not train & test


def test_a_scene_holds_two_to_four_digits_of_the_source_it_is_given():
    """Of a source of one image of a seven, seven is the only class; every quarter has at most one digit."""
    source, _ = source_splits()
    seven = (source.targets == 7).nonzero()[0]
    seven = Split(source.images[seven], source.targets[seven])
    scenes = object_scenes.draw_scenes(seven, 120, torch.Generator().manual_seed(1), **HOW)
    assert scenes.targets.unique().tolist() == [0, 8]
    sizes = (scenes.targets == 8).sum((1, 2)).double()
    one = _pixels_of_one_digit(seven.images)
    assert sizes.min() > 1.2 * one[0]
    assert sizes.max() < 4 * one[1]
    quarters = (scenes.targets == 8).unflatten(1, (2, 32)).unflatten(3, (2, 32)).sum((2, 4))
    assert (quarters > 60).sum((1, 2)).min() >= 2


def _pixels_of_one_digit(image):
    """The pixels of a digit at the smallest and the largest side that is drawn."""
    grey = ndimage.zoom(image[0, 0].double().numpy(), 8, order=1)
    share = (grey > STROKE_THRESHOLD).mean()
    return share * 26**2, share * 38**2


def test_a_mask_is_where_the_digit_is_painted(monkeypatch):
    """On a plain ground without noise: the digit's colour inside, the ground's outside, the mask from half of each."""
    fixed = {(0.15, 0.45): 0.3, (0.55, 1): 0.8, (5, 16): 8.0, (26, 38): 32.0}
    draw_instead(monkeypatch, fixed)
    source, _ = source_splits()
    digit = Split(source.images[:1], source.targets[:1] + 1)
    images, masks = object_scenes._chunk(digit, 8, torch.Generator().manual_seed(0), **HOW)
    ground, ink = 0.3, 0.8
    opacity = (images.double().mean(1) / 255 - ground) / (ink - ground)
    # a byte's rounding is a share of 1 / 255 / (ink - ground) of the way between the two
    tolerance = 0.5 / 255 / (ink - ground) + 1e-9
    assert (opacity[masks > 0] > 0.5 - tolerance).all()
    assert (opacity[masks == 0] < 0.5 + tolerance).all()
    assert opacity.max() > 0.99
    assert opacity.min() == pytest.approx(0, abs=2 * tolerance)


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_a_digit_is_placed_where_its_affine_map_says(monkeypatch, quarter):
    """At four times its size, turned by a quarter turn, in the middle of its quarter."""
    fixed = {(26, 38): 32.0, (-math.pi / 12, math.pi / 12): math.pi / 2}
    draw_instead(monkeypatch, fixed)
    source, _ = source_splits()
    digit = source.images[:1].double()
    placed = object_scenes._placed(digit, torch.tensor([quarter]), SIDES, torch.Generator())[0, 0]
    row, column = 32 * (quarter // 2), 32 * (quarter % 2)
    found = placed[row : row + 32, column : column + 32]
    enlarged = torch.nn.functional.interpolate(digit, size=32, mode="bicubic", align_corners=False)[0, 0]
    inner = slice(
        8, 24
    )  # farther out the cubic looks past the digit's border: 0 for one, the border's value for the other
    turned = torch.from_numpy(np.rot90(enlarged.numpy(), k=-1).copy())
    torch.testing.assert_close(found[inner, inner], turned[inner, inner])
    placed[max(row - 8, 0) : row + 40, max(column - 8, 0) : column + 40] = 0
    assert not placed.any()


def test_later_digits_cover_earlier_ones(monkeypatch):
    """A 3 all over the scene and then a 5 on its left half; the scene has no third and no fourth digit."""
    whole = torch.ones(1, 1, 64, 64)
    left = (torch.arange(64) < 32).expand_as(whole)
    drawn = iter([whole, left, whole, whole])
    monkeypatch.setattr(object_scenes, "_placed", lambda *_: next(drawn).double())
    labels = iter([3, 5, 7, 9])
    monkeypatch.setattr(
        torch, "randint", lambda *args, **_: torch.tensor([next(labels)]) if args[0] == 10 else torch.tensor([2])
    )
    digits = Split(torch.zeros(10, 1, 8, 8), torch.arange(10))
    _, masks = object_scenes._chunk(digits, 1, torch.Generator().manual_seed(0), **HOW)
    assert (masks[0, :, :32] == 5).all()
    assert (masks[0, :, 32:] == 3).all()
