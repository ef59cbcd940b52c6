"""What MixUp and CutMix share: partners within a batch, soft targets, draws that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

from runner.config.limits import check
from runner.methods.method import Method

Lambda = float | np.ndarray
Batch = tuple[Tensor, Tensor]


class Mixing(Method):
    """Mixes each image of a portion of the batch with a partner from the same portion.

    A subclass defines `node`, its option's name, and `mix`. For each batch a generator on the CPU, seeded by the run's
    seed, the option and the number of the batch, draws a permutation, which gives the partners, and one
    lambda ~ Beta(alpha, alpha), with `per_image` one for each image. So nothing waits for a GPU, a resumed run repeats
    the draws, and all processes have the same lambda.

    `portion`: "all", "first_half" (B // 2 images), "second_half" (the others) or "auto", the whole batch unless the
    configuration has chosen another portion.
    """

    capturable = True
    node: ClassVar[str]

    def __init__(self, *, alpha: float, portion: str, per_image: bool = False) -> None:
        check(self.node, alpha=alpha, portion=portion)
        self.alpha = alpha
        self.portion = portion
        self.per_image = per_image
        self.seed = 0
        self.num_batches = 0

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        """Store the seed; no module changes."""
        self.seed = seed
        return 0

    def transform_batch(self, images: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        # numpy takes no negative seeds; the option's name keeps the draws of several methods apart
        generator = np.random.default_rng([self.seed % 2**64, *self.node.encode(), self.num_batches])
        self.num_batches += 1
        half = len(images) // 2
        first, last = {"first_half": (0, half), "second_half": (half, len(images))}.get(self.portion, (0, len(images)))
        lam = generator.beta(self.alpha, self.alpha, last - first if self.per_image else None)
        permutation = torch.from_numpy(generator.permutation(last - first)).to(images.device, non_blocking=True)
        targets = probabilities(targets, num_classes)
        mixed = self.mix(images[first:last], targets[first:last], lam, permutation, generator)
        if last - first == len(images):
            return mixed
        images, targets = images.clone(), targets.clone()
        images[first:last], targets[first:last] = mixed
        return images, targets

    def mix(self, images: Tensor, targets: Tensor, lam: Lambda, permutation: Tensor, generator: Generator) -> Batch:
        """The mixed images and probabilities, for one `lam` or (B,) of them; `generator` draws what else is needed."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        return {"num_batches": self.num_batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.num_batches = state.get("num_batches", 0)


def probabilities(targets: Tensor, num_classes: int) -> Tensor:
    """Class indices (B,) as one-hot rows (B, num_classes) in float32; probabilities of that shape unchanged.

    >>> import torch
    >>> from runner.methods.mixing import probabilities
    >>> probabilities(torch.tensor([2, 0]), 3)
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """
    if targets.ndim == 1 and not targets.is_floating_point():
        rows = torch.zeros(len(targets), num_classes, device=targets.device)
        return rows.scatter_(1, targets[:, None].long(), 1.0)
    if targets.shape[1:] == (num_classes,) and targets.is_floating_point():
        return targets
    raise ValueError(
        f"targets of shape {tuple(targets.shape)} and {targets.dtype} cannot be mixed: they must be class indices "
        f"(B,), or probabilities (B, num_classes={num_classes})"
    )


def mixed_probabilities(targets: Tensor, num_classes: int, lam: float | Tensor, permutation: Tensor) -> Tensor:
    """lam * y + (1 - lam) * y[permutation] for targets y, as probabilities (B, num_classes); lam may be (B,)."""
    targets = probabilities(targets, num_classes)
    return targets.lerp(targets[permutation], along(1 - lam, targets))


def along(lam: float | Tensor, x: Tensor) -> float | Tensor:
    """`lam` in a shape that broadcasts over the samples of `x`, (B, ...): one number, or (B,) of them."""
    return lam.to(x.dtype).view(-1, *[1] * (x.dim() - 1)) if isinstance(lam, Tensor) else lam


def check_partners(images: Tensor, targets: Tensor, permutation: Sequence[int] | Tensor) -> None:
    """Raise a ValueError unless there are as many targets and as many partners as images."""
    if not len(images) == len(targets) == len(permutation):
        raise ValueError(
            f"{len(images)} images, {len(targets)} targets and a permutation of {len(permutation)}: "
            "their numbers must be equal"
        )
