"""MixUp: weighted means of two images and of their labels (Zhang et al. 2018, arXiv 1710.09412)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from runner.methods.mixing import Batch, Lambda, Mixing, along, check_partners, mixed_probabilities


def mixup_batch(
    images: Tensor, targets: Tensor, *, num_classes: int, lam: float | Sequence[float], permutation: Tensor
) -> tuple[Tensor, Tensor]:
    """Mix each image x_i, and its label y_i, with those of the partner j = permutation[i] (arXiv 1710.09412):

        x <- lam * x_i + (1 - lam) * x_j,    y <- lam * y_i + (1 - lam) * y_j.

    `images` is (B, ...) of floating point; `targets` are class indices (B,), or probabilities (B, num_classes) if they
    were mixed before; `lam` is one number, or B of them. Returns new images and probabilities (B, num_classes).

    Raises ValueError for a `lam` outside [0, 1] and for numbers or shapes that do not fit.

    >>> import torch
    >>> from runner.methods import mixup_batch
    >>> images, targets = torch.tensor([[0.0], [8.0]]), torch.tensor([0, 2])
    >>> mixup_batch(images, targets, num_classes=3, lam=0.75, permutation=torch.tensor([1, 0]))
    (tensor([[2.],
            [6.]]), tensor([[0.7500, 0.0000, 0.2500],
            [0.2500, 0.0000, 0.7500]]))
    """
    shares = np.asarray(lam, dtype=np.float64)
    if shares.shape not in ((), (len(images),)) or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"lam={lam}: it must lie in [0, 1], one number or one for each of {len(images)} images")
    check_partners(images, targets, permutation)
    share = torch.from_numpy(shares).to(images.device, non_blocking=True) if shares.ndim else float(shares)
    mixed = images.lerp(images[permutation], along(1 - share, images))
    return mixed, mixed_probabilities(targets, num_classes, share, permutation)


class MixUp(Mixing):
    """`mixup_batch` with one lambda ~ Beta(alpha, alpha) for each batch, as in the authors' code.

    With `per_image` each image has its own, as in the code of NFNets (arXiv 2102.06171). `portion` is the part of the
    batch that is mixed, see `Mixing`. The training loss is the cross-entropy with the mixed labels, which equals the
    weighted mean of the two cross-entropies.
    """

    node = "mixup"

    def __init__(self, *, alpha: float = 0.2, portion: str = "auto", per_image: bool = False) -> None:
        super().__init__(alpha=alpha, portion=portion, per_image=per_image)

    def mix(self, images: Tensor, targets: Tensor, lam: Lambda, permutation: Tensor, generator: Generator) -> Batch:
        return mixup_batch(images, targets, num_classes=targets.shape[1], lam=lam, permutation=permutation)
