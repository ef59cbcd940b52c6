"""CutMix: a box of each image comes from another one, and so does its share of the label (arXiv 1905.04899)."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from runner.methods.mixing import Batch, Lambda, Mixing, check_partners, mixed_probabilities

Box = tuple[int, int, int, int]


def cutmix_batch(
    images: Tensor, targets: Tensor, *, num_classes: int, box: Box | Sequence[Box], permutation: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste into each image x_i a box of its partner x_j, j = permutation[i] (Yun et al. 2019, arXiv 1905.04899):

        x <- x_i outside the box, x_j inside,    y <- lam * y_i + (1 - lam) * y_j,    1 - lam = box area / image area.

    `box` is (top, bottom, left, right) in pixels, bottom and right excluded, one for all images or one for each.
    `images` is (B, C, H, W); `targets` are class indices (B,), or probabilities (B, num_classes) if they were mixed
    before. Returns new images and probabilities (B, num_classes).

    Raises ValueError for a box outside the image and for numbers or shapes that do not fit.

    >>> import torch
    >>> from runner.methods import cutmix_batch
    >>> images, targets = torch.tensor([0.0, 8.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2), torch.tensor([0, 1])
    >>> swap = torch.tensor([1, 0])
    >>> images, targets = cutmix_batch(images, targets, num_classes=2, box=(0, 1, 1, 2), permutation=swap)
    >>> images[0, 0], targets[0]
    (tensor([[0., 8.],
            [0., 0.]]), tensor([0.7500, 0.2500]))
    """
    height, width = images.shape[-2:]
    boxes = np.asarray(box).reshape(-1, 4)
    top, bottom, left, right = boxes.T
    if len(boxes) not in (1, len(images)) or not (
        ((top >= 0) & (top <= bottom) & (bottom <= height)).all()
        and ((left >= 0) & (left <= right) & (right <= width)).all()
    ):
        raise ValueError(f"box={box}: (top, bottom, left, right) must lie in an image of {height}x{width} pixels")
    check_partners(images, targets, permutation)
    lam = 1 - (bottom - top) * (right - left) / (height * width)
    if np.ndim(box) == 1:
        [place] = [(..., slice(top, bottom), slice(left, right)) for top, bottom, left, right in boxes]
        mixed = images.clone()
        mixed[place] = images[place][permutation]
        return mixed, mixed_probabilities(targets, num_classes, float(lam[0]), permutation)
    on_device = [torch.from_numpy(edge).to(images.device, non_blocking=True)[:, None] for edge in boxes.T]
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    inside = ((rows >= on_device[0]) & (rows < on_device[1]))[:, :, None]
    inside = (inside & ((columns >= on_device[2]) & (columns < on_device[3]))[:, None, :]).unsqueeze(1)
    share = torch.from_numpy(lam).to(images.device, non_blocking=True)
    mixed = torch.where(inside, images[permutation], images)
    return mixed, mixed_probabilities(targets, num_classes, share, permutation)


def box_around(centre: tuple[float, float], lam: float, height: int, width: int) -> Box:
    """The box (top, bottom, left, right) with sides sqrt(1 - lam) * (height, width), cut off at the image's edges.

    `centre` is (y, x) in pixels. Edges are rounded to whole pixels: over uniform centres, the mean length of a side
    that is not cut off is exact.

    >>> from runner.methods.cutmix import box_around
    >>> box_around((8.0, 14.0), lam=0.75, height=16, width=16)
    (4, 12, 10, 16)
    """
    (top, bottom), (left, right) = (
        (
            floor(max(middle - size * (1 - lam) ** 0.5 / 2, 0) + 0.5),
            floor(min(middle + size * (1 - lam) ** 0.5 / 2, size) + 0.5),
        )
        for middle, size in zip(centre, (height, width), strict=True)
    )
    return top, bottom, left, right


class CutMix(Mixing):
    """`cutmix_batch` with one lambda ~ Beta(alpha, alpha) and one box for each batch, as in the authors' code.

    With `per_image` each image has its own, as in the code of NFNets (arXiv 2102.06171). The box has the sides
    sqrt(1 - lambda) * (H, W) and a uniform centre, and is cut off at the edges of the image; the labels are mixed by
    the area that remains. `portion` is the part of the batch that is mixed, see `Mixing`.
    """

    node = "cutmix"

    def __init__(self, *, alpha: float = 1.0, portion: str = "auto", per_image: bool = False) -> None:
        super().__init__(alpha=alpha, portion=portion, per_image=per_image)

    def mix(self, images: Tensor, targets: Tensor, lam: Lambda, permutation: Tensor, generator: Generator) -> Batch:
        height, width = images.shape[-2:]
        boxes = [
            box_around((generator.uniform(0, height), generator.uniform(0, width)), share, height, width)
            for share in np.atleast_1d(lam)
        ]
        box = boxes if self.per_image else boxes[0]
        return cutmix_batch(images, targets, num_classes=targets.shape[1], box=box, permutation=permutation)
