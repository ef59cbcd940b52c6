"""Sums of loss, counts and metrics: their means, what came between two readings, the state of a checkpoint."""

import math

import pytest
import torch

from runner.training.metrics import MetricAccumulator, Snapshot
from runner.training.tasks import Classification, Segmentation

CPU = torch.device("cpu")


def new_sums():
    return MetricAccumulator(Classification(3), CPU)


def one_step(sums, loss, **metrics):
    sums.add(torch.tensor(loss), torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    sums.add_step({name: torch.tensor(value) for name, value in metrics.items()})


def test_means_are_per_image_and_per_step():
    sums = new_sums()
    one_step(sums, 1.0, share=0.5)
    one_step(sums, 3.0, share=0.25)
    assert sums.means(sums.read()) == {"loss": 2.0, "accuracy": 0.5, "share": 0.375}


def test_without_an_image_there_are_no_means():
    assert new_sums().means(new_sums().read()) == {}


def test_means_of_a_window():
    sums = new_sums()
    one_step(sums, 1.0, share=0.5)
    before = sums.read()
    one_step(sums, 3.0, share=0.25)
    assert sums.means(sums.read().since(before)) == {"loss": 3.0, "accuracy": 0.5, "share": 0.25}


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_metric_that_is_not_finite_in_a_step_leaves_the_others_alone(bad):
    sums = new_sums()
    before = sums.read()
    found = []
    for value in (bad, 1.0, 3.0):
        one_step(sums, 1.0, ratio=value)
        totals = sums.read()
        found.append(sums.means(totals.since(before))["ratio"])
        before = totals
    assert math.isnan(found[0])
    assert found[1:] == [1.0, 3.0]
    assert sums.means(sums.read())["ratio"] == 2.0


def test_the_state_goes_on():
    sums, other = new_sums(), new_sums()
    one_step(sums, 1.0, share=0.5)
    other.load_state_dict(sums.state_dict())
    for each in (sums, other):
        one_step(each, 3.0, share=math.inf)
    assert sums.read() == other.read()
    sums.clear()
    assert sums.read() == Snapshot(counts=(0, 0))


def test_soft_targets_count_for_their_most_probable_class():
    sums = new_sums()
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    sums.add(torch.tensor(1.0), logits, torch.tensor([[0.4, 0.6], [0.3, 0.7]]))
    sums.add_step({})
    assert sums.means(sums.read())["accuracy"] == 0.5


def test_of_masks_the_window_and_the_whole_are_scored_by_their_pixels():
    sums = MetricAccumulator(Segmentation(2), CPU)
    right, wrong = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]])
    mask = torch.tensor([[[0, 1]]])
    sums.add(torch.tensor(1.0), right, mask)
    before = sums.read()
    sums.add(torch.tensor(3.0), wrong, torch.tensor([[[0, 255]]]))
    # pixels by (label, prediction): (0, 0), (1, 1), then (0, 1); the ignored one counts for nothing
    assert sums.means(sums.read()) == {"loss": 2.0, "mean_iou": 0.5, "pixel_accuracy": 2 / 3}
    assert sums.means(sums.read().since(before)) == {"loss": 3.0, "mean_iou": 0.0, "pixel_accuracy": 0.0}
