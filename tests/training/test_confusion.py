"""Confusion matrices against scikit-learn, cases done by hand, and two processes."""

import math

import pytest
import torch
from sklearn import metrics
from torch.nn import functional as F

from runner.distributed import collectives
from runner.training import metrics as confusion


def random_batch(seed, number=4, num_classes=5, size=(6, 7)):
    """Logits and masks in which a quarter of the pixels is ignored and the last class does not occur."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(number, num_classes, *size, generator=generator)
    targets = torch.randint(num_classes - 1, (number, *size), generator=generator)
    ignored = torch.rand(targets.shape, generator=generator) < 0.25
    return logits, targets.masked_fill(ignored, 255)


def logits_of(predicted, num_classes):
    """Logits (1, C, H, W) whose largest is that of the classes `predicted` (H, W)."""
    return F.one_hot(torch.tensor(predicted), num_classes).movedim(2, 0).unsqueeze(0).float()


def test_counts_and_scores_are_those_of_scikit_learn():
    counts = confusion.new_confusion(5, torch.device("cpu"))
    labels, predictions = [], []
    for seed in range(3):
        logits, targets = random_batch(seed)
        confusion.count_pixels(counts, logits, targets)
        labelled = targets != 255
        labels += targets[labelled].tolist()
        predictions += logits.argmax(1)[labelled].tolist()
    matrix = confusion.confusion_matrix(counts)
    assert matrix.tolist() == metrics.confusion_matrix(labels, predictions, labels=range(5)).tolist()
    assert counts[0] == 3 * 4 * 6 * 7 - len(labels)
    ious = metrics.jaccard_score(labels, predictions, average=None, labels=range(5))
    assert confusion.iou_by_class(matrix) == pytest.approx(ious.tolist(), rel=1e-12)
    assert confusion.mean_iou(matrix) == pytest.approx(ious.mean(), rel=1e-12)
    assert confusion.pixel_accuracy(matrix) == pytest.approx(metrics.accuracy_score(labels, predictions), rel=1e-12)


def test_a_case_by_hand():
    """Class 1 is right in 1 of 3 pixels, class 2 is predicted and not labelled, class 3 is neither."""
    counts = confusion.new_confusion(4, torch.device("cpu"))
    confusion.count_pixels(counts, logits_of([[0, 1, 2], [1, 3, 0]], 4), torch.tensor([[[0, 1, 1], [0, 255, 255]]]))
    matrix = confusion.confusion_matrix(counts)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert counts[0] == 2
    ious = confusion.iou_by_class(matrix)
    assert ious[:3] == [1 / 2, 1 / 3, 0]
    assert math.isnan(ious[3])
    assert confusion.mean_iou(matrix) == pytest.approx((1 / 2 + 1 / 3) / 3)
    assert confusion.pixel_accuracy(matrix) == 0.5


def test_without_a_labelled_pixel_there_is_no_score():
    counts = confusion.new_confusion(2, torch.device("cpu"))
    confusion.count_pixels(counts, logits_of([[0, 1]], 2), torch.tensor([[[255, 255]]]))
    assert counts.tolist() == [2, 0, 0, 0, 0]
    assert math.isnan(confusion.mean_iou(confusion.confusion_matrix(counts)))
    assert math.isnan(confusion.pixel_accuracy(confusion.confusion_matrix(counts)))


@pytest.mark.parametrize("label", [3, 254])
def test_a_label_that_is_no_class_is_a_bug(label):
    with pytest.raises((RuntimeError, IndexError)):
        confusion.count_pixels(
            confusion.new_confusion(3, torch.device("cpu")), logits_of([[2]], 3), torch.tensor([[[label]]])
        )


@pytest.mark.parametrize("label_shape", [(8, 12), (2, 3), (5, 4)])
def test_logits_at_the_label_know_nothing_of_the_padding(label_shape):
    shown = torch.randn(3, 4, 6)
    padded = F.pad(shown, (0, 5, 0, 2), value=1e6)
    found = confusion.at_label_size(padded, (4, 6), label_shape)
    assert found.shape == (3, *label_shape)
    for c, row, column in [(0, 0, 0), (1, 1, 2), (2, label_shape[0] - 1, label_shape[1] - 1)]:
        assert found[c, row, column].item() == pytest.approx(bilinear(shown[c], row, column, label_shape), abs=1e-5)


def bilinear(image, row, column, shape):
    """The value at a pixel's centre between the centres of the pixels around it; the border goes on outwards."""
    value = 0.0
    y, x = ((i + 0.5) * size / new - 0.5 for i, size, new in zip((row, column), image.shape, shape, strict=True))
    y, x = max(y, 0.0), max(x, 0.0)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            weight_y = max(0, 1 - abs(min(y, image.shape[0] - 1) - i))
            weight_x = max(0, 1 - abs(min(x, image.shape[1] - 1) - j))
            value += weight_y * weight_x * image[i, j].item()
    return value


def test_logits_of_the_labels_size_stay_as_they_are():
    logits = torch.randn(3, 4, 6, dtype=torch.bfloat16)
    assert torch.equal(confusion.at_label_size(logits, (4, 6), (4, 6)), logits.float())


def count_on_a_rank(rank, folder):
    """One of two processes: its half of the images, then the sum, twice."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        counts = confusion.new_confusion(5, torch.device("cpu"))
        logits, targets = random_batch(0)
        confusion.count_pixels(counts, logits.chunk(2)[rank], targets.chunk(2)[rank])
        own = counts.clone()
        sums = [collectives.all_reduce_sum(counts) for _ in range(2)]
        torch.save({"sums": sums, "own": own, "after": counts}, folder / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")
def test_two_processes_count_what_one_does(tmp_path):
    torch.multiprocessing.spawn(count_on_a_rank, args=(tmp_path,), nprocs=2)
    whole = confusion.new_confusion(5, torch.device("cpu"))
    confusion.count_pixels(whole, *random_batch(0))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(total, whole) for total in found["sums"])
        assert torch.equal(found["after"], found["own"])
    assert collectives.all_reduce_sum(whole) is whole
