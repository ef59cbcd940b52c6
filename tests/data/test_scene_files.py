"""Masks and images as they lie in files, and which of them belong together."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from runner.data.dataset import IGNORE_INDEX, DataFault
from runner.data.file_finder import FileFinder
from runner.data.mask_labels import MaskLabels, read_values
from runner.data.scene_files import LoadScene, Scene, scene_splits
from runner.data.scene_transforms import EvaluationTransform

INDICES = np.array([[0, 1, 2], [3, 2, 0]])


def labels(num_classes=4, ignore_label=255, reduce_zero_label=False):
    return MaskLabels(num_classes=num_classes, ignore_label=ignore_label, reduce_zero_label=reduce_zero_label)


def read_mask(path, **settings):
    return labels(**settings).classes_of(read_values(str(path)), str(path))


def loading(num_classes=4, ignore_label=255, reduce_zero_label=False):
    return LoadScene(transform=EvaluationTransform(), labels=labels(num_classes, ignore_label, reduce_zero_label))


def grey(values, dtype=np.uint8):
    return Image.fromarray(np.array(values, dtype=dtype))


def palette(values):
    image = Image.frombytes("P", np.shape(values)[::-1], np.array(values, dtype=np.uint8).tobytes())
    image.putpalette([90, 0, 0, 0, 90, 0, 0, 0, 90, 7, 7, 7])  # colours that are no indices
    return image


def grey_of_few_bits(path, bits, row):
    """A grey PNG of one row with fewer than 8 bits a pixel, which Pillow reads but does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = bytes([sum(value << (8 - bits * (place + 1)) for place, value in enumerate(row))])
    header = struct.pack(">IIBBBBB", len(row), 1, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize(
    ("image", "bits"),
    [(grey(INDICES), {}), (grey(INDICES, np.uint16), {}), (palette(INDICES), {}), (palette(INDICES), {"bits": 2})],
    ids=["8-bit", "16-bit", "palette", "2-bit palette"],
)
def test_a_mask_is_read_as_indices_however_it_is_kept(tmp_path, image, bits):
    image.save(tmp_path / "mask.png", **bits)
    mask = read_mask(tmp_path / "mask.png")
    assert mask.dtype == torch.uint8
    assert mask.tolist() == INDICES.tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ignore_label": 254}, [0, 1, 2, 3, IGNORE_INDEX]),
        ({"ignore_label": 0, "num_classes": 255}, [IGNORE_INDEX, 1, 2, 3, 254]),
        ({"ignore_label": 254, "reduce_zero_label": True, "num_classes": 3}, [IGNORE_INDEX, 0, 1, 2, IGNORE_INDEX]),
        ({"ignore_label": 2, "reduce_zero_label": True, "num_classes": 255}, [IGNORE_INDEX, 0, IGNORE_INDEX, 2, 253]),
    ],
)
def test_values_become_class_indices(tmp_path, settings, expected):
    grey([[0, 1, 2, 3, 254]]).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", **settings).tolist() == [expected]


@pytest.mark.parametrize(
    ("value", "settings", "known"),
    [
        (4, {}, r"4, which is none of 0\.\.3, nor dataset\.ignore_label=255"),
        (5, {"reduce_zero_label": True}, r"5, which is none of 1\.\.4"),
        (255, {"ignore_label": None}, r"255, which is none of 0\.\.3, nor dataset\.ignore_label=None"),
        (259, {}, "259"),  # 3 in its last 8 bits
    ],
)
def test_a_value_beyond_the_classes_is_named_with_its_file(tmp_path, value, settings, known):
    grey([[1, value]], np.uint16).save(tmp_path / "odd.png")
    with pytest.raises(DataFault, match=rf"^dataset\.num_classes=4: the mask \S+odd\.png has the value {known}"):
        read_mask(tmp_path / "odd.png", **settings)


def test_grey_of_one_bit_is_read_as_0_and_1(tmp_path):
    grey_of_few_bits(tmp_path / "mask.png", 1, [0, 1, 1])
    assert read_mask(tmp_path / "mask.png").tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_refused_since_its_indices_are_lost(tmp_path, bits):
    grey_of_few_bits(tmp_path / "mask.png", bits, [0, 1])
    with pytest.raises(ValueError, match=r"mask\.png does not hold one class index a pixel in 1, 8 or 16 bits"):
        read_mask(tmp_path / "mask.png", num_classes=150)


def test_a_coloured_mask_is_refused(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"mask\.png .*mode RGB"):
        read_mask(tmp_path / "mask.png")


@pytest.fixture
def scene(tmp_path):
    grey(INDICES * 70).save(tmp_path / "image.png")
    grey(INDICES).save(tmp_path / "mask.png")
    return Scene(str(tmp_path / "image.png"), str(tmp_path / "mask.png"))


def test_a_grey_image_has_three_equal_channels(scene):
    image, mask = loading()(scene)
    assert image.tolist() == [(INDICES * 70).tolist()] * 3
    assert mask.tolist() == INDICES.tolist()


def test_a_coloured_image_keeps_its_pixels(scene):
    pixels = np.random.default_rng(0).integers(0, 256, (*INDICES.shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(scene.image)
    assert np.array_equal(loading()(scene)[0].permute(1, 2, 0).numpy(), pixels)


def test_a_mask_of_another_size_is_refused(scene):
    grey(INDICES.T).save(scene.mask)
    with pytest.raises(ValueError, match=r"mask\.png has 2x3 pixels, the image 3x2"):
        loading()(scene)


@pytest.mark.parametrize("damage", [lambda data: data[:50], lambda data: b"", lambda data: data[:8] + b"x" * 60])
def test_a_damaged_mask_is_told_by_its_name(scene, damage):
    with open(scene.mask, "rb") as file:
        data = file.read()
    with open(scene.mask, "wb") as file:
        file.write(damage(data))
    with pytest.raises(OSError, match=r"^the mask \S+mask\.png cannot be read \("):
        loading()(scene)


def empty_files(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def found(root):
    return scene_splits(root, finder=FileFinder(), place="dataset.root=x", remedy="Do this.")


@pytest.mark.parametrize("names", [("training", "validation"), ("train", "val")])
def test_images_and_masks_of_a_name_belong_together(tmp_path, names):
    train, val = names
    empty_files(tmp_path, f"images/{train}/b.jpg", f"images/{train}/a.PNG", f"images/{train}/._a.png")
    empty_files(tmp_path, f"annotations/{train}/a.png", f"annotations/{train}/b.png", f"annotations/{train}/notes.txt")
    empty_files(tmp_path, f"images/{val}/c.jpeg", f"annotations/{val}/c.png")
    assert found(tmp_path) == tuple(
        [
            Scene(str(tmp_path / "images" / split / image), str(tmp_path / "annotations" / split / mask))
            for image, mask in pairs
        ]
        for split, pairs in ((train, [("a.PNG", "a.png"), ("b.jpg", "b.png")]), (val, [("c.jpeg", "c.png")]))
    )


COMPLETE = [f"{kind}/{split}/a.png" for kind in ("images", "annotations") for split in ("training", "validation")]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], r"no folder training or train in \S+images\. "),
        (["images/a.png", "annotations/a.png"], r"no folder training or train in \S+images\. "),
        (["images/training/a.png"], r"no folder training or train in \S+annotations\. "),
        (COMPLETE[0::2], r"no folder validation or val in \S+images\. "),
        ([*COMPLETE, "images/training/b.jpg"], r"1 of 2 files have no mask in \S+training; the first is \S+b\.jpg\. "),
        (
            [*COMPLETE, "annotations/validation/b.png"],
            r"1 of 2 files have no image in \S+; the first is \S+b",
        ),
        ([path.replace(".png", ".txt") for path in COMPLETE], r"no image lies in \S+training\. "),
    ],
)
def test_what_is_missing_is_named(tmp_path, paths, message):
    empty_files(tmp_path, *paths)
    with pytest.raises(FileNotFoundError, match=rf"^dataset\.root=x: {message}.*Do this\.$"):
        found(tmp_path)
