"""Tensors are cropped, resized and augmented as PIL images are, but for the rounding of the resampling."""

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from runner.data.image_transforms import LoadImage, image_transforms

SIZES = ((500, 375), (640, 480), (160, 200))
AUGMENTED = {"rand_augment_layers": 2, "rand_augment_magnitude": 9, "random_erasing": 1.0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The paths of real photos as JPEG files."""
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for pixels in load_sample_images().images:
        for width, height in SIZES:
            paths.append(str(folder / f"{len(paths)}.jpg"))
            Image.fromarray(pixels).resize((width, height)).save(paths[-1], quality=90)
    return paths


def images(path, split, seeds, **settings):
    """A photo as both ways read and transform it, under the same seeds."""
    both = []
    for decode in ("pil", "torchvision"):
        transforms = image_transforms(decode=decode, **settings)
        load = LoadImage(getattr(transforms, split), transforms.read)
        loaded = []
        for seed in seeds:
            torch.manual_seed(seed)
            loaded.append(load((path, 0))[0].int())
        both.append(torch.stack(loaded))
    return both


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [3, 1])
def test_training_crops_are_those_of_pil(photos, interpolation, channels):
    for path in photos:
        pil, tensor = images(path, "train", range(6), interpolation=interpolation, channels=channels)
        assert pil.shape == tensor.shape == (6, channels, 224, 224)
        assert (pil - tensor).abs().max() <= 2
        assert (pil - tensor).abs().float().mean() < 0.5


@pytest.mark.parametrize("settings", [{}, {"interpolation": "bicubic"}, {"test_size": (224, 160)}, {"test_size": 96}])
def test_evaluation_images_are_those_of_pil(photos, settings):
    for path in photos:
        pil, tensor = images(path, "evaluation", [0], **settings)
        assert (pil - tensor).abs().max() <= 2
        assert (pil - tensor).abs().float().mean() < 0.5


def test_rand_augment_and_erasing_are_those_of_pil(photos):
    """A posterized or equalized image makes more of a difference of one; the draws are the same."""
    for path in photos[:4]:
        pil, tensor = images(path, "train", range(12), **AUGMENTED)
        erased = (pil == torch.tensor([124, 116, 104]).view(-1, 1, 1)).all(1)
        assert erased.any((1, 2)).all()
        assert (erased == (tensor == torch.tensor([124, 116, 104]).view(-1, 1, 1)).all(1)).float().mean() > 0.999
        assert (pil - tensor).abs().float().mean() < 1


def test_seeds_give_different_crops(photos):
    """So the comparisons above can fail."""
    _, tensor = images(photos[0], "train", range(2))
    assert (tensor[0] - tensor[1]).abs().float().mean() > 10
