"""torchvision's data sets: small files in the real layouts, of one kind each, beside what torchvision reads itself."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor

from runner.data.torchvision_data import torchvision_data
from tests.data.test_fashion_mnist import write_files

CPU = torch.device("cpu")
FILES = {"num_workers": 0, "image_size": 16, "test_size": 16, "test_resize": 16}


def picture(seed, size=(24, 20), mode="RGB"):
    """A smooth image that JPEG keeps."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).convert(mode)


def write_svhn(root, monkeypatch):
    """train_32x32.mat and test_32x32.mat, whose digit 0 has the class 10."""
    splits = {}
    for split, number in (("train", 40), ("test", 20)):
        file = root / f"{split}_32x32.mat"
        images = np.random.default_rng(number).integers(0, 256, (32, 32, 3, number), dtype=np.uint8)
        savemat(file, {"X": images, "y": np.arange(number)[:, None] % 10 + 1})
        splits[split] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)


def write_kmnist(root, monkeypatch):
    write_files(root / "KMNIST/raw")


def write_emnist(root, monkeypatch):
    """Letters, whose classes begin with 1; the files are named by the split."""
    for file in [*write_files(root / "EMNIST/raw").iterdir()]:
        split, rest = file.name.split("-", 1)
        if "labels" in rest:
            content = file.read_bytes()
            file.write_bytes(content[:8] + bytes(value + 1 for value in content[8:]))
        file.rename(file.with_name(f"emnist-letters-{'train' if split == 'train' else 'test'}-{rest}"))


def write_eurosat(root, monkeypatch):
    """A folder a class, and no splits."""
    for label, name in enumerate(("Forest", "River")):
        folder = root / "eurosat/2750" / name
        folder.mkdir(parents=True)
        for index in range(20):
            picture(100 * label + index).save(folder / f"{name}_{index:02}.jpg")


def write_flowers(root, monkeypatch):
    """Images in one folder, and labels and splits in MATLAB's format."""
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for index in range(1, 61):
        picture(index).save(folder / "jpg" / f"image_{index:05}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.arange(60)[None] % 3 + 1})
    splits = {"trnid": np.arange(1, 31), "valid": np.arange(31, 46), "tstid": np.arange(46, 61)}
    savemat(folder / "setid.mat", {key: value[None] for key, value in splits.items()})
    sums = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in ("imagelabels.mat", "setid.mat")}
    named = {key: (file, sums.get(file)) for key, (file, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", named)


def write_pets(root, monkeypatch):
    """Images, a list a split, and masks of the values 1 to 3."""
    folder = root / "oxford-iiit-pet"
    for part in ("images", "annotations/trimaps"):
        (folder / part).mkdir(parents=True)
    for split, numbers in (("trainval", range(20)), ("test", range(20, 30))):
        lines = []
        for index in numbers:
            name = f"{('Bengal', 'pug')[index % 2]}_{index}"
            picture(index).save(folder / "images" / f"{name}.jpg")
            mask = np.random.default_rng(index).integers(1, 4, (20, 24), dtype=np.uint8)
            Image.fromarray(mask).save(folder / "annotations/trimaps" / f"{name}.png")
            lines.append(f"{name} {index % 2 + 1} {index % 2 + 1} 1\n")
        (folder / f"annotations/{split}.txt").write_text("".join(lines))


def write_voc(root, monkeypatch):
    """Images and masks with a palette, in which 255 is the border of an object."""
    folder = root / "VOCdevkit/VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    for split, number in (("train", 20), ("val", 10)):
        names = [f"2007_{split}{index:03}" for index in range(number)]
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))
        for index, name in enumerate(names):
            picture(index, (30 + index, 20)).save(folder / "JPEGImages" / f"{name}.jpg")
            values = np.random.default_rng(index).integers(0, 21, (20, 30 + index), dtype=np.uint8)
            values[:3] = 255
            mask = Image.fromarray(values)
            mask.putpalette([value // 3 for value in range(768)])
            mask.save(folder / "SegmentationClass" / f"{name}.png")


LAYOUTS = {  # how the files are written; further arguments; those of torchvision's test split; classes
    "SVHN": (write_svhn, {}, {"split": "test"}, 10),
    "KMNIST": (write_kmnist, {}, {"train": False}, 10),
    "EMNIST": (write_emnist, {"split": "letters"}, {"train": False}, 10),
    "Flowers102": (write_flowers, {}, {"split": "test"}, 3),
    "OxfordIIITPet": (write_pets, {}, {"split": "test"}, 2),
    "EuroSAT": (write_eurosat, {}, None, 2),
    "VOCSegmentation": (write_voc, {}, {"image_set": "val"}, 21),
}


@pytest.mark.parametrize("name", ["SVHN", "KMNIST", "EMNIST"])
def test_small_images_are_kept_in_memory_as_torchvision_reads_them(name, tmp_path, monkeypatch):
    write, settings, test_split, num_classes = LAYOUTS[name]
    write(tmp_path, monkeypatch)
    data = torchvision_data(class_name=name, root=str(tmp_path), settings=settings, validation=0.25)
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (30, 10, 20, num_classes)
    source = getattr(datasets, name)(str(tmp_path), **settings, **test_split)
    for index in range(len(source)):
        image, target = source[index]
        assert torch.equal(data.test.images[index], pil_to_tensor(image))
        assert data.class_names[data.test.targets[index]] == (str(target) if name == "SVHN" else source.classes[target])
    assert data.class_names[0] == {"SVHN": "0", "KMNIST": "o", "EMNIST": "a"}[name]


@pytest.mark.parametrize("name", ["Flowers102", "OxfordIIITPet"])
def test_files_are_read_as_torchvision_reads_them(name, tmp_path, monkeypatch):
    write, settings, test_split, num_classes = LAYOUTS[name]
    write(tmp_path, monkeypatch)
    data = torchvision_data(class_name=name, root=str(tmp_path), settings=settings, validation=0.2, **FILES)
    source = getattr(datasets, name)(str(tmp_path), **settings, **test_split)
    assert data.num_classes == num_classes
    images, targets = zip(*data.evaluation_batches("test", batch_size=4, device=CPU), strict=True)
    assert torch.cat(targets).tolist() == [source[index][1] - min(source._labels) for index in range(len(source))]
    pixels = torch.cat(images) * data.std.view(3, 1, 1) + data.mean.view(3, 1, 1)
    for index, found in enumerate(pixels):
        image = source[index][0]
        expected = pil_to_tensor(image.resize((19, 16), Image.Resampling.BILINEAR)).float() / 255
        assert min((found - expected[:, :, left : left + 16]).abs().max() for left in (1, 2)) < 1e-2
    (images, _), *_ = data.train_batches(batch_size=4, seed=0, device=CPU).epoch(0)
    assert images.shape == (4, 3, 16, 16)


def test_a_set_without_splits_has_a_fifth_for_the_test(tmp_path, monkeypatch):
    write_eurosat(tmp_path, monkeypatch)
    data = torchvision_data(class_name="EuroSAT", root=str(tmp_path), validation=0.25, **FILES)
    parts = [{place for place, _ in getattr(data, split)} for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [24, 8, 8]
    assert len(set.union(*parts)) == 40
    assert sum(target for _, target in data.test) == 4
    assert "8 images of it are set apart for the test" in data.findings.notes[0][1]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("VOCSegmentation", {}),
        ("OxfordIIITPet", {"settings": {"target_types": "segmentation"}, "mask_values": [1, 2, 3]}),
    ],
)
def test_masks_are_those_of_the_files(name, options, tmp_path, monkeypatch):
    write, _, test_split, _ = LAYOUTS[name]
    write(tmp_path, monkeypatch)
    data = torchvision_data(class_name=name, root=str(tmp_path), num_workers=0, image_size=[16, 24], **options)
    first = options.get("mask_values", [0])[0]
    source = getattr(datasets, name)(str(tmp_path), **options.get("settings", {}), **test_split)
    labels = [mask for _, masks in data.evaluation_batches("test", batch_size=1, device=CPU) for mask, _ in masks]
    assert len(labels) == len(source) == 10
    for index, found in enumerate(labels):
        expected = np.array(source[index][1]).astype(int)
        assert np.array_equal(found, np.where(expected == 255, 255, expected - first))
    (images, masks), *_ = data.train_batches(batch_size=2, seed=0, device=CPU).epoch(0)
    assert (images.shape, masks.shape) == ((2, 3, 16, 24), (2, 16, 24))
    assert data.num_classes == (21 if name == "VOCSegmentation" else 3)


def test_small_images_come_in_the_size_and_the_channels_asked_for(tmp_path, monkeypatch):
    write_svhn(tmp_path, monkeypatch)
    data = torchvision_data(class_name="SVHN", root=str(tmp_path), image_size=[16, 24], channels=1, validation=0.5)
    assert data.train.images.shape[1:] == data.image_shape == (1, 16, 24)
    write_kmnist(tmp_path, monkeypatch)
    data = torchvision_data(class_name="KMNIST", root=str(tmp_path), channels=3, validation="test")
    assert torch.equal(data.test.images[:, 0], data.test.images[:, 2])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("KMNST", {}, r"class_name=KMNST: torchvision.datasets has no such class. Did you mean KMNIST\?"),
        ("KMNIST", {"test_resize": 30}, r"test_resize=30: the images of KMNIST are kept in memory, on which it has no"),
        ("KMNIST", {"num_classes": 3}, r"num_classes=3: the images of KMNIST are kept in memory"),
        ("Flowers102", {"crop_padding": 4}, r"crop_padding=4: the images of Flowers102 lie in files"),
        ("VOCSegmentation", {"random_erasing": 0.5}, r"random_erasing=0.5: the images of VOCSegmentation have masks"),
        ("OxfordIIITPet", {"settings": {"target_types": "segmentation"}}, r"num_classes=null: how many classes the"),
        ("OxfordIIITPet", {"settings": {"x": 1}}, r"cannot open it \(.*'x'"),
        (
            "OxfordIIITPet",
            {"settings": {"target_types": ["category", "binary-category"]}},
            r"no images with a class or a",
        ),
        ("EMNIST", {}, r"dataset.class_name=EMNIST dataset.settings=\{\}: torchvision cannot open it \(.*split"),
        ("EMNIST", {"settings": {"split": "words"}}, r"cannot open it \(Unknown value 'words'"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, message, tmp_path, monkeypatch):
    if name in LAYOUTS:
        LAYOUTS[name][0](tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=message):
        torchvision_data(class_name=name, root=str(tmp_path), **options)


def test_missing_files_are_told_with_the_class_and_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset.root=.*: SVHN is not there.*torchvision.datasets.SVHN says"):
        torchvision_data(class_name="SVHN", root=str(tmp_path / "none"), download=False)
    assert not (tmp_path / "none").exists()


BASE = ("dataset=torchvision", "dataset.root=.", "train.max_steps=1", "train.global_batch_size=4")
BASE += ("wandb.mode=disabled", "train.device=cpu", "dataset.num_workers=0")
SCENES = ("dataset.class_name=VOCSegmentation", "dataset.image_size=32")


def test_each_kind_trains_from_the_command_line(runner, tmp_path, monkeypatch):
    write_kmnist(tmp_path, monkeypatch)
    write_voc(tmp_path, monkeypatch)
    outcome = runner(*BASE, "model=resnet20", "dataset.class_name=KMNIST", "dataset.validation=0.25", "name=small")
    assert outcome.code == 0, outcome.err
    assert "KMNIST: 30 training, 10 validation, 20 test images of 28x28, 10 classes" in outcome.out
    outcome = runner(*BASE, *SCENES, "model=deeplabv3plus_resnet18", "train.dice_weight=1")
    assert outcome.code == 0, outcome.err
    assert "mean IoU" in outcome.out
    assert "torchvision-VOCSegmentation-deeplabv3plus_resnet18-batchnorm" in outcome.out.replace("\n", "")


def test_a_model_a_loss_or_a_method_of_the_other_task_is_refused(runner, tmp_path, monkeypatch):
    write_kmnist(tmp_path, monkeypatch)
    write_voc(tmp_path, monkeypatch)
    for overrides, message in (
        (("model=resnet20", *SCENES), "model=resnet20: it gives one class for an image"),
        (("model=deeplabv3plus_resnet18",), "model=deeplabv3plus_resnet18: it gives a class for each pixel"),
        (("model=resnet20", "train.dice_weight=1"), "train.dice_weight=1.0: it weighs a loss of segmentation"),
        (("model=deeplabv3plus_resnet18", "regularization=mixup", *SCENES), "regularization=mixup: it mixes the"),
    ):
        outcome = runner(*BASE, "dataset.validation=0.5", *overrides)
        assert outcome.code == 2, outcome.out
        assert message in outcome.err
    assert not (tmp_path / "outputs").exists()
