"""Folders of images: small ones made here in the real layout, whole and damaged."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference

from runner.config.limits import LIMITS
from runner.config.text import SettingError
from runner.data.image_folder import image_folder, imagenet
from runner.data.image_reading import read_image
from runner.data.image_transforms import evaluation_transform, train_transform
from runner.experiment.builders import build_data

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat")
SMALL = {"image_size": 24, "test_size": 24, "test_resize": 32, "num_workers": 0}
# the mean of these is a whole number of bytes
MEAN, STD = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
AUGMENTED = {"rand_augment_layers": 2, "rand_augment_magnitude": 20, "random_erasing": 0.5}


def picture(seed, mode="RGB", size=(40, 30)):
    """A smooth image of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).convert(mode)


@pytest.fixture
def root(tmp_path):
    """Three classes with 10 images each in train and 3 each in val: odd sizes, JPEG and PNG, several modes."""
    kinds = (("RGB", "JPEG"), ("L", "jpg"), ("CMYK", "jpeg"), ("RGBA", "png"), ("P", "png"), ("LA", "PNG"))
    for folder, number in (("train", 10), ("val", 3)):
        for label, name in enumerate(CLASSES):
            place = tmp_path / folder / name
            place.mkdir(parents=True)
            for i in range(number):
                mode, ending = kinds[(i + label) % len(kinds)]
                picture(100 * label + i, mode, (20 + 7 * i, 51 - 4 * i)).save(place / f"{i:02}.{ending}")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    return tmp_path


def data_of(root, **options):
    return image_folder(root=str(root), **{**SMALL, **options})


def drawn(data, epoch=0, start=0):
    images, targets = zip(*data.train_batches(batch_size=6, seed=3, device=CPU).epoch(epoch, start), strict=True)
    return torch.cat(images), torch.cat(targets)


def test_the_settings_of_the_command_line_arrive(root, composed):
    overrides = ("dataset.mean=[0.2,0.4,0.6]", "dataset.num_workers=0", "dataset.max_unreadable=3")
    data = build_data(composed("dataset=image_folder", f"dataset.root={root}", *overrides).dataset)
    assert (data.name, data.image_size, data.num_workers, data.max_unreadable) == ("image_folder", 224, 0, 3)
    torch.testing.assert_close(data.mean, torch.tensor(MEAN))
    with pytest.raises(SettingError, match=r"dataset\.root=.*: no synset"):
        build_data(composed("dataset=imagenet", f"dataset.root={root}").dataset)


def test_splits_and_classes_are_those_of_the_folders(root):
    data = data_of(root)
    assert (data.num_classes, data.class_names, data.image_size) == (3, CLASSES, 24)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [27, 3, 9]
    assert sorted(target for _, target in data.validation) == [0, 1, 2]
    assert not set(data.train) & set(data.validation)
    listed = {str(path) for path in (root / "train").glob("*/*") if path.suffix != ".txt"}
    assert {path for path, _ in (*data.train, *data.validation)} == listed
    for path, target in (*data.train, *data.test):
        assert path.split("/")[-2] == CLASSES[target]
    whole = data_of(root, validation="test")
    assert (len(whole.train), whole.validation, whole.validation_source) == (30, whole.test, "test")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_test_images_are_resized_and_cropped_as_torchvision_does_it(root, interpolation):
    data = data_of(root, interpolation=interpolation, mean=MEAN, std=STD)
    found = list(data.evaluation_batches("test", batch_size=4, device=CPU))
    images, targets = torch.cat([images for images, _ in found]), torch.cat([targets for _, targets in found])
    assert targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for image, (path, _) in zip(images, data.test, strict=True):
        with Image.open(path) as file:
            resized = reference.resize(file.convert("RGB"), 32, reference.InterpolationMode(interpolation))
        expected = reference.normalize(reference.to_tensor(reference.center_crop(resized, 24)), MEAN, STD)
        torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-5)
    assert not data.unreadable


def test_augmented_batches_do_not_depend_on_the_workers_or_the_start(root):
    whole = drawn(data_of(root, **AUGMENTED), epoch=1)
    again = drawn(data_of(root, **AUGMENTED), epoch=1)
    workers = drawn(data_of(root, **AUGMENTED, num_workers=2), epoch=1)
    rest = drawn(data_of(root, **AUGMENTED, num_workers=2), epoch=1, start=2)
    assert len(whole[1]) == 24
    for i in range(2):
        assert torch.equal(whole[i], again[i])
        assert torch.equal(whole[i], workers[i])
        assert torch.equal(whole[i][12:], rest[i])
    assert not torch.equal(whole[0], drawn(data_of(root, **AUGMENTED), epoch=2)[0])


def transform(image, **options):
    defaults = {"image_size": 24, "scale_min": 1.0, "flip": False, "rand_augment_layers": 0}
    defaults |= {"rand_augment_magnitude": 0, "random_erasing": 0.0, "interpolation": "bilinear", "fill": (9, 8, 7)}
    return train_transform(**{**defaults, **options})(image)


def test_a_crop_of_the_whole_image_is_the_image():
    image = picture(0, size=(24, 24))
    torch.manual_seed(0)
    outcomes = [transform(image, flip=True) for _ in range(200)]
    whole = [torch.equal(outcome, reference.pil_to_tensor(image)) for outcome in outcomes]
    mirrored = [torch.equal(outcome, reference.pil_to_tensor(image).flip(2)) for outcome in outcomes]
    # a crop of the whole area is square, and so possible, with a probability of a few per cent only; then the fallback
    assert any(whole)
    assert any(mirrored)
    assert not any(torch.equal(transform(image), reference.pil_to_tensor(image).flip(2)) for _ in range(50))


def test_crops_take_the_share_of_the_area_that_is_set():
    """Of a ramp that tells each pixel's column, the crop's width can be read, and its height of one across."""
    ramp = np.broadcast_to(np.linspace(0, 255, 256), (256, 256)).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp, ramp.T, 0 * ramp], 2))
    torch.manual_seed(0)
    shares = []
    for _ in range(100):
        columns, rows, _ = transform(image, scale_min=0.25).float()
        spread = [float(channel.max() - channel.min() + 1) / 256 for channel in (columns, rows)]
        shares.append(spread[0] * spread[1])
    assert 0.15 < min(shares) < 0.35
    assert max(shares) > 0.8


def test_what_is_erased_is_zero_after_normalization(root):
    data = data_of(root, random_erasing=1.0, mean=MEAN, std=STD)
    images, _ = drawn(data)
    erased = (images.abs() < 1e-5).all(1).float().mean((1, 2))
    assert ((erased > 0.01) & (erased < 0.5)).sum() >= len(erased) - 1  # a rectangle that does not fit is given up
    unerased, _ = drawn(data_of(root, mean=MEAN, std=STD))
    assert (unerased.abs() < 1e-5).all(1).float().mean() < 0.01


def test_rand_augment_changes_more_the_stronger_it_is_and_fills_with_the_mean_colour():
    image = picture(0, size=(24, 24))
    flat = Image.new("RGB", (24, 24), (9, 8, 7))

    def change(magnitude):
        torch.manual_seed(0)
        augmented = [
            transform(image, rand_augment_layers=1, rand_augment_magnitude=magnitude, scale_min=1.0) for _ in range(60)
        ]
        torch.manual_seed(0)
        plain = [transform(image, rand_augment_layers=1, rand_augment_magnitude=0) for _ in range(60)]
        return sum((one.float() - two.float()).abs().mean() for one, two in zip(augmented, plain, strict=True))

    assert 0 == change(0) < change(10) < change(30)
    torch.manual_seed(0)
    outcomes = [transform(flat, rand_augment_layers=1, rand_augment_magnitude=30) for _ in range(60)]
    # an image of the fill's colour is changed by operations on colours, and by no shear, shift or turn: one colour each
    assert all(len(outcome.flatten(1).unique(dim=1).T) == 1 for outcome in outcomes)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "LA", "P", "1"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    file = tmp_path / f"image.{'jpg' if mode in ('L', 'CMYK') else 'png'}"
    picture(0, mode).save(file)
    image = read_image(str(file))
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert np.abs(np.asarray(image, float) - np.asarray(picture(0, mode).convert("RGB"), float)).mean() < 8


def test_transparent_palettes_are_read_without_a_warning(tmp_path):
    picture(0, "P").save(tmp_path / "image.png", transparency=bytes(range(256)))
    assert np.array_equal(read_image(str(tmp_path / "image.png")), picture(0, "P").convert("RGB"))


def damage(root):
    """Five files of the training folder and one of val that cannot be read; what their reasons must contain."""
    image, whole = root / "train" / "ant", (root / "train" / "ant" / "00.JPEG").read_bytes()
    (image / "cut.jpg").write_bytes(whole[:-100])
    (image / "text.jpg").write_text("this is no image")
    (image / "empty.jpg").write_bytes(b"")
    Image.fromarray(np.full((5, 5), 1000, dtype=np.uint16)).save(image / "deep.png")
    png = (root / "train" / "ant" / "03.png").read_bytes()
    (image / "cut.png").write_bytes(png[: len(png) // 2])
    shutil.copy(image / "text.jpg", root / "val" / "bee" / "text.jpg")
    reasons = {"cut.jpg": "truncated", "text.jpg": "cannot identify", "empty.jpg": "cannot identify"}
    return {**reasons, "deep.png": "more than 8 bits", "cut.png": "truncated"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_files_are_told_and_batches_keep_their_size(root, num_workers):
    reasons = damage(root)
    data = data_of(root, validation="test", num_workers=num_workers)
    assert (len(data.train), len(data.test)) == (35, 10)
    batches = data.train_batches(batch_size=7, seed=0, device=CPU)
    assert [len(targets) for _, targets in batches.epoch(0)] == [7] * 5
    of_val = data.unreadable.pop(str(root / "val" / "bee" / "text.jpg"))  # was found before
    assert "cannot identify" in of_val
    found = {path.removeprefix(f"{root}/train/ant/"): reason for path, reason in data.unreadable.items()}
    assert found.keys() == reasons.keys()
    assert [name for name, part in reasons.items() if part not in found[name]] == []
    seen = torch.cat([targets for _, targets in data.evaluation_batches("test", batch_size=4, device=CPU)])
    assert seen.bincount().tolist() == [3, 3, 3]
    assert len(data.unreadable) == 6


def test_too_many_damaged_files_end_the_run(root):
    damage(root)
    data = data_of(root, validation="test", max_unreadable=4)
    with pytest.raises(RuntimeError, match=r"dataset\.max_unreadable=4: 5 files .*train/ant/.*\. Repair or"):
        drawn(data)


def remove(root, *names):
    for name in names:
        shutil.rmtree(root / name)


def spoil(root, change):
    """Make the folder incomplete in one way; returns what the message must say."""
    match change:
        case "nothing":
            remove(root, "train", "val")
            return "there is no folder train"
        case "no val":
            remove(root, "val")
            return "there is no folder val"
        case "val is flat":
            remove(root, "val")
            (root / "val").mkdir()
            picture(0).save(root / "val" / "1.jpg")
            return "no folder of a class is in val"
        case "train is a file":
            remove(root, "train")
            (root / "train").write_text("")
            return "there is no folder train"
        case "class missing in val":
            remove(root, "val/bee")
            return "bee of train is missing in val"
        case "class missing in train":
            remove(root, "train/ant", "train/bee")
            return "ant, bee of val is missing in train"
        case "empty class":
            remove(root, "val/cat")
            (root / "val" / "cat").mkdir()
            return "no image is in val/cat"
        case "no images":
            for file in (root / "train").glob("*/*"):
                file.rename(file.with_suffix(".txt"))
            return "no image is in train/ant, train/bee, train/cat"


WAYS = ("nothing", "no val", "val is flat", "train is a file", "class missing in val", "class missing in train")


@pytest.mark.parametrize("change", [*WAYS, "empty class", "no images"])
def test_an_incomplete_set_says_what_is_missing_where(root, change):
    expected = spoil(root, change)
    with pytest.raises(FileNotFoundError) as error:
        data_of(root)
    message = str(error.value)
    assert message.startswith(f"dataset.root={root}: in {root.resolve()}: {expected}")
    assert "Put one folder a class with its images into train and into val" in message


@pytest.fixture
def synsets(tmp_path):
    """Folders in ImageNet's layout: 1,000 synsets, the very same tiny JPEG in each."""
    picture(0, size=(8, 8)).save(tmp_path / "image.JPEG")
    content = (tmp_path / "image.JPEG").read_bytes()
    for folder, number in (("train", 2), ("val", 1)):
        for synset in range(1000):
            place = tmp_path / folder / f"n{1440764 + synset:08}"
            place.mkdir(parents=True)
            for i in range(number):
                (place / f"{i}.JPEG").write_bytes(content)
    return tmp_path


def test_imagenet_is_a_folder_of_a_thousand_synsets(synsets):
    data = imagenet(root=str(synsets), validation="test")
    assert (data.name, data.num_classes, data.class_names[0]) == ("imagenet", 1000, "n01440764")
    assert [len(split) for split in (data.train, data.test)] == [2000, 1000]
    for folder in ("train", "val"):
        shutil.rmtree(synsets / folder / "n01440764")
    with pytest.raises(FileNotFoundError, match=r"999 of 1,000 synsets in train\. Unpack .*ILSVRC2012_img_train\.tar"):
        imagenet(root=str(synsets))


def test_other_folders_are_not_taken_for_imagenet(root):
    with pytest.raises(FileNotFoundError, match=r"ant, bee, cat in train: no synset\. .* dataset=image_folder"):
        imagenet(root=str(root))
    shutil.rmtree(root / "val")
    with pytest.raises(FileNotFoundError, match=r"there is no folder val\. Unpack .*ILSVRC2012_img_val\.tar"):
        imagenet(root=str(root))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_resize": 23}, r"dataset\.test_resize=23: smaller than the crop of it, dataset\.test_size=24"),
        ({"scale_min": 1.5}, r"dataset\.scale_min=1\.5: it is a share of the image's area, at most 1"),
        ({"mean": (0.5,)}, r"dataset\.mean=\[0\.5\]: it must be 3 numbers"),
        ({"mean": (124, 116, 104)}, r"dataset\.mean=\[124, 116, 104\]: it must be 3 numbers of the range 0 to 1"),
        ({"std": (0.2, 0.2, 0.0)}, r"dataset\.std=\[0\.2, 0\.2, 0\.0\]: .* none of them 0"),
        ({"validation": 0.01}, r"dataset\.validation=0\.01: that share .* is none"),
    ],
)
def test_settings_that_do_not_fit_are_refused(root, options, message):
    with pytest.raises(ValueError, match=message):
        data_of(root, **options)


@pytest.mark.parametrize("interpolation", LIMITS["dataset"]["interpolation"].choices)
def test_every_interpolation_of_the_table_can_be_chosen(interpolation):
    image = picture(0)
    assert transform(image, interpolation=interpolation, rand_augment_layers=2).shape == (3, 24, 24)
    assert evaluation_transform(size=24, resize=30, interpolation=interpolation)(image).shape == (3, 24, 24)


def test_grey_images_have_one_channel_and_the_average_statistics(root):
    data = data_of(root, channels=1)
    images, _ = drawn(data)
    assert images.shape[1:] == (1, 24, 24)
    torch.testing.assert_close(data.mean, torch.tensor([(0.485 + 0.456 + 0.406) / 3]))
    torch.testing.assert_close(data.std, torch.tensor([(0.229 + 0.224 + 0.225) / 3]))
    path, target = data.test[4]
    image, same_target = data.load_evaluation((path, target))
    expected = evaluation_transform(size=24, resize=32, interpolation="bilinear")(Image.open(path).convert("L"))
    assert target == same_target
    assert torch.equal(image, expected)
    augmented = data_of(root, channels=1, mean=[0.4], std=[0.3], **AUGMENTED)
    assert drawn(augmented)[0].shape[1:] == (1, 24, 24)


def test_crops_need_not_be_square(root):
    data = data_of(root, image_size=[16, 40], test_size=(16, 32), test_resize=20)
    images, _ = drawn(data)
    assert images.shape[1:] == data.image_shape == data.example_input().shape[1:] == (3, 16, 40)
    (images, _), *_ = data.evaluation_batches("test", batch_size=3, device=CPU)
    assert images.shape == (3, 3, 16, 32)


@pytest.mark.parametrize(
    ("size", "resized"), [((100, 50), (50, 25)), ((40, 40), (50, 50)), ((20, 60), (50, 150)), ((100, 25), (100, 25))]
)
def test_an_evaluation_covers_a_crop_that_is_not_square(size, resized):
    """Of 16x32 pixels and a test_resize of 25: an image (width, height) is resized to cover 25x50, not more."""
    image = picture(1, size=size)
    found = evaluation_transform(size=(16, 32), resize=25, interpolation="bilinear")(image)
    pixels = reference.pil_to_tensor(image.resize(resized, Image.Resampling.BILINEAR))
    assert torch.equal(found, reference.center_crop(pixels, [16, 32]))


def test_a_square_crop_is_resized_as_torchvision_does():
    image = picture(1, size=(61, 47))
    found = evaluation_transform(size=24, resize=30, interpolation="bilinear")(image)
    assert torch.equal(found, reference.pil_to_tensor(reference.center_crop(reference.resize(image, 30), [24, 24])))
