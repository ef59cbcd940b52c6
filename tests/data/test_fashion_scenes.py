"""Fashion scenes: objects of one split are in no other, masks are silhouettes, images are shaded as the objects are."""

import pytest
import torch

from runner.data import fashion_mnist, fashion_scenes, object_scenes
from runner.data.dataset import SEGMENTATION
from runner.data.splits import Split


@pytest.fixture
def clothes(monkeypatch):
    """100 training and 30 test images in the place of Fashion-MNIST's, each a rectangle of a grey value of its own."""

    def split(number, first):
        images = torch.zeros(number, 1, 28, 28, dtype=torch.uint8)
        images[:, :, 4:24, 6:22] = torch.arange(first, first + number, dtype=torch.uint8)[:, None, None, None]
        return Split(images, torch.arange(number) % 10)

    monkeypatch.setattr(fashion_mnist, "source_splits", lambda *_: (split(100, 1), split(30, 101)))
    monkeypatch.setattr(fashion_scenes, "NUM_TEST", 40)


def test_sizes_and_classes(clothes):
    data = fashion_scenes.fashion_scenes(num_scenes=60)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [54, 6, 40]
    assert (data.train.images.shape[1:], data.train.images.dtype) == ((3, 64, 64), torch.uint8)
    assert (data.train.targets.shape[1:], data.train.targets.dtype) == ((64, 64), torch.uint8)
    assert data.train.targets.unique().tolist() == list(range(11))
    assert (data.task, data.num_classes, data.class_names[:2]) == (SEGMENTATION, 11, ("background", "T-shirt"))


@pytest.mark.parametrize(("validation", "sizes"), [(0.2, [80, 20, 30]), ("test", [100, 30])])
def test_no_object_is_in_two_splits(clothes, monkeypatch, validation, sizes):
    sources = []

    def empty_scenes(source, number, generator, **_):
        sources.append({int(image.max()) for image in source.images[:, 1]})
        return Split(torch.zeros(number, 3, 64, 64, dtype=torch.uint8), torch.zeros(number, 64, 64, dtype=torch.uint8))

    monkeypatch.setattr(fashion_scenes, "draw_scenes", empty_scenes)
    data = fashion_scenes.fashion_scenes(num_scenes=50, validation=validation)
    assert sorted(map(len, sources)) == sorted(sizes)
    assert len(set.union(*sources)) == 130
    assert data.validation_source == ("test" if validation == "test" else "train")
    assert len(data.train) == (50 if validation == "test" else 40)


def test_the_test_scenes_do_not_depend_on_the_settings(clothes):
    one, other = (fashion_scenes.fashion_scenes(num_scenes=n, validation=v) for n, v in ((20, 0.5), (30, "test")))
    assert torch.equal(one.test.images, other.test.images)
    assert torch.equal(one.test.targets, other.test.targets)


def test_a_mask_is_the_silhouette_however_dark_and_its_shading_is_the_objects(monkeypatch):
    """An object whose left half is white and whose right half is of value 1, on a plain ground, not rotated."""
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[:, :, :, :14], image[:, :, :, 14:] = 255, 1
    fixed = {(0.15, 0.45): 0.3, (0.55, 1): 0.8, (5, 16): 8.0, fashion_scenes.SIDES: 28.0}

    def value(shape, low, high, generator):
        return torch.full((shape,) if isinstance(shape, int) else shape, fixed.get((low, high), 0.0)).double()

    monkeypatch.setattr(object_scenes, "_uniform", value)
    objects = fashion_scenes._objects(Split(image, torch.tensor([4])))
    scenes = fashion_scenes._scenes(objects, 3, seed=0)
    white, dark = (round(255 * 0.8 * (0.5 + 0.5 * value / 255)) for value in (255, 1))
    for image, mask in zip(scenes.images.int(), scenes.targets, strict=True):
        assert mask.unique().tolist() == [0, 5]
        inside, outside = image[0][mask == 5], image[0][mask == 0]
        assert len(inside) in (2 * 28**2, 3 * 28**2, 4 * 28**2)
        for grey in (white, dark):
            assert ((inside - grey).abs() <= 1).float().mean() == 0.5
        assert ((outside - round(255 * 0.3)).abs() <= 1).all()
