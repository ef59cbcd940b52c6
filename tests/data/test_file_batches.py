"""Batches from files: the same for any number of workers, padded, normalized, and what becomes of unreadable files."""

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from runner.data.dataset import SEGMENTATION
from runner.data.file_data import FileData
from runner.data.file_loader import available_workers
from runner.data.sampling import mixed_seed

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([0.5, 0.25, 0.75]), torch.tensor([0.2, 0.3, 0.1])


@dataclass(frozen=True)
class Noise:
    """Random pixels, the sample's number in the first one; a name that begins with x is a file that cannot be read."""

    error: type[Exception] = OSError

    def __call__(self, sample):
        name, number = sample
        if name.startswith("x"):
            raise self.error(f"{name} is broken")
        image = torch.randint(256, (3, 4, 4), dtype=torch.uint8)
        image[0, 0, 0] = number
        return image, number


@dataclass(frozen=True)
class Scenes:
    """Samples (name, image size, mask size): images of one grey, masks of the name's length."""

    def __call__(self, sample):
        name, size, mask_size = sample
        return torch.full((3, *size), 9, dtype=torch.uint8), torch.full(mask_size, len(name), dtype=torch.uint8)


def named(number, broken=()):
    return [(f"x{i}" if i in broken else f"{i}", i) for i in range(number)]


def data_of(samples, load=None, **options):
    load = load or Noise()
    about = {
        "name": "files",
        "num_classes": 30,
        "image_size": 4,
        "mean": MEAN,
        "std": STD,
        "validation_source": "train",
    }
    splits = {"train": samples, "validation": samples[:2], "test": samples}
    options = {"num_workers": 0, **options}
    return FileData(**about, **splits, load_train=load, load_evaluation=load, **options)


def train_batches(samples, batch_size=4, seed=0, device=CPU, **options):
    return data_of(samples, **options).train_batches(batch_size=batch_size, seed=seed, device=device)


def drawn(batches, epoch=0, start=0):
    """Images and classes of the rest of an epoch, each as one tensor."""
    images, targets = zip(*batches.epoch(epoch, start), strict=True)
    return torch.cat(images), torch.cat(targets)


def pixels(images):
    """The bytes that were normalized."""
    return (images.double() * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)) * 255


def noise(number, *, seed, epoch, index):
    """The image that `Noise` draws for a sample of this number in the place of `index`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed(seed, epoch, int(index)))
        return Noise()(("", int(number)))[0]


def test_an_epoch_shows_no_sample_twice_and_each_with_its_class():
    batches = train_batches(named(22))
    images, targets = drawn(batches)
    assert len(batches) == 5
    assert len(targets) == len(set(targets.tolist())) == 20
    assert targets.dtype == torch.int64
    assert torch.equal(pixels(images)[:, 0, 0, 0].round().long(), targets)


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1), (256, 0), (2**32, 0), (-1, 0)])
def test_another_seed_or_epoch_gives_another_order_and_other_draws(seed, epoch):
    images, targets = drawn(train_batches(named(20)))
    other_images, other_targets = drawn(train_batches(named(20), seed=seed), epoch)
    assert not torch.equal(targets, other_targets)
    assert not torch.equal(images[targets.argsort(), 1], other_images[other_targets.argsort(), 1])


def test_a_sample_depends_on_nothing_but_seed_epoch_and_index():
    """Not on the number of workers, the size of a batch, where the epoch began, or what was drawn before."""
    whole = drawn(train_batches(named(24)), epoch=2)
    for options in ({"batch_size": 12}, {"num_workers": 2}):
        torch.rand(3)
        other = drawn(train_batches(named(24), **options), epoch=2)
        assert all(torch.equal(one, two) for one, two in zip(whole, other, strict=True))
    for options in ({}, {"num_workers": 2}):
        rest = drawn(train_batches(named(24), **options), epoch=2, start=4)
        assert all(torch.equal(one[16:], two) for one, two in zip(whole, rest, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_global_generator_is_left_alone(num_workers):
    data = data_of(named(8), num_workers=num_workers)
    before = torch.get_rng_state()
    drawn(data.train_batches(batch_size=4, seed=0, device=CPU))
    list(data.evaluation_batches("test", batch_size=4, device=CPU))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_of_a_sample_is_in_force_for_it():
    """The first image of a shuffled epoch, drawn once more under the seed made of (seed, epoch, index)."""
    images, targets = drawn(train_batches(named(20), seed=5), epoch=3)
    expected = noise(targets[0], seed=5, epoch=3, index=targets[0])
    assert torch.equal(pixels(images[0]).round().to(torch.uint8), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_bytes_are_normalized(channels_last):
    options = {"batch_size": 6, "device": CPU, "channels_last": channels_last}
    ((images, targets),) = data_of(named(6)).evaluation_batches("test", **options)
    raw = pixels(images).round()
    assert (raw - pixels(images)).abs().max() < 1e-4
    assert torch.equal(raw[:, 0, 0, 0].long(), targets)
    expected = (raw / 255 - MEAN.double().view(3, 1, 1)) / STD.double().view(3, 1, 1)
    torch.testing.assert_close(images.double(), expected, rtol=1e-5, atol=1e-5)
    assert images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_in_training_the_next_readable_sample_takes_an_unreadable_ones_place(num_workers):
    data = data_of(named(20, broken=(3, 4, 19)), num_workers=num_workers, max_unreadable=3)
    images, targets = drawn(data.train_batches(batch_size=5, seed=0, device=CPU), epoch=1)
    whole_images, whole_targets = drawn(train_batches(named(20), batch_size=5), epoch=1)
    assert data.unreadable == {name: f"{name} is broken" for name in ("x3", "x4", "x19")}
    in_place = {3: 5, 4: 5, 19: 0}
    assert targets.tolist() == [in_place.get(target, target) for target in whole_targets.tolist()]
    for image, target, whole, index in zip(images, targets, whole_images, whole_targets, strict=True):
        if target != index:
            assert torch.equal(pixels(image).round().to(torch.uint8), noise(target, seed=0, epoch=1, index=index))
        else:
            assert torch.equal(image, whole)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_in_an_evaluation_unreadable_samples_are_left_out(num_workers):
    data = data_of(named(11, broken=(1, 4, 5, 6, 7)), num_workers=num_workers, max_unreadable=5)
    seen = [targets.tolist() for _, targets in data.evaluation_batches("test", batch_size=4, device=CPU)]
    assert seen == [[0, 2, 3], [8, 9, 10]]
    assert sorted(data.unreadable) == ["x1", "x4", "x5", "x6", "x7"]


def test_a_file_counts_once():
    data = data_of(named(8, broken=(2,)), max_unreadable=1)
    batches = data.train_batches(batch_size=8, seed=0, device=CPU)
    for epoch in range(3):
        assert len(drawn(batches, epoch)[1]) == 8
    for split in ("test", "validation"):
        list(data.evaluation_batches(split, batch_size=2, device=CPU))
    assert list(data.unreadable) == ["x2"]


@pytest.mark.parametrize("error", [OSError, SyntaxError, ValueError])
@pytest.mark.parametrize("split", ["train", "test"])
def test_beyond_the_limit_the_error_names_the_first_file(split, error):
    data = data_of(named(10, broken=range(5)), load=Noise(error), max_unreadable=4)
    message = r"dataset\.max_unreadable=4: 5 files could not be read: x\d \(x\d is broken\) and 4 more\. Repair or"
    if split == "train":
        batches = data.train_batches(batch_size=10, seed=0, device=CPU).epoch(0)
    else:
        batches = data.evaluation_batches("test", batch_size=5, device=CPU)
    with pytest.raises(RuntimeError, match=message):
        list(batches)


def test_nothing_readable_is_an_error_within_the_limit_too():
    data = data_of(named(3, broken=range(3)), max_unreadable=10)
    with pytest.raises(RuntimeError, match=r"None of the 3 files could be read: x"):
        drawn(data.train_batches(batch_size=3, seed=0, device=CPU))
    with pytest.raises(RuntimeError, match=r"None of the 3 files could be read: x"):
        list(data.evaluation_batches("test", batch_size=2, device=CPU))


def test_a_mistake_in_the_code_is_no_unreadable_file():
    with pytest.raises(TypeError, match="is broken"):
        drawn(train_batches(named(4, broken=(2,)), load=Noise(TypeError), max_unreadable=9))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_scenes_come_with_those_of_their_size_and_keep_their_masks(num_workers):
    """A network sees the padding of an image, so that there must be none."""
    samples = [("a", (4, 6), (8, 12)), ("bb", (5, 3), (5, 3)), ("ccc", (4, 6), (7, 1)), ("dddd", (2, 2), (7, 1))]
    data = data_of(samples, Scenes(), task=SEGMENTATION, num_workers=num_workers)
    batches = list(data.evaluation_batches("test", batch_size=3, device=CPU))
    assert [tuple(images.shape) for images, _ in batches] == [(2, 3, 4, 6), (1, 3, 5, 3), (1, 3, 2, 2)]
    grey = (9 / 255 - MEAN) / STD
    for images, labels in batches:
        torch.testing.assert_close(images, grey.view(1, 3, 1, 1).expand_as(images))
        assert [size for _, size in labels] == [tuple(images.shape[2:])] * len(images)
    masks = {mask.unique().item(): tuple(mask.shape) for _, labels in batches for mask, _ in labels}
    assert masks == {len(name): shape for name, _, shape in samples}


def test_masks_of_a_training_batch_are_stacked():
    samples = [("a", (4, 4), (4, 4)), ("bb", (4, 4), (4, 4)), ("ccc", (4, 4), (4, 4))]
    ((images, masks),) = train_batches(samples, 3, load=Scenes()).epoch(0)
    assert images.shape == (3, 3, 4, 4)
    assert masks.dtype == torch.int64
    assert sorted(mask.unique().item() for mask in masks) == [1, 2, 3]


def test_an_epoch_left_early_leaves_nothing_behind():
    expected = drawn(train_batches(named(24)), epoch=1)
    batches = train_batches(named(24), num_workers=2)
    for _ in batches.epoch(0):
        break
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    found = drawn(batches, epoch=1)
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
    assert {worker.pid for worker in multiprocessing.active_children()} == {worker.pid for worker in workers}
    left = batches.epoch(2)
    next(left)
    del batches, left
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_epoch_at_a_time(num_workers):
    batches = train_batches(named(24), num_workers=num_workers)
    first = batches.epoch(0)
    next(first)
    next(batches.epoch(1))
    with pytest.raises(AssertionError, match="another epoch was begun"):
        next(first)


INTERRUPTED = """
import os, signal, sys, torch
from tests.data.test_file_batches import named, train_batches

def interrupt(*_):
    print("asked to end", flush=True)

signal.signal(signal.SIGTERM, interrupt)
signal.signal(signal.SIGINT, interrupt)
epoch = train_batches(named(24), num_workers=2).epoch(0)
next(epoch), next(epoch)  # one from each worker, which is at work by then
print("ready", flush=True)
sys.stdin.readline()
print(2 + sum(1 for _ in epoch), flush=True)
left = train_batches(named(24), num_workers=2)  # alive at the end, with an epoch that goes on
epoch = left.epoch(1)
next(epoch)
"""


def test_signals_to_the_process_group_are_left_to_the_main_process():
    """Its workers go on and say nothing; and a process that ends with an epoch begun ends them."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGINT, signal.SIGTERM):
            os.killpg(process.pid, number)
        out, err = process.communicate("\n", timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert (process.returncode, out.splitlines(), err) == (0, ["asked to end", "asked to end", "6"], "")


def test_workers_read_in_inference_mode():
    data = data_of(named(6), num_workers=2)
    with torch.inference_mode():
        seen = [targets.tolist() for _, targets in data.evaluation_batches("test", batch_size=4, device=CPU)]
    assert seen == [[0, 1, 2, 3], [4, 5]]


def test_a_batch_larger_than_the_split_is_refused():
    with pytest.raises(ValueError, match=r"train.global_batch_size=9: larger than the training split, 8 images"):
        train_batches(named(8), batch_size=9)


def test_the_number_of_workers_is_left_to_the_machine():
    assert 1 <= available_workers() <= 8
    assert train_batches(named(8), num_workers=None).num_workers == available_workers()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_on_a_gpu_are_those_on_the_cpu(num_workers):
    device = torch.device("cuda")
    expected = drawn(train_batches(named(24), num_workers=num_workers))
    torch.cuda.manual_seed(1)
    before = torch.cuda.get_rng_state()
    found = drawn(train_batches(named(24), num_workers=num_workers, device=device))
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one, two.cpu())
    assert torch.equal(torch.cuda.get_rng_state(), before)
    batches = data_of(
        [("a", (4, 6), (8, 12)), ("bb", (5, 3), (5, 3)), ("ccc", (2, 2), (7, 1))], Scenes(), num_workers=num_workers
    ).evaluation_batches("test", batch_size=2, device=device)
    found = [(images, mask) for images, labels in batches for mask, _ in labels]
    assert {tensor.device.type for pair in found for tensor in pair} == {device.type}
    assert [mask.shape for _, mask in found] == [(8, 12), (5, 3), (7, 1)]
