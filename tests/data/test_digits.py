"""The digits and the splits."""

import subprocess
import sys

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from runner.data import digits as module
from runner.data.digits import digits, source_splits
from runner.data.sampling import stratified_share


def test_the_files_rows_are_what_the_package_gives(monkeypatch):
    read = source_splits()
    monkeypatch.setattr(module, "find_spec", lambda name: None)  # as if the file lay elsewhere
    for split, expected in zip(read, source_splits(), strict=True):
        assert torch.equal(split.images, expected.images)
        assert torch.equal(split.targets, expected.targets)


def test_the_package_is_not_imported():
    """It imports scipy, pandas and pyarrow."""
    script = "import sys; from runner.data.digits import digits; digits(); print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_image_lies_in_exactly_one_split():
    data = digits(image_size=8)
    assert (len(data.train), len(data.validation), len(data.test)) == (1295, 143, 359)
    found = torch.cat([split.images[:, 0] for split in (data.train, data.validation, data.test)]).flatten(1)
    source = torch.from_numpy(load_digits().images).float().flatten(1) / 16
    order = lambda images: images[[i for i, _ in sorted(enumerate(images.tolist()), key=lambda item: item[1])]]  # noqa: E731
    assert torch.equal(order(found), order(source))


def test_splits_are_stratified_and_always_the_same():
    first, second = digits(), digits()
    assert torch.equal(first.test.images, second.test.images)
    for split in (first.train, first.validation, first.test):
        shares = split.targets.bincount(minlength=10) / len(split)
        source = torch.from_numpy(load_digits().target).bincount() / 1797
        assert (shares - source).abs().max() < 0.01


def test_images_are_enlarged_bilinearly_in_three_equal_channels():
    small, large = digits(image_size=8), digits(image_size=16)
    assert large.image_size == 16
    expected = F.interpolate(small.test.images, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(large.test.images, expected)
    assert torch.equal(large.test.images[:, 0], large.test.images[:, 2])


def test_mean_and_deviation_are_those_of_the_training_split():
    data = digits()
    pixels = data.train.images.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(data.mean.double(), pixels.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(data.std.double(), pixels.std(1, correction=0), rtol=1e-5, atol=1e-6)


def test_the_test_split_can_stand_in_for_validation():
    data = digits(validation="test")
    assert data.validation_source == "test"
    assert len(data.train) == 1797 - 359
    assert torch.equal(data.validation.images, data.test.images)


def test_a_stratified_share_rounds_in_each_class():
    targets = torch.tensor([0] * 10 + [1] * 20 + [2] * 5)
    chosen = targets[stratified_share(targets, 0.3)].bincount()
    assert chosen.tolist() == [3, 6, 2]
