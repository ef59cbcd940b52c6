"""What is read of an image's file: the pixels as they are to be seen, or why they cannot be read."""

import os
import random
import warnings
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor

from runner.data import image_reading
from runner.data.image_folder import image_folder
from runner.data.image_reading import ImageReader, OddShape, read_image, without_libjpeg_warnings
from runner.data.mask_labels import MaskLabels
from runner.data.scene_files import LoadScene, Scene
from runner.data.scene_transforms import EvaluationTransform

ORIENTATION = 0x0112
# EXIF 2.32, 4.6.4: where the 0th row and the 0th column of the stored pixels are to be seen
STORED = {
    1: lambda a: a,  # top, left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.swapaxes(0, 1),  # left, top
    6: lambda a: np.rot90(a),  # right, top
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda a: np.rot90(a, -1),  # left, bottom
}
SMOOTH = np.stack(np.meshgrid(np.linspace(0, 250, 24), np.linspace(20, 200, 16)), 2).astype(np.uint8)
SEEN = np.dstack([SMOOTH, np.full((16, 24), 90, np.uint8)])  # 24 pixels wide, 16 high; no turn leaves it as it is

OPTIONS = {"jpg": {"quality": 100, "subsampling": 0}, "png": {}, "tif": {}, "webp": {"lossless": True}}
DAMAGED = (b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12")


def save(path, pixels, orientation, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, **options)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("ending", OPTIONS)
def test_a_photo_is_read_as_it_is_to_be_seen(tmp_path, ending, orientation):
    path = tmp_path / f"photo.{ending}"
    save(path, STORED[orientation](SEEN), orientation, **OPTIONS[ending])
    image = read_image(str(path))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, int) - SEEN).max() <= (4 if ending == "jpg" else 0)
    with Image.open(path) as file:
        assert np.array_equal(image, ImageOps.exif_transpose(file).convert("RGB"))


def test_grey_and_palette_photos_are_turned_too(tmp_path):
    for mode in ("L", "P", "RGBA", "CMYK"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        whole = Image.fromarray(SEEN).convert(mode)
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        whole.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
        assert np.abs(np.asarray(read_image(str(path)), int) - np.asarray(whole.convert("RGB"), int)).mean() < 3


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_is_none_is_ignored(tmp_path, orientation):
    save(tmp_path / "photo.png", SEEN, orientation)
    assert np.array_equal(read_image(str(tmp_path / "photo.png")), SEEN)


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_exif_is_ignored_without_a_word(tmp_path, damage):
    Image.fromarray(SEEN).save(tmp_path / "photo.png", exif=damage)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_image(str(tmp_path / "photo.png")), SEEN)


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_image_and_mask_are_each_turned_by_their_own_orientation(tmp_path, mode):
    """An annotation tool shows the photo upright and keeps the mask so; another copies the photo's EXIF."""
    classes = (np.arange(16 * 24).reshape(16, 24) % 4).astype(np.uint8)
    load = LoadScene(transform=EvaluationTransform(), labels=MaskLabels(num_classes=4))
    save(tmp_path / "photo.png", STORED[6](SEEN), 6)
    for orientation in (1, 6, 8):
        stored = np.ascontiguousarray(STORED[orientation](classes))
        mask = Image.fromarray(stored.astype(np.uint16 if mode == "I;16" else np.uint8))
        if mode == "P":
            mask.putpalette([0, 0, 0, 90, 0, 0, 0, 90, 0, 0, 0, 90])  # makes it one
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        mask.save(tmp_path / "mask.png", exif=exif)
        image, read = load(Scene(str(tmp_path / "photo.png"), str(tmp_path / "mask.png")))
        assert np.array_equal(image.permute(1, 2, 0), SEEN)
        assert np.array_equal(read, classes)


def test_photos_of_classes_are_turned(tmp_path):
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            save(tmp_path / split / name / "0.png", STORED[8](SEEN), 8)
    sizes = {"image_size": 16, "test_size": 16, "test_resize": 16, "num_workers": 0}
    data = image_folder(root=str(tmp_path), validation="test", mean=(0.0,) * 3, std=(1.0,) * 3, **sizes)
    [(images, _)] = data.evaluation_batches("test", batch_size=2, device=torch.device("cpu"))
    centre = torch.from_numpy(SEEN[:, 4:20].copy()).permute(2, 0, 1) / 255
    assert torch.allclose(images, centre.expand(2, -1, -1, -1))


def test_more_than_8_bits_are_refused_with_the_way_to_convert(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"^more than 8 bits a channel \(mode I;16\); convert it, as .*-depth 8"):
        read_image(str(tmp_path / "deep.png"))


@pytest.mark.parametrize(("size", "is_odd"), [((3000, 1), True), ((1, 101), True), ((7, 700), False)])
def test_a_line_is_no_image(tmp_path, size, is_odd):
    Image.new("RGB", size).save(tmp_path / "line.png")
    if is_odd:
        with pytest.raises(OddShape, match=rf"^{size[0]}x{size[1]} pixels: one side is more than 100 times the other"):
            read_image(str(tmp_path / "line.png"))
    else:
        assert read_image(str(tmp_path / "line.png")).size == size


def encoded(image, kind, **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def kinds():
    """Photos in many kinds of files."""
    draw = np.random.default_rng(0)
    noisy = np.clip(np.kron(SEEN, np.ones((4, 4, 1))) + draw.normal(0, 25, (64, 96, 3)), 0, 255).astype(np.uint8)
    photo = Image.fromarray(noisy)
    turned = Image.Exif()
    turned[ORIENTATION] = 5
    others = [photo.rotate(180)]
    return {
        "jpeg": encoded(photo, "JPEG", quality=80),
        "jpeg without subsampling": encoded(photo, "JPEG", subsampling=0),
        "progressive jpeg": encoded(photo, "JPEG", progressive=True),
        "grey jpeg": encoded(photo.convert("L"), "JPEG"),
        "cmyk jpeg": encoded(photo.convert("CMYK"), "JPEG"),
        "rgb jpeg": encoded(photo, "JPEG", keep_rgb=True),
        "turned jpeg": encoded(photo, "JPEG", exif=turned),
        "mpo of two photos": encoded(photo, "MPO", save_all=True, append_images=others),
        "png": encoded(photo, "PNG"),
        "palette": encoded(photo.convert("P"), "PNG", transparency=3),
        "rgba png": encoded(photo.convert("RGBA"), "PNG"),
        "webp": encoded(photo, "WEBP"),
        "turned webp": encoded(photo, "WEBP", lossless=True, exif=turned),
        "rgba webp": encoded(Image.merge("RGBA", [*photo.split(), photo.convert("L")]), "WEBP"),
        "animated webp": encoded(photo, "WEBP", save_all=True, append_images=others),
        "bmp": encoded(photo, "BMP"),
        "gif": encoded(photo, "GIF"),
    }


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("kind", kinds())
def test_tensors_have_the_pixels_of_pil(tmp_path, kind, channels):
    file = tmp_path / "photo"
    file.write_bytes(kinds()[kind])
    expected = pil_to_tensor(ImageReader(channels, "pil")(str(file)))
    assert torch.equal(ImageReader(channels, "torchvision")(str(file)), expected)
    assert torch.equal(ImageReader(channels, "torchvision")(file.read_bytes()), expected)
    with Image.open(file) as image:
        assert torch.equal(ImageReader(channels, "torchvision")(image), expected)


def test_jpeg_and_webp_are_decoded_without_pil(monkeypatch):
    monkeypatch.setattr(image_reading, "as_pixels", None)
    for kind in ("jpeg", "progressive jpeg", "grey jpeg", "turned jpeg", "mpo of two photos", "webp"):
        assert ImageReader(3, "torchvision")(kinds()[kind]).dtype == torch.uint8


def test_pil_stands_in_where_torchvision_has_no_decoders(monkeypatch):
    expected = ImageReader(3, "torchvision")(kinds()["jpeg"])
    monkeypatch.setattr(image_reading, "DECODERS", {})
    assert torch.equal(ImageReader(3, "torchvision")(kinds()["jpeg"]), expected)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_each_orientation_turns_a_tensor_as_an_image(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = encoded(Image.fromarray(SEEN), "JPEG", exif=exif)
    assert torch.equal(ImageReader(3, "torchvision")(file), pil_to_tensor(ImageReader(3)(file)))


def damaged(content, number):
    """Versions of a file: cut off, with bytes changed, with a piece missing."""
    draw = random.Random(0)
    for place in range(number):
        start = draw.randrange(len(content))
        if place % 3 == 0:
            yield content[: start if place % 2 else len(content) - draw.randrange(60)]
        elif place % 3 == 1:
            yield content[:start] + bytes([draw.randrange(256)]) + content[start + 1 :]
        else:
            yield content[:start] + content[start + draw.randrange(1, 200) :]


def result(source, decode):
    try:
        image = ImageReader(3, decode)(source)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return image if isinstance(image, torch.Tensor) else pil_to_tensor(image)


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "turned jpeg", "png", "webp"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's, of damaged metadata
def test_damaged_files_are_read_or_refused_as_by_pil_without_a_word(tmp_path, capfd, kind):
    readable = 0
    for content in damaged(kinds()[kind], 150):
        (tmp_path / "photo").write_bytes(content)
        expected, got = (result(str(tmp_path / "photo"), decode) for decode in ("pil", "torchvision"))
        if isinstance(expected, str):
            assert got == expected
        else:
            readable += 1
            assert torch.equal(got, expected)
    assert 0 < readable < 150
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"no image")
    for decode in ("pil", "torchvision"):
        with pytest.raises(OSError, match=r"^cannot identify image file '.*photo\.jpg'$"):
            ImageReader(3, decode)(str(tmp_path / "photo.jpg"))


def test_what_others_write_while_a_photo_is_decoded_is_not_lost(capfd):
    with without_libjpeg_warnings():
        os.write(2, b"one\nCorrupt JPEG data: bad Huffman code\ntwo\n")
    assert capfd.readouterr().err == "one\ntwo\n"


def test_without_a_standard_error_photos_are_read():
    kept = os.dup(2)
    os.close(2)
    try:
        image = ImageReader(3, "torchvision")(kinds()["jpeg"])
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert image.shape == (3, 64, 96)
