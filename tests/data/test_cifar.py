"""CIFAR from torchvision's files: small ones made here in the real layout, and none at all."""

import hashlib
import pickle

import numpy as np
import pytest
import torchvision

from runner.data.cifar import cifar

PER_FILE = 40


@pytest.fixture
def cifar10_files(tmp_path, monkeypatch):
    """cifar-10-batches-py as published, with 40 images a file; torchvision's checksums are made to fit."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sums, written = {}, {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = rng.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8)
        labels = [i % 10 for i in range(PER_FILE)]
        written[name] = (data, labels)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    for file in folder.iterdir():
        sums[file.name] = hashlib.md5(file.read_bytes()).hexdigest()
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[name, sums[name]] for name, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["batches.meta"]})
    return tmp_path, written


def test_images_and_labels_are_those_of_the_files(cifar10_files):
    root, written = cifar10_files
    data = cifar("cifar10", root=str(root), download=False)
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (180, 20, 40, 10)
    expected = written["test_batch"][0].reshape(-1, 3, 32, 32)
    assert np.array_equal(data.test.images.numpy(), expected)
    assert data.test.targets.tolist() == written["test_batch"][1]
    assert data.validation.targets.bincount().tolist() == [2] * 10
    assert cifar("cifar10", root=str(root), download=False, validation="test").train.images.shape[0] == 200


def test_a_missing_data_set_says_what_to_put_where(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        cifar("cifar100", root=str(tmp_path / "nowhere"), download=False)
    message = str(error.value)
    assert "dataset.root=" in message
    assert "cifar-100-python" in message
    assert str((tmp_path / "nowhere").resolve()) in message


def test_a_download_that_fails_is_told(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(no route to host\)"):
        cifar("cifar10", root=str(tmp_path))


def test_a_damaged_file_is_not_read(cifar10_files):
    root, _ = cifar10_files
    file = root / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(FileNotFoundError, match="is not there, or not complete"):
        cifar("cifar10", root=str(root), download=False)


def test_another_image_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.image_size=64: the images of cifar10 are 32 pixels wide"):
        cifar("cifar10", root=str(tmp_path), image_size=64)
