"""dataset.decode=cuda, with the CPU in the place of the GPU."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import io

from runner.data import image_folder as module
from runner.data.dataset import DataFault
from runner.data.gpu_decoding import check_gpu_decoding
from runner.data.image_folder import image_folder
from runner.data.image_transforms import image_transforms

CPU = torch.device("cpu")
SMALL = {"image_size": 16, "test_size": 16, "test_resize": 20, "random_erasing": 0.5}


@pytest.fixture
def root(tmp_path):
    """Two classes of JPEG files, some of them grey, CMYK or turned, and PNG files."""
    for folder, number in (("train", 8), ("val", 3)):
        for label, name in enumerate("ab"):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(number):
                pixels = np.random.default_rng(10 * label + i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
                mode, ending = (("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "png"))[i % 4]
                image = Image.fromarray(pixels).resize((30 + i, 24)).convert(mode)
                exif = Image.Exif()
                exif[0x0112] = 1 + i
                image.save(tmp_path / folder / name / f"{i}.{ending}", exif=exif)
    return tmp_path


@pytest.fixture
def gpu(monkeypatch):
    """A CPU passes for a GPU."""
    monkeypatch.setattr(module, "check_gpu_decoding", lambda: None)


def batches_of(root, **options):
    data = image_folder(root=str(root), **{**SMALL, "num_workers": 0, **options})
    train = data.train_batches(batch_size=5, seed=3, device=CPU)
    return [*train.epoch(1, 1), *data.evaluation_batches("test", batch_size=4, device=CPU)]


@pytest.mark.parametrize("options", [{}, {"channels": 1}, {"num_workers": 1}])
def test_batches_are_those_of_decoding_in_workers(root, gpu, options):
    expected, own = (batches_of(root, decode=decode, **options) for decode in ("torchvision", "cuda"))
    assert len(own) == 3
    for (images, targets), (own_images, own_targets) in zip(expected, own, strict=True):
        assert torch.equal(images, own_images)
        assert torch.equal(targets, own_targets)


def test_files_of_a_batch_are_decoded_by_one_call_on_the_device(root, gpu, monkeypatch):
    calls, decode = [], io.decode_jpeg

    def counted(files, **options):
        calls.append((len(files), options["device"]))
        return decode(files, **options)

    monkeypatch.setattr(io, "decode_jpeg", counted)
    batches_of(root, decode="cuda")
    assert len(calls) == 3
    assert {device for _, device in calls} == {CPU}
    assert max(number for number, _ in calls) > 1


def test_files_without_an_image_are_replaced_and_damaged_ones_end_the_run(root, gpu):
    first = root / "train/a/0.jpg"
    first.write_bytes(b"nothing")
    data = image_folder(root=str(root), decode="cuda", num_workers=0, **SMALL)
    assert [len(images) for images, _ in data.train_batches(batch_size=14, seed=0, device=CPU).epoch(0)] == [14]
    assert list(data.unreadable) == [str(first)]
    for file in (root / "train/a/4.jpg", root / "train/a/5.jpg"):  # not the first, which are read before the run
        file.write_bytes(file.read_bytes()[:-100])
    data = image_folder(root=str(root), decode="cuda", num_workers=0, max_unreadable=1, **SMALL)
    with pytest.raises(DataFault, match=r"dataset\.decode=cuda: one of \d+ files .* cannot be decoded .*torchvision"):
        list(data.train_batches(batch_size=14, seed=0, device=CPU).epoch(0))


def test_without_a_gpu_or_its_decoder_it_is_refused(runner, root, monkeypatch):
    words = ("dataset=image_folder", f"dataset.root={root}", "dataset.decode=cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runner(*words).assert_refused("dataset.decode=cuda: torch sees no GPU here", "Use dataset.decode=torchvision")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(io, "decode_jpeg", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no nvJPEG\nat line 3")))
    with pytest.raises(ValueError, match=r"torchvision cannot decode on this GPU \(no nvJPEG\)\. Use"):
        check_gpu_decoding()


def test_other_sets_do_not_have_it():
    with pytest.raises(ValueError, match=r"^dataset\.decode=cuda: only image_folder and imagenet have it"):
        image_transforms(decode="cuda")
