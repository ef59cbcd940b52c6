"""Random erasing in batches: the rectangles are those of torchvision's law, and nothing else is erased."""

import dataclasses

import pytest
import torch
from torchvision.transforms.v2 import RandomErasing

from runner.data.random import random
from runner.data.random_erasing import draw_rectangles, erase


def torchvision_rectangles(number, height, width):
    """Top, left, height, width as torchvision draws them."""
    transform, image = RandomErasing(1.0), torch.zeros(1, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [transform.make_params([image]) for _ in range(number)]
    return torch.tensor([[each[key] for each in drawn] for key in "ijhw"])


@pytest.mark.parametrize("size", [(28, 28), (20, 50)])
def test_rectangles_are_distributed_as_those_of_torchvision(size):
    """Means and deviations of places, sides and areas within 5 standard errors of the 4,000 reference draws."""
    found = draw_rectangles(40_000, *size, 1.0, torch.Generator().manual_seed(0)).double()
    expected = torchvision_rectangles(4_000, *size).double()
    for one, other in zip((*found, found[2] * found[3]), (*expected, expected[2] * expected[3]), strict=True):
        error = other.std() / 4_000**0.5
        assert abs(one.mean() - other.mean()) < 5 * error
        assert one.std() == pytest.approx(other.std().item(), rel=0.06)
    assert ((found[:2] + found[2:]) <= torch.tensor(size)[:, None]).all()
    assert (found[2:] > 0).all()
    assert (found[:2].amin(1) == 0).all()


def test_the_probability_is_the_share_of_images_with_a_rectangle():
    drawn = draw_rectangles(10_000, 32, 32, 0.3, torch.Generator().manual_seed(0))
    assert (drawn[2] > 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert not drawn[:, drawn[2] == 0].any()


def test_exactly_the_rectangles_are_erased():
    images = torch.rand(5, 2, 6, 9) + 1
    rectangles = torch.tensor([[0, 0, 0, 0], [2, 3, 4, 6], [0, 8, 6, 1], [5, 0, 1, 9], [1, 1, 3, 3]]).T
    expected = images.clone()
    for image, (top, left, height, width) in zip(expected, rectangles.T.tolist(), strict=True):
        image[:, top : top + height, left : left + width] = 0
    assert torch.equal(erase(images, rectangles), expected)


def test_batches_are_the_same_but_for_their_rectangles():
    data = random(num_images=64, image_size=8)
    plain = dataclasses.replace(data, crop_padding=2, flip=True)
    erasing = dataclasses.replace(plain, random_erasing=0.5)
    batches = [each.train_batches(batch_size=16, seed=0, device=torch.device("cpu")) for each in (plain, erasing)]
    for (images, targets), (erased, same_targets) in zip(batches[0].epoch(1), batches[1].epoch(1), strict=True):
        assert torch.equal(targets, same_targets)
        assert ((erased == images) | (erased == 0)).all()
        changed = (erased != images).flatten(1).any(1)
        assert 0 < changed.sum() < 16
    again = list(batches[1].epoch(1, start=3))
    assert torch.equal(again[0][0], erased)
