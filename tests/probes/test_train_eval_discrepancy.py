"""Batch statistics against running ones, with batch norms made by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.methods import apply_ghost_batchnorm
from runner.probes.train_eval_discrepancy import train_eval_discrepancy

X = torch.tensor([[1.0, -2.0], [3.0, 0.5], [0.0, 1.0], [4.0, 2.5]], dtype=torch.float64)
TARGETS = torch.tensor([0, 1, 0, 1])
MEAN, VAR, EPS = np.array([0.5, 1.0]), np.array([4.0, 0.25]), 1e-2


def norm_by_hand():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2, eps=EPS)).double()
    model[1].running_mean.copy_(torch.from_numpy(MEAN))
    model[1].running_var.copy_(torch.from_numpy(VAR))
    return model


def log_softmax(z):
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def expected(train, evaluation):
    """Losses, KL divergence and changed predictions of two sets of logits, in numpy."""
    p, q = log_softmax(train), log_softmax(evaluation)
    rows = np.arange(len(train)), TARGETS.numpy()
    return {
        "loss_batch_statistics": -p[rows].mean(),
        "loss_running_statistics": -q[rows].mean(),
        "loss_difference": p[rows].mean() - q[rows].mean(),
        "kl_divergence": (np.exp(p) * (p - q)).sum(1).mean(),
        "changed_predictions": (p.argmax(1) != q.argmax(1)).mean(),
    }


def normalize(x, mean, var):
    return (x - mean) / np.sqrt(var + EPS)


def test_one_layer_in_closed_form():
    found = train_eval_discrepancy(norm_by_hand(), [(X, TARGETS)], F.cross_entropy)
    x = X.numpy()
    target = expected(normalize(x, x.mean(0), x.var(0)), normalize(x, MEAN, VAR))
    assert target["changed_predictions"] > 0
    distance = np.sqrt(((x.mean(0) - MEAN) ** 2 / (VAR + EPS)).mean())
    target |= {"mean_distance": distance, "largest_distance": distance}
    assert found.numbers == pytest.approx(target, rel=1e-12)
    assert found.texts["layers"] == "1"


def test_ghost_batches_are_normalized_by_themselves():
    model = norm_by_hand()
    apply_ghost_batchnorm(model, ghost_batch_size=2)
    found = train_eval_discrepancy(model, [(X, TARGETS)], F.cross_entropy)
    x = X.numpy()
    train = np.concatenate([normalize(part, part.mean(0), part.var(0)) for part in (x[:2], x[2:])])
    target = expected(train, normalize(x, MEAN, VAR))
    assert {name: found.numbers[name] for name in target} == pytest.approx(target, rel=1e-9)


def test_every_batch_meets_the_statistics_of_before():
    batches = [(X, TARGETS), (5 * X, TARGETS), (X, TARGETS)]
    found = train_eval_discrepancy(norm_by_hand(), batches, F.cross_entropy)
    for values in found.arrays.values():
        np.testing.assert_array_equal(values[0], values[2])
    assert found.numbers["kl_divergence"] == pytest.approx(found.arrays["kl_divergence"].mean())
    assert found.arrays["distance"].shape == (3, 1)


def test_layers_are_measured_where_they_stand():
    """The second layer's input is the first one's output under batch statistics: of mean 0."""
    model = nn.Sequential(norm_by_hand(), nn.BatchNorm1d(2).double())
    model[1].running_mean.fill_(3.0)
    found = train_eval_discrepancy(model, [(X, TARGETS)], F.cross_entropy)
    assert found.texts["layers"].split("\n") == ["0.1", "1"]
    assert found.arrays["distance"][0, 1] == pytest.approx(3 / np.sqrt(1 + 1e-5))
    assert found.numbers["largest_distance"] == found.arrays["distance"].max()
    assert found.numbers["mean_distance"] == pytest.approx(found.arrays["distance"].mean())


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm1d(2, track_running_stats=False).double()])
def test_without_running_statistics_nothing_differs(norm):
    found = train_eval_discrepancy(nn.Sequential(nn.Dropout(0.5), norm), [(X, TARGETS)], F.cross_entropy)
    differences = ("loss_difference", "kl_divergence", "changed_predictions", "mean_distance", "largest_distance")
    assert [found.numbers[name] for name in differences] == [0] * 5
    assert found.arrays["distance"].shape == (1, 0)


def test_predictions_of_every_pixel_count():
    norm = nn.BatchNorm2d(2, eps=EPS).double()
    norm.running_mean.copy_(torch.from_numpy(MEAN))
    norm.running_var.copy_(torch.from_numpy(VAR))
    images, masks = X.T.reshape(1, 2, 2, 2), TARGETS.view(1, 2, 2)
    pixels = train_eval_discrepancy(norm, [(images, masks)], F.cross_entropy).numbers
    assert pixels == pytest.approx(train_eval_discrepancy(norm_by_hand(), [(X, TARGETS)], F.cross_entropy).numbers)
