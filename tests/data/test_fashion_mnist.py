"""Fashion-MNIST: small files in the published layout, in each of the places that are looked into, and damaged ones."""

import gzip
import struct

import pytest
import torch
from torchvision.datasets import FashionMNIST

from runner.data import fashion_mnist as module
from runner.data.fashion_mnist import fashion_mnist
from runner.data.splits import Split

SIZES = {"train": 40, "t10k": 20}


PACKAGE = module.PACKAGE_FOLDER


@pytest.fixture(autouse=True)
def package_folder(tmp_path, monkeypatch):
    """An empty folder in the place of that of Debian's package, which this machine may have."""
    monkeypatch.setattr(module, "PACKAGE_FOLDER", tmp_path / "package")
    return tmp_path / "package"


def write_files(folder, *, compressed=False):
    """The four files with random images, and classes 0 to 9 in turn."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for prefix, number in SIZES.items():
        images = torch.randint(256, (number, 28, 28), generator=generator, dtype=torch.uint8)
        header = struct.pack(">4I", 0x803, number, 28, 28)
        labels = struct.pack(">2I", 0x801, number) + bytes(index % 10 for index in range(number))
        for name, content in (("images-idx3", header + images.numpy().tobytes()), ("labels-idx1", labels)):
            file = folder / f"{prefix}-{name}-ubyte"
            if compressed:
                file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(content))
            else:
                file.write_bytes(content)
    return folder


@pytest.mark.parametrize("place", ["root", "below", "package"])
@pytest.mark.parametrize("compressed", [False, True])
def test_the_files_are_read_wherever_they_may_lie_as_torchvision_reads_them(place, compressed, tmp_path):
    root = tmp_path / "data"
    folder = {"root": root, "below": root / "FashionMNIST/raw", "package": tmp_path / "package"}[place]
    write_files(folder, compressed=compressed)
    data = fashion_mnist(root=str(root), download=False, validation=0.5, channels=3)
    write_files(tmp_path / "reference/FashionMNIST/raw")
    expected = FashionMNIST(str(tmp_path / "reference"), train=False)
    assert torch.equal(data.test.images, expected.data.unsqueeze(1).expand(-1, 3, -1, -1))
    assert torch.equal(data.test.targets, expected.targets)
    assert (data.num_classes, data.image_size, data.class_names[9]) == (10, 28, "ankle boot")


def test_the_root_comes_before_the_package(tmp_path, package_folder):
    write_files(tmp_path / "data")
    package_folder.mkdir()
    for file in (tmp_path / "data").iterdir():
        (package_folder / file.name).write_bytes(b"")
    assert len(fashion_mnist(root=str(tmp_path / "data"), validation="test").test) == 20


def test_without_files_and_network_the_three_ways_are_named(runner, tmp_path, monkeypatch, package_folder):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    outcome = runner("dataset=fashion_mnist", "model=resnet20", "wandb.mode=disabled", "train.device=cpu")
    assert outcome.code == 2
    assert "dataset.root=data: FashionMNIST is not there, or not complete, and could not be downloaded" in outcome.err
    for way in ("train-images-idx3-ubyte", str(tmp_path / "data"), str(package_folder), "dataset.download=true"):
        assert way in outcome.err
    assert "dataset-fashion-mnist" in outcome.err
    assert not any(tmp_path.iterdir())


def damage(file, change):
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("t10k-images-idx3-ubyte.gz", lambda content: content[:-50], "cannot be read"),
        ("train-labels-idx1-ubyte.gz", lambda content: b"text", "cannot be read"),
        ("train-images-idx3-ubyte", lambda content: content[:-1], "is damaged"),
        ("train-images-idx3-ubyte", lambda content: content[:10], "is damaged"),
        ("train-images-idx3-ubyte", lambda content: b"", "is damaged"),
        ("t10k-labels-idx1-ubyte", lambda content: content[:3] + b"\x03" + content[4:], "is damaged"),
        ("t10k-labels-idx1-ubyte", lambda content: content[:-1] + b"\x0a", "labels up to 10"),
        ("t10k-labels-idx1-ubyte", lambda content: struct.pack(">2I", 0x801, 19) + content[9:], "20 images and 19 lab"),
    ],
)
def test_a_damaged_file_is_named(name, change, message, tmp_path):
    folder = write_files(tmp_path / "data", compressed=name.endswith(".gz"))
    damage(folder / name, change)
    with pytest.raises(ValueError, match=message) as error:
        fashion_mnist(root=str(folder))
    assert str(folder) in str(error.value)


def test_a_part_of_the_training_images_has_as_many_of_each_class_and_leaves_the_other_splits(tmp_path):
    write_files(tmp_path / "data")
    whole, part = (fashion_mnist(root=str(tmp_path / "data"), validation=0.25, train_images=n) for n in (None, 10))
    assert part.train.targets.bincount().tolist() == [1] * 10
    images = {image.numpy().tobytes() for image in whole.train.images}
    assert {image.numpy().tobytes() for image in part.train.images} <= images
    for split in ("validation", "test"):
        assert torch.equal(getattr(part, split).images, getattr(whole, split).images)
    pixels = part.train.images.double() / 255
    assert part.mean.item() == pytest.approx(pixels.mean().item())
    assert part.std.item() == pytest.approx(pixels.std(correction=0).item())


def test_label_noise_gives_a_share_of_the_training_images_another_class(monkeypatch, tmp_path):
    targets = torch.arange(1000) % 10
    images = torch.randint(256, (1000, 1, 28, 28), dtype=torch.uint8)
    monkeypatch.setattr(module, "source_splits", lambda root, download: (Split(images, targets),) * 2)
    clean, noisy, again = (fashion_mnist(validation=0.1, label_noise=share) for share in (0.0, 0.4, 0.4))
    changed = noisy.train.targets != clean.train.targets
    assert changed.sum() == 360  # of 900
    assert torch.equal(noisy.train.targets, again.train.targets)
    assert torch.equal(noisy.train.images, clean.train.images)
    shifts = ((noisy.train.targets - clean.train.targets) % 10)[changed].bincount(minlength=10)
    assert shifts[0] == 0
    assert shifts[1:].min() > 20  # each other class, 40 expected
    for split in ("validation", "test"):
        assert torch.equal(getattr(noisy, split).targets, getattr(clean, split).targets)


@pytest.mark.parametrize("number", [1000, 3])
def test_too_many_training_images_and_too_few_for_all_classes_are_refused(number, tmp_path):
    write_files(tmp_path / "data")
    with pytest.raises(ValueError, match=rf"^dataset\.train_images={number}: .* training images; choose another"):
        fashion_mnist(root=str(tmp_path / "data"), validation=0.25, train_images=number)


@pytest.mark.skipif(not PACKAGE.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_published_set_has_its_published_mean_and_deviation(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "PACKAGE_FOLDER", PACKAGE)
    data = fashion_mnist(root=str(tmp_path), download=False, validation="test", check_duplicates=False)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.train.targets.bincount().tolist() == [6_000] * 10
    assert (round(data.mean.item(), 4), round(data.std.item(), 4)) == (0.2860, 0.3530)


def test_another_image_size_is_refused():
    with pytest.raises(ValueError, match=r"dataset\.image_size=32: the images of fashion_mnist are 28 pixels wide"):
        fashion_mnist(image_size=32)


def test_it_trains_from_the_command_line(runner, tmp_path):
    write_files(tmp_path / "data")
    outcome = runner(
        "dataset=fashion_mnist", "model=resnet20", "dataset.validation=0.5",
        "dataset.random_erasing=0.5",
        "train.global_batch_size=8", "train.max_steps=2", "train.device=cpu", "wandb.mode=disabled",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "fashion_mnist: 20 training, 20 validation, 20 test images of 28x28, 10 classes" in outcome.out
