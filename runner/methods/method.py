"""What a method of an experiment is: up to six places where it may act on a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn


class Method:
    """The base of every method; each place to act is optional.

    A subclass takes the settings of its YAML file as keyword arguments and overrides the places where it acts.
    `order` fixes the sequence of several methods' surgery: replacing norms (10), changing norms (20),
    changing convolutions (30), changing blocks (40), everything that changes no module (50).
    """

    order = 50
    leaves_unused = False  # whether there are training steps in which some parameters have no part
    counted = "modules"  # what the number that `apply` returns is a number of, for the console

    def apply(self, model: nn.Module, example_input: Tensor, seed: int = 0) -> int:
        """Change `model` in place and return the number of modules changed.

        `example_input` is one batch of the data's shape on the model's device, for methods that look at the
        order of execution; `seed` is for methods that draw. Raises ValueError if there is nothing to change.
        """
        return 0

    def transform_batch(self, images: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Return what a whole batch becomes before it is cut into micro-batches; new tensors, none changed in place.

        `images` (B, C, H, W) are normalized; `targets` are class indices (B,), or probabilities (B, num_classes) in
        float32 where a method before this one has mixed them.
        """
        return images, targets

    def loss_options(self) -> Mapping[str, float]:
        """Keyword arguments for the training loss (`torch.nn.functional.cross_entropy`)."""
        return {}

    def transform_gradients(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Change the gradients in place, after unscaling and before the optimizer's step; return metrics."""
        return {}

    def on_step(self, progress: float) -> None:
        """Called before each optimizer step with the share of training that is done, from 0 to 1."""

    def before_evaluation(self, model: nn.Module, train_images: Callable[[], Iterator[Tensor]]) -> None:
        """Called before each evaluation.

        `train_images()` goes through the images of the epoch that has just ended, normalized, (B, C, H, W), in
        micro-batches and in the order of training: the same in a resumed run.
        """

    def state_dict(self) -> dict:
        """What a resumed run needs to go on exactly."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Take up the state that `state_dict` gave."""
