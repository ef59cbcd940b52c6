"""JPEG photos that a GPU decodes and augments: loader workers read their files, and no more.

A worker hands a file on as an image of one row: a byte for its EXIF orientation, and the bytes of the file, or of a PNG
file in its place where PIL is to decode it. The main process decodes a batch at once, and augments each image on the
device under the seed that a worker would have used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import io

from runner.config.text import first_line
from runner.data.dataset import DataFault
from runner.data.file_loader import LoadedBatch, Sample, SeededSample, seeded
from runner.data.image_reading import MODES, NAMES, READ_MODES, as_pixels, check_header, orientation, turned

REMEDY = "Use dataset.decode=torchvision"


def check_gpu_decoding() -> None:
    """Raise ValueError unless torchvision can decode JPEG on a GPU here."""
    if not torch.cuda.is_available():
        raise ValueError(f"dataset.decode=cuda: torch sees no GPU here. {REMEDY}.")
    try:
        io.decode_jpeg(io.encode_jpeg(torch.zeros(3, 8, 8, dtype=torch.uint8)), device="cuda")
    except RuntimeError as error:
        reason = first_line(error)
        raise ValueError(f"dataset.decode=cuda: torchvision cannot decode on this GPU ({reason}). {REMEDY}.") from None


@dataclass(frozen=True)
class LoadBytes:
    """Reads the file of a sample (path, class); `finish` decodes and transforms the images of a batch."""

    transform: nn.Module
    channels: int

    def __call__(self, sample: Sample) -> tuple[Tensor, int]:
        path, target = sample
        with open(path, "rb") as file:
            content, turn = file.read(), 1
        with Image.open(path) as image:
            check_header(image)
            if NAMES.get(image.format) == "decode_jpeg" and image.mode in (MODES[self.channels], "L"):
                turn = orientation(image) or 1
            else:
                buffer = BytesIO()
                as_pixels(image, self.channels).save(buffer, "PNG", compress_level=1)
                content = buffer.getvalue()
        return torch.frombuffer(bytearray([turn]) + content, dtype=torch.uint8).view(1, 1, -1), target

    def finish(self, batch: LoadedBatch, samples: Sequence[SeededSample], device: torch.device) -> LoadedBatch:
        """The batch with the images of `samples`, (B, C, H, W) uint8 on the device, in the place of their files."""
        rows = [row[0, 0, :length] for row, (_, length) in zip(batch.images, batch.sizes, strict=True)]
        images = []
        for pixels, row, (_, seed) in zip(self._decoded(rows, samples, device), rows, samples, strict=True):
            with seeded(seed):
                images.append(self.transform(turned(pixels, row[0].item())))
        return batch._replace(images=torch.stack(images))

    def _decoded(self, rows: list[Tensor], samples: Sequence[SeededSample], device: torch.device) -> list[Tensor]:
        """The pixels (C, H, W) of each file, uint8 on the device. Raises DataFault for a damaged one."""
        mode = READ_MODES[self.channels]
        is_jpeg = [row[1:3].tolist() == [0xFF, 0xD8] for row in rows]
        files = [row[1:] for row, its in zip(rows, is_jpeg, strict=True) if its]
        try:
            jpegs = iter(io.decode_jpeg(files, mode=mode, device=device) if files else [])
        except RuntimeError as error:
            paths = [sample[0] for (sample, _), its in zip(samples, is_jpeg, strict=True) if its]
            raise DataFault(
                f"dataset.decode=cuda: one of {len(paths)} files from {paths[0]} to {paths[-1]} cannot be decoded "
                f"({first_line(error)}). {REMEDY}, which leaves such files out."
            ) from None
        pairs = zip(rows, is_jpeg, strict=True)
        return [next(jpegs) if its else io.decode_png(row[1:], mode).to(device) for row, its in pairs]
