"""Label smoothing (arXiv 1512.00567)."""

from __future__ import annotations

from collections.abc import Mapping

from runner.config.limits import check
from runner.methods.method import Method


class LabelSmoothing(Method):
    """Spreads a share `smoothing` of each label evenly over all K classes (Szegedy et al. 2016, arXiv 1512.00567).

    With p the softmax of the logits and y the label, the loss of one image is

        (1 - smoothing) * -log p_y + smoothing * mean_k(-log p_k).

    For mixed targets (MixUp, CutMix) with rows y the target is (1 - smoothing) * y + smoothing / K.

    >>> import torch
    >>> from torch.nn import functional as F
    >>> from runner.methods.label_smoothing import LabelSmoothing
    >>> logits, labels = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([0])
    >>> F.cross_entropy(logits, labels, **LabelSmoothing(smoothing=0.1).loss_options())  # 0.95, 0.05: the target
    tensor(0.2152)
    """

    capturable = True

    def __init__(self, *, smoothing: float = 0.1) -> None:
        check("label_smoothing", smoothing=smoothing)
        self.smoothing = smoothing

    def loss_options(self) -> Mapping[str, float]:
        return {"label_smoothing": self.smoothing}
