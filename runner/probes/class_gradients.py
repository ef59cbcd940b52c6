"""Gradients at the logits, sample by class (Bjorck et al. 2018, arXiv 1806.02375, figure 6).

At initialization a network without batch norm predicts the same class for every image: its column is positive for all
samples of other classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from runner.layers.preserve_state import preserve_state, use_batch_statistics
from runner.probes.gradients import at_least_float32, listed
from runner.probes.probe import Batch, Loss
from runner.results.measurement import Measurement


def class_gradients(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> Measurement:
    """dL/dz for the logits z (B, num_classes) of the first batch, and its average over all batches.

    For the mean cross-entropy over B samples dL/dz_{b,c} = (softmax(z_b)_c - [c = y_b]) / B.
    The average is elementwise, over the batches of the first one's size. In segmentation, with logits
    (B, num_classes, H, W), gradients are summed over positions. Norms use the batch's statistics, without dropout and
    stochastic depth.

    Arrays: `gradient` and `mean_gradient` (B, num_classes); `predictions` (num_classes,), how often each class has
    the largest logit, over all batches. Numbers:

        most_frequent_share        share of the most frequent prediction in the first batch
        most_frequent_share_all    the same over all batches; about 1 / num_classes if predictions vary
        largest_column_share       the largest column's share of the sum of all positive gradients, first batch;
                                   from 1 / num_classes to 1
        num_batches                number of batches in `mean_gradient`
    """
    gradients: list[Tensor] = []
    counts: list[Tensor] = []
    with preserve_state(model):
        use_batch_statistics(model)
        for images, targets in listed(batches):
            with torch.no_grad():
                logits = at_least_float32(model(images))
            logits = logits.detach().requires_grad_(True)  # a new tensor, even if the model returns its input
            gradient = torch.autograd.grad(loss(logits, targets), logits)[0]
            gradients.append(gradient.flatten(2).sum(2) if gradient.dim() > 2 else gradient)
            counts.append(torch.bincount(logits.argmax(1).flatten(), minlength=logits.shape[1]).cpu())
    first = gradients[0].double().cpu().numpy()
    averaged = [gradient for gradient in gradients if gradient.shape == gradients[0].shape]
    predictions = torch.stack(counts).sum(0)
    columns = first.clip(min=0).sum(axis=0)
    numbers = {
        "most_frequent_share": counts[0].max().item() / counts[0].sum().item(),
        "most_frequent_share_all": predictions.max().item() / predictions.sum().item(),
        "largest_column_share": float(columns.max() / columns.sum()) if columns.sum() > 0 else float("nan"),
        "num_batches": float(len(averaged)),
    }
    arrays = {
        "gradient": first,
        "mean_gradient": torch.stack(averaged).double().mean(0).cpu().numpy(),
        "predictions": predictions.numpy(),
    }
    return Measurement(arrays, numbers)
