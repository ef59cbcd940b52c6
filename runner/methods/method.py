"""The interface of a method: the places where it may act on a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn


class Method:
    """The base of every method; each place to act is optional.

    A subclass takes the settings of its YAML file as keyword arguments and overrides the places where it acts. Their
    ranges stand in the YAML file, under `_ranges_`.
    Methods are applied by rising `order`: 10 replaces norms, 20 changes norms, 30 changes convolutions, 40 changes
    blocks, 50 changes no module.
    """

    order = 50
    leaves_unused = False  # True if some parameters may get no gradient in a step (DDP: find_unused_parameters)
    # True if the forward and backward passes and `transform_gradients` launch the same kernels with the same numbers in
    # each step, and change what they keep in place, so that a CUDA graph can repeat them
    capturable = False
    counted = "modules"  # what `apply` counts, for the console

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        """Change `model` in place and return the number of modules changed.

        `example_input`: one batch of the data's shape on the model's device, for methods that run the model. `seed`:
        for methods that draw. Raises ValueError if there is nothing to change.
        """
        return 0

    def transform_batch(self, images: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Return new images and targets for a whole batch, before it is split into micro-batches.

        `images` (B, C, H, W) are normalized; `targets` are class indices (B,), or probabilities (B, num_classes) in
        float32 if an earlier method mixed them.
        """
        return images, targets

    def loss_options(self) -> Mapping[str, float]:
        """Keyword arguments for the training loss (`torch.nn.functional.cross_entropy`)."""
        return {}

    def transform_gradients(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Change the gradients in place, after unscaling and before the optimizer's step; return metrics."""
        return {}

    def on_step(self, progress: float) -> None:
        """Called before each optimizer step with the completed share of training, from 0 to 1."""

    def before_evaluation(self, model: nn.Module, train_images: Callable[[], Iterator[Tensor]]) -> None:
        """Called before each evaluation.

        `train_images()` iterates over the normalized images (B, C, H, W) of the epoch that has just ended, in the
        micro-batches and the order of training, which a resumed run repeats.
        """

    def state_dict(self) -> dict:
        """What a resumed run needs to continue bit for bit."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
