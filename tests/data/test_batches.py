"""Batches: every sample once, the same ones for the same seed, crops and flips as written out by hand."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from runner.data import random as random_module
from runner.data.batches import Normalization, crop_and_flip
from runner.data.random import random
from runner.data.splits import Split, channel_statistics, make_data

CPU = torch.device("cpu")


@pytest.fixture
def data():
    return random(num_images=50, image_size=8)


def batches(data, **options):
    return data.train_batches(batch_size=8, device=CPU, **{"seed": 0, **options})


def test_an_epoch_shows_no_image_twice_and_shuffles_anew(data):
    first = torch.cat([images for images, _ in batches(data).epoch(0)])
    second = torch.cat([images for images, _ in batches(data).epoch(1)])
    assert len(batches(data)) == 6
    assert len(first) == 48
    assert len(first.flatten(1).unique(dim=0)) == 48
    assert not torch.equal(first, second)


def test_images_keep_their_labels(data):
    pairs = zip(data.train.images, data.train.targets, strict=True)
    lookup = {tuple(image.flatten()[:5].tolist()): target for image, target in pairs}
    for images, targets in batches(data).epoch(3):
        for image, target in zip(images, targets, strict=True):
            assert lookup[tuple(image.flatten()[:5].tolist())] == target


def test_an_epoch_begun_in_the_middle_goes_on_alike(data):
    augmented = dataclasses.replace(data, crop_padding=2, flip=True)
    whole = list(batches(augmented).epoch(2))
    rest = list(batches(augmented).epoch(2, start=4))
    assert len(rest) == 2
    for (images, targets), (expected, expected_targets) in zip(rest, whole[4:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(targets, expected_targets)


def test_another_seed_gives_another_order(data):
    one, other = (torch.cat([t for _, t in batches(data, seed=seed).epoch(0)]) for seed in (0, 1))
    assert not torch.equal(one, other)


def test_crops_and_flips_are_slices_of_the_padded_image():
    images = torch.randn(6, 3, 5, 7)
    offsets = torch.tensor([[0, 1, 2, 3, 4, 2], [4, 3, 2, 1, 0, 2]])
    flips = torch.tensor([True, False, True, False, True, False])
    found = crop_and_flip(images, offsets, flips, padding=2)
    padded = F.pad(images, (2, 2, 2, 2))
    for i in range(6):
        row, column = offsets[:, i].tolist()
        crop = padded[i, :, row : row + 5, column : column + 7]
        assert torch.equal(found[i], crop.flip(2) if flips[i] else crop)


def test_bytes_are_normalized():
    images = torch.randint(256, (20, 3, 4, 4), dtype=torch.uint8)
    split = Split(images, torch.arange(20) % 2)
    data = make_data("bytes", split, split, num_classes=2, validation="test")
    (found, _), *_ = data.evaluation_batches("test", batch_size=20, device=CPU, channels_last=True)
    scaled = images.double() / 255
    mean, std = scaled.mean((0, 2, 3), keepdim=True), scaled.std((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(found.double(), (scaled - mean) / std, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_sees_every_sample_once_in_order(data):
    seen = [targets for _, targets in data.evaluation_batches("test", batch_size=5, device=CPU)]
    assert torch.equal(torch.cat(seen), data.test.targets)


def test_a_batch_larger_than_the_split_is_refused(data):
    with pytest.raises(ValueError, match=r"train.global_batch_size=51: larger than the training split, 50 images"):
        data.train_batches(batch_size=51, seed=0, device=CPU)


def test_random_numbers_are_made_in_the_order_in_which_they_always_were(data):
    """On a CPU: those of a generator with the seed 0, split by split."""
    generator = torch.Generator().manual_seed(0)
    for split, size in (("train", 50), ("validation", 12), ("test", 12)):
        images, targets = (getattr(getattr(data, split), name) for name in ("images", "targets"))
        assert torch.equal(images, torch.randn(size, 3, 8, 8, generator=generator))
        assert torch.equal(targets, torch.randint(10, (size,), generator=generator))
        shown = [images for images, _ in data.evaluation_batches(split, batch_size=8, device=CPU)]
        assert torch.equal(torch.cat(shown), images)


def test_random_numbers_are_made_where_they_are_needed_and_not_before(data, monkeypatch):
    """A sweep's launcher, which only counts the images, takes no memory of a GPU."""
    made = []
    monkeypatch.setattr(random_module, "_splits", lambda *sizes: made.append(sizes[-1]) or [None] * 3)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [50, 12, 12]
    assert made == []
    data.train.on(torch.device("meta"))
    assert made == [torch.device("meta")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_random_numbers_of_a_gpu_are_made_there_and_are_the_same_each_time(data):
    device = torch.device("cuda")
    first = data.train.on(device)
    random_module._splits.cache_clear()
    second = data.train.on(device)
    assert first.images.is_cuda
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.targets, second.targets)
    assert first.images.std().item() == pytest.approx(1, abs=0.05)
    assert first.targets.unique().tolist() == list(range(10))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_mean_and_deviation_are_those_of_numpy(dtype):
    images = (torch.rand(30, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 256).to(torch.uint8)
    scaled = images.numpy().astype("float64") / 255
    images = images if dtype == torch.uint8 else torch.from_numpy(scaled).float()
    mean, std = channel_statistics(images)
    torch.testing.assert_close(mean.numpy(), scaled.mean((0, 2, 3)).astype("float32"), rtol=1e-6, atol=0)
    torch.testing.assert_close(std.numpy(), scaled.std((0, 2, 3)).astype("float32"), rtol=1e-6, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(5, 3, 17, 23), (130, 1, 8, 8), (3, 3, 224, 224)])
def test_bytes_are_normalized_alike_in_both_formats(shape, channels_last):
    """A few images at a time, bit for bit as all at once."""
    mean, std = torch.rand(2, shape[1]).add(0.1)
    about = SimpleNamespace(mean=mean, std=std)
    normalized = Normalization(about, of_bytes=True, device=torch.device("cpu"), channels_last=channels_last)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    gain, shift = (each.view(1, -1, 1, 1) for each in ((1 / 255) / std, mean / std))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for source in (images, images.contiguous(memory_format=torch.channels_last)):
        result = normalized(source)
        assert torch.equal(result, images * gain - shift)
        assert result.is_contiguous(memory_format=layout)
