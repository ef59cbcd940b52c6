"""Image and mask folders in the real layouts, made here: what lies in the files is what batches hold."""

import inspect
import pickle

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from runner.config.text import SettingError
from runner.config.validation import CONF
from runner.data import label_check
from runner.data import mask_folder as module
from runner.data.dataset import IGNORE_INDEX, SEGMENTATION
from runner.data.file_data import FileData, make_file_data
from runner.data.mask_folder import ade20k, mask_folder, scene_data
from runner.experiment.builders import build_data

CPU = torch.device("cpu")
NUM_TRAIN, NUM_TEST = 12, 3
STILL = {"scale_min": 1.0, "scale_max": 1.0, "max_class_share": 1.0, "flip": False, "photometric": False}
SMALL = {"num_classes": 4, "image_size": 24, "test_size": None, "num_workers": 0, "max_unreadable": 0}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def write_scenes(root, *, values=4, names=("training", "validation"), prefixes=("train_", "val_")):
    """Scenes of odd sizes with masks of all `values`; the pixels of each image are all its own number, in grey."""
    rng = np.random.default_rng(0)
    for split, prefix, number in zip(names, prefixes, (NUM_TRAIN, NUM_TEST), strict=True):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(number):
            size = (21 + index, 33 - index)
            name = f"{prefix}{index:08d}"
            # constant images survive JPEG; those with an odd number are files of one channel
            image = Image.fromarray(np.full(size, 10 * index, dtype=np.uint8))
            (image if index % 2 else image.convert("RGB")).save(root / "images" / split / f"{name}.jpg")
            mask = Image.fromarray(rng.integers(values, size=size, dtype=np.uint8))
            mask.save(root / "annotations" / split / f"{name}.png")
    return root


def mask_values(root, split, number, prefix):
    return np.array(Image.open(root / "annotations" / split / f"{prefix}{number:08d}.png"))


@pytest.fixture
def scenes(tmp_path):
    return write_scenes(tmp_path / "scenes")


def train_epoch(data, *, batch_size=2, epoch=0):
    return list(data.train_batches(batch_size=batch_size, seed=0, device=CPU).epoch(epoch))


def evaluated(data, split="test", batch_size=2):
    return list(data.evaluation_batches(split, batch_size=batch_size, device=CPU))


def grey_numbers(images):
    """The number of each image (B, 3, H, W), from its upper left pixel."""
    return ((images[:, 0, 0, 0] * STD[0] + MEAN[0]) * 25.5).round().int().tolist()


def test_a_share_of_the_training_scenes_is_set_apart(scenes):
    data = mask_folder(root=str(scenes), validation=0.25, **SMALL)
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 3, 3)
    assert not set(data.train) & set(data.validation)
    assert len({*data.train, *data.validation}) == NUM_TRAIN
    assert (data.task, data.num_classes, data.class_names, data.validation_source) == (SEGMENTATION, 4, (), "train")
    assert data.example_input().shape == (2, 3, 24, 24)
    assert mask_folder(root=str(scenes), validation=0.25, **SMALL).validation == data.validation
    published = mask_folder(root=str(scenes), validation="test", **SMALL)
    assert (len(published.train), published.validation, published.validation_source) == (12, published.test, "test")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_labels_of_the_test_split_are_those_of_the_files(scenes, num_workers):
    batches = evaluated(mask_folder(root=str(scenes), **SMALL | {"num_workers": num_workers}))
    assert [tuple(images.shape) for images, _ in batches] == [(1, 3, 21, 33), (1, 3, 22, 32), (1, 3, 23, 31)]
    assert [number for images, _ in batches for number in grey_numbers(images)] == [0, 1, 2]
    for index, (mask, size) in enumerate(label for _, labels in batches for label in labels):
        assert np.array_equal(mask.numpy(), mask_values(scenes, "validation", index, "val_"))
        assert (mask.dtype, size) == (torch.int64, tuple(mask.shape))
    assert batches[0][0].mean((0, 2, 3)).tolist() == pytest.approx((-MEAN / STD).tolist(), abs=1e-5)


def test_labels_keep_their_resolution_when_images_are_resized(scenes):
    batches = evaluated(mask_folder(root=str(scenes), **SMALL | {"test_size": 42}), batch_size=3)
    expected = [(42, 66), (42, 61), (42, 57)]  # 33/21, 32/22, 31/23 of the shorter side
    assert [tuple(images.shape) for images, _ in batches] == [(1, 3, *size) for size in expected]
    assert [size for _, labels in batches for _, size in labels] == expected
    assert [tuple(mask.shape) for _, labels in batches for mask, _ in labels] == [(21, 33), (22, 32), (23, 31)]


def test_training_batches_hold_every_scene_once(scenes):
    data = mask_folder(root=str(scenes), validation="test", **SMALL | STILL | {"image_size": 33})
    seen = []
    for images, masks in train_epoch(data, batch_size=4):
        assert (images.shape, masks.shape, masks.dtype) == ((4, 3, 33, 33), (4, 33, 33), torch.int64)
        for mask, number in zip(masks, grey_numbers(images), strict=True):
            expected = np.full((33, 33), IGNORE_INDEX)
            expected[: 21 + number, : 33 - number] = mask_values(scenes, "training", number, "train_")
            assert np.array_equal(mask.numpy(), expected)
            seen.append(number)
    assert sorted(seen) == list(range(NUM_TRAIN))


def test_an_augmented_epoch_does_not_depend_on_the_loader_processes(scenes):
    settings = SMALL | {"validation": "test"}
    epochs = [
        train_epoch(mask_folder(root=str(scenes), **settings | {"num_workers": workers}), epoch=epoch)
        for workers, epoch in ((0, 1), (2, 1), (0, 2))
    ]
    same = [torch.equal(a, b) for one, other in zip(*epochs[:2], strict=True) for a, b in zip(one, other, strict=True)]
    assert all(same)
    assert not torch.equal(epochs[0][0][0], epochs[2][0][0])


def test_what_reads_scenes_can_be_sent_to_a_process(scenes):
    data = mask_folder(root=str(scenes), **SMALL)
    sent = pickle.loads(pickle.dumps((data.load_train, data.load_evaluation, data.train[0])))
    assert sent == (data.load_train, data.load_evaluation, data.train[0])


def damage(scenes, kind, split, name):
    file = scenes / kind / split / name
    file.write_bytes(file.read_bytes()[:40])
    return file


def test_files_that_cannot_be_read_are_counted_and_replaced(scenes):
    first = damage(scenes, "images", "training", "train_00000009.jpg")
    second = damage(scenes, "annotations", "training", "train_00000001.png")
    data = mask_folder(root=str(scenes), validation="test", **SMALL | {"max_unreadable": 2})
    assert [len(images) for images, _ in train_epoch(data)] == [2] * 6
    images = {str(first), str(scenes / "images/training/train_00000001.jpg")}
    assert set(data.unreadable) == images
    assert f"the mask {second} cannot be read" in data.unreadable[min(images)]
    with pytest.raises(ValueError, match=r"dataset\.max_unreadable=1: 2 files cannot be read"):
        mask_folder(root=str(scenes), validation="test", **SMALL | {"max_unreadable": 1})


def test_a_scene_that_cannot_be_read_is_left_out_of_the_test(scenes):
    Image.new("L", (5, 5)).save(scenes / "annotations/validation/val_00000001.png")
    data = mask_folder(root=str(scenes), **SMALL | {"max_unreadable": 1})
    assert [number for images, _ in evaluated(data) for number in grey_numbers(images)] == [0, 2]
    assert list(data.unreadable.values()) == [
        f"the mask {scenes / 'annotations/validation/val_00000001.png'} has 5x5 pixels, the image 32x22"
    ]


def test_a_wrong_number_of_classes_shows_before_the_training(scenes):
    with pytest.raises(ValueError, match=r"^dataset\.num_classes=3: the mask \S+train_00000000\.png has the value 3"):
        mask_folder(root=str(scenes), **SMALL | {"num_classes": 3})


def test_a_value_beyond_the_classes_shows_before_the_training_or_when_it_is_read(scenes, monkeypatch):
    Image.new("L", (31, 23), 77).save(scenes / "annotations/validation/val_00000002.png")
    with pytest.raises(ValueError, match=r"val_00000002\.png has the value 77"):
        mask_folder(root=str(scenes), **SMALL)
    monkeypatch.setattr(label_check, "MAX_MASKS", 2)
    with pytest.raises(RuntimeError, match=r"val_00000002\.png has the value 77"):
        evaluated(mask_folder(root=str(scenes), **SMALL))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale_min": 3.0}, r"dataset\.scale_min=3\.0: larger than dataset\.scale_max=2\.0\."),
        ({"num_classes": 256}, r"dataset\.num_classes=256: masks are kept with at most 255 classes\."),
        ({"validation": 0.01}, r"dataset\.validation=0\.01: that share of the training images"),
    ],
)
def test_settings_that_do_not_fit_are_refused(scenes, settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        mask_folder(root=str(scenes), **SMALL | settings)


@pytest.fixture
def ade(tmp_path, monkeypatch):
    """ADEChallengeData2016 as published, with few images."""
    monkeypatch.setattr(module, "ADE20K_SIZES", (NUM_TRAIN, NUM_TEST))
    folder = write_scenes(tmp_path / "ADEChallengeData2016", values=151, prefixes=("ADE_train_", "ADE_val_"))
    (folder / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n")
    return folder


ADE = {key: value for key, value in SMALL.items() if key != "num_classes"}


@pytest.mark.parametrize("inside", [True, False])
def test_ade20k_has_150_classes_and_none_where_the_label_is_0(ade, inside):
    data = ade20k(root=str(ade if inside else ade.parent), **ADE)
    assert (data.name, data.num_classes, data.class_names) == ("ade20k", 150, ())
    labels = [label for _, labels in evaluated(data) for label in labels]
    assert len(labels) == NUM_TEST
    for index, (mask, _) in enumerate(labels):
        values = mask_values(ade, "validation", index, "ADE_val_").astype(int)
        assert (values == 0).any()
        assert np.array_equal(mask.numpy(), np.where(values == 0, IGNORE_INDEX, values - 1))


def test_the_names_of_ade20ks_classes_are_those_of_its_table(ade):
    rows = ["1 \t0.1576  \t11664\t1172\t1\twall ", "2 \t0.1072  \t 6046\t 612\t1\tbuilding, edifice"]
    rows += [f"{index}\t0.0001\t1\t1\t0\tthing {index}" for index in range(3, 151)]
    table = ade / "objectInfo150.txt"
    table.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows, ""]))
    assert ade20k(root=str(ade), **ADE).class_names[:3] == ("wall", "building", "thing 3")
    table.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows[:2]]))
    with pytest.raises(ValueError, match=r"objectInfo150\.txt names 2 classes, not 150"):
        ade20k(root=str(ade), **ADE)


def test_an_incomplete_ade20k_is_refused(ade, monkeypatch):
    monkeypatch.setattr(module, "ADE20K_SIZES", (NUM_TRAIN, 2_000))
    message = r"3 of 2,000 images are in images/validation of \S+\. Unpack ADEChallengeData2016\.zip .* A part of it"
    with pytest.raises(FileNotFoundError, match=message):
        ade20k(root=str(ade), **ADE)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="12 of 20,210 images are in images/training"):
        ade20k(root=str(ade), **ADE)


@pytest.mark.parametrize("name", ["mask_folder", "ade20k"])
def test_a_missing_data_set_says_what_to_put_where(composed, tmp_path, name):
    root = tmp_path / "nowhere"
    config = composed(f"dataset={name}", f"dataset.root={root}", "model=deeplabv3plus_resnet18")
    with pytest.raises(
        SettingError, match=f"^dataset.root={root}: no folder training or train in {root}/images"
    ) as error:
        build_data(config.dataset)
    assert {
        "mask_folder": "images/training and images/validation (or train and val) with .jpg or .png files, and in annot",
        "ade20k": f"Unpack ADEChallengeData2016.zip of the MIT Scene Parsing Benchmark (the scene parsing release, not "
        f"the full data set) into {root}.",
    }[name] in str(error.value)


@pytest.mark.parametrize("name", ["mask_folder", "ade20k"])
def test_the_settings_of_yaml_are_those_of_the_functions(name):
    option = yaml.safe_load((CONF / "dataset" / f"{name}.yaml").read_text())
    settings = {key: value for key, value in option.items() if key not in ("_target_", "_kind_", "_ranges_")}
    parameters = inspect.signature(scene_data).parameters
    reading = inspect.signature(make_file_data).parameters
    read = {key: reading[key].default for key in ("validation", "max_unreadable", "check_duplicates")}
    read |= {key: getattr(FileData, key) for key in ("num_workers", "timeout_seconds")}
    known = {key: p.default for key, p in parameters.items() if p.default is not p.empty and key != "class_names"}
    if name == "ade20k":
        known = {
            key: value
            for key, value in known.items()
            if key not in ("num_classes", "ignore_label", "reduce_zero_label", "mask_values")
        }
    root = inspect.signature(getattr(module, name)).parameters["root"].default
    assert settings == {"name": name, "root": root, **known, **read}


def test_the_data_set_of_a_configuration_is_the_one_of_the_folder(composed, scenes):
    small = [f"dataset.{key}={'null' if value is None else value}" for key, value in SMALL.items()]
    config = composed("dataset=mask_folder", f"dataset.root={scenes}", "model=deeplabv3plus_resnet18", *small)
    data = build_data(config.dataset)
    assert (data.name, data.num_classes, data.image_size, len(data.train)) == ("mask_folder", 4, 24, 11)


def test_crops_need_not_be_square_and_images_may_be_grey(scenes):
    data = mask_folder(root=str(scenes), **SMALL | {"image_size": (16, 40)}, channels=1)
    for images, masks in train_epoch(data):
        assert images.shape == (2, *data.image_shape) == (2, 1, 16, 40)
        assert masks.shape == (2, 16, 40)
    (images, [(mask, _)]), *_ = evaluated(data, batch_size=1)
    assert images.shape[1] == 1
    assert np.array_equal(mask, mask_values(scenes, "validation", 0, "val_"))
