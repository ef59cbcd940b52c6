"""Gradients at the logits, against softmax(z) - onehot(y)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runner.probes.class_gradients import class_gradients


class AsGiven(nn.Module):
    """Logits that are the images' pixels."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x.flatten(1)


def batch(logits, targets):
    return torch.tensor(logits)[:, None, None, :], torch.tensor(targets)


def closed_form(logits, targets):
    z = np.array(logits, dtype=np.float64)
    softmax = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return (softmax - np.eye(z.shape[1])[targets]) / len(z)


FIRST = [[1.0, 2.0, -1.0], [0.0, 3.0, 0.5], [0.1, 0.2, 0.0], [4.0, 0.0, 1.0]], [0, 1, 2, 0]
SECOND = [[0.0, 1.0, 2.0], [0.0, 0.0, 1.0], [5.0, 1.0, 6.0], [0.0, 1.0, -1.0]], [2, 2, 1, 0]
SMALLER = [[0.0, 9.0, 0.0]], [0]


def test_gradients_and_predictions():
    measured = class_gradients(AsGiven(), (batch(*each) for each in (FIRST, SECOND, SMALLER)), F.cross_entropy)
    first, second = closed_form(*FIRST), closed_form(*SECOND)
    np.testing.assert_allclose(measured.arrays["gradient"], first, rtol=1e-5)
    np.testing.assert_allclose(measured.arrays["mean_gradient"], (first + second) / 2, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(measured.arrays["predictions"], [1, 5, 3])
    columns = np.maximum(first, 0).sum(axis=0)
    assert measured.numbers == {
        "most_frequent_share": 3 / 4,
        "most_frequent_share_all": 5 / 9,
        "largest_column_share": pytest.approx(columns.max() / columns.sum()),
        "num_batches": 2,
    }


def test_logits_of_positions_are_added_up():
    torch.manual_seed(0)
    images, targets = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    measured = class_gradients(nn.Identity(), [(images, targets)], F.cross_entropy)
    of_positions = (images.softmax(1) - F.one_hot(targets, 3).movedim(-1, 1)) / (2 * 4 * 5)
    np.testing.assert_allclose(measured.arrays["gradient"], of_positions.sum((2, 3)), rtol=1e-4, atol=1e-7)
    assert measured.arrays["predictions"].sum() == 2 * 4 * 5
    assert not images.requires_grad


def test_a_model_that_predicts_one_class():
    measured = class_gradients(AsGiven(), [batch([[0.0, 99.0, 0.0]] * 6, [0, 1, 2, 0, 1, 2])], F.cross_entropy)
    assert measured.numbers["most_frequent_share"] == 1
    assert measured.numbers["largest_column_share"] == pytest.approx(1)
    assert (measured.arrays["gradient"][:, 1] >= 0).all()
