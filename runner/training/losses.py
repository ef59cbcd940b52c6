"""The losses of classification and of segmentation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.data.dataset import IGNORE_INDEX

SMALLEST = 1e-30  # of a sum of weights that is divided by: without a labelled pixel it is 0


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """The mean of -sum_k y_k log p_k (nats), p the softmax of the logits over dimension 1.

    `targets` are class indices (B,) or probabilities (B, C) of images, logits (B, C); or masks (B, H, W) of class
    indices, logits (B, C, H, W). Of a mask the pixels of `ignore_index` are left out, and if no pixel is left, the
    loss and its gradients are 0. Labels y are smoothed as `runner.methods.label_smoothing` says.

    With `class_weights` w (C,) it is sum(w_k y_k (-log p_k)) / sum(w_k y_k), the sums over images or pixels and over
    classes, y in the denominator not smoothed: torch's weighted mean.
    """
    if targets.ndim < 3 and class_weights is None:  # of 256 classes or more, `ignore_index` is one
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    weight = None if class_weights is None else class_weights.to(logits.dtype)
    ignored = {"ignore_index": ignore_index} if targets.ndim == 3 else {}
    total = F.cross_entropy(logits, targets, weight, label_smoothing=label_smoothing, reduction="sum", **ignored)
    divisor = total_weight(targets, class_weights, ignore_index=ignore_index)
    return total / divisor.clamp(min=1 if class_weights is None else SMALLEST)


def total_weight(targets: Tensor, class_weights: Tensor | None, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """The sum of the class weights of all images, or of all labelled pixels; without weights their number."""
    if targets.ndim < 3:
        if class_weights is None:
            return targets.new_tensor(len(targets))
        return (targets * class_weights if targets.is_floating_point() else class_weights[targets]).sum()
    labelled = targets != ignore_index
    if class_weights is None:
        return labelled.sum()
    return (class_weights[targets.masked_fill(~labelled, 0)] * labelled).sum()


def dice_loss(logits: Tensor, targets: Tensor, *, squared: bool = True, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """One minus the soft Dice coefficient (Milletari et al. 2016, arXiv 1606.04797), a mean over classes.

    With p the softmax of the logits (B, C, H, W) and y the one-hot masks (B, H, W), for each class

        D = 2 sum(p y) / (sum(p^2) + sum(y^2)),     squared=True, the paper's
        D = 2 sum(p y) / (sum(p) + sum(y)),         squared=False, Composer's

    where the sums go over all pixels of the batch but those of `ignore_index`. The mean is over the classes that
    occur in the masks, so no denominator is 0; where no pixel is labelled, the loss and its gradients are 0.
    float64 logits are computed in float64, all others in float32. Of a batch in micro-batches each has its own Dice.
    """
    labelled = targets != ignore_index
    classes = targets.masked_fill(~labelled, 0)
    share = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
    share = share.masked_fill(~labelled.unsqueeze(1), 0)
    # sums by label instead of one-hot masks, which would be as large as the logits
    # in float64: added one by one, a float32 sum of millions stops growing
    zeros, place = share.new_zeros(share.shape[1], dtype=torch.float64), classes.flatten()
    overlap = zeros.scatter_add(0, place, share.gather(1, classes.unsqueeze(1)).flatten().double())
    pixels = zeros.scatter_add(0, place, labelled.flatten().double())
    predicted = (share.square() if squared else share).sum((0, 2, 3))
    dice = 2 * overlap / (predicted + pixels).clamp(min=1)  # below 1 only without a pixel
    occurs = pixels > 0
    return (((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)).to(share.dtype)


def segmentation_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    cross_entropy_weight: float = 1.0,
    dice_weight: float = 0.0,
    dice_squared: bool = True,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`cross_entropy_weight` * cross-entropy + `dice_weight` * Dice loss of logits (B, C, H, W) and masks (B, H, W).

    A part of weight 0 is not computed. Class weights and label smoothing are for the cross-entropy alone. ValueError if
    both parts are 0.
    """
    if not (cross_entropy_weight or dice_weight):
        raise ValueError("cross_entropy_weight=0, dice_weight=0: no loss is left. Make one of them positive.")
    parts = []
    if cross_entropy_weight:
        options = {"class_weights": class_weights, "label_smoothing": label_smoothing}
        parts.append(cross_entropy_weight * cross_entropy(logits, targets, **options))
    if dice_weight:
        parts.append(dice_weight * dice_loss(logits, targets, squared=dice_squared))
    return torch.stack(parts).sum()
