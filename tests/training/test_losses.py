"""The losses against their formulas written out in loops, in float64."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from runner.training.losses import cross_entropy, dice_loss, segmentation_loss

LOSSES = {
    "cross_entropy": cross_entropy,
    "dice": dice_loss,
    "dice_of_sums": partial(dice_loss, squared=False),
    "both": lambda logits, targets: segmentation_loss(logits, targets, dice_weight=0.5, label_smoothing=0.1),
}


@pytest.fixture
def batch():
    """Logits of 4 classes, of which class 2 occurs in no mask, and masks with ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64) * 2
    targets = torch.tensor([0, 1, 3, 255])[torch.randint(4, (2, 3, 5), generator=generator)]
    return logits, targets


def labelled_pixels(logits, targets):
    """(softmax as a list of Python numbers, label) of every pixel that has one."""
    for image, mask in zip(logits, targets, strict=True):
        for row in range(mask.shape[0]):
            for column in range(mask.shape[1]):
                if mask[row, column] != 255:
                    powers = [math.exp(value) for value in image[:, row, column].tolist()]
                    yield [power / sum(powers) for power in powers], int(mask[row, column])


def dice_in_loops(logits, targets, power=2):
    pixels = list(labelled_pixels(logits, targets))
    losses = []
    for c in sorted({label for _, label in pixels}):
        overlap = sum(p[c] for p, label in pixels if label == c)
        both = sum(p[c] ** power for p, _ in pixels) + sum(label == c for _, label in pixels)
        losses.append(1 - 2 * overlap / both)
    return sum(losses) / len(losses)


def cross_entropy_in_loops(logits, targets, smoothing):
    losses = [
        -(1 - smoothing) * math.log(p[label]) - smoothing * sum(math.log(share) for share in p) / len(p)
        for p, label in labelled_pixels(logits, targets)
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_the_cross_entropy_of_images_is_torchs_bit_for_bit(kind, smoothing):
    torch.manual_seed(0)
    logits = torch.randn(9, 300)
    targets = torch.tensor([0, 255, 299, *range(6)]) if kind == "indices" else torch.rand(9, 300).softmax(1)
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    assert torch.equal(cross_entropy(logits, targets, label_smoothing=smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_cross_entropy_of_masks_is_the_mean_over_labelled_pixels(batch, smoothing):
    found = cross_entropy(*batch, label_smoothing=smoothing).item()
    assert found == pytest.approx(cross_entropy_in_loops(*batch, smoothing), rel=1e-12)


def test_the_dice_loss_is_milletaris_over_the_classes_that_occur(batch):
    assert dice_loss(*batch).item() == pytest.approx(dice_in_loops(*batch), rel=1e-12)


def test_without_squares_the_dice_loss_is_composers(batch):
    found = segmentation_loss(*batch, cross_entropy_weight=0.0, dice_weight=2.0, dice_squared=False).item()
    assert found == pytest.approx(2 * dice_in_loops(*batch, power=1), rel=1e-12)
    assert found != pytest.approx(2 * dice_in_loops(*batch), rel=1e-2)


@pytest.mark.parametrize(("cross_entropy_weight", "dice_weight"), [(1.0, 0.0), (0.0, 2.0), (0.375, 1.125)])
def test_the_loss_of_segmentation_is_the_weighted_sum(batch, cross_entropy_weight, dice_weight):
    found = segmentation_loss(
        *batch, cross_entropy_weight=cross_entropy_weight, dice_weight=dice_weight, label_smoothing=0.2
    )
    expected = cross_entropy_weight * cross_entropy_in_loops(*batch, 0.2) + dice_weight * dice_in_loops(*batch)
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(batch, name):
    logits, targets = batch
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, targets), logits.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_where_no_pixel_is_labelled_loss_and_gradients_are_0(batch, name):
    logits, targets = batch[0].requires_grad_(), torch.full_like(batch[1], 255)
    loss = LOSSES[name](logits, targets)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", LOSSES)
def test_what_stands_in_ignored_pixels_does_not_matter(batch, name):
    logits, targets = batch
    ignored = (targets == 255).unsqueeze(1)
    other = torch.where(ignored, 100 * torch.randn_like(logits), logits)
    assert torch.equal(LOSSES[name](other, targets), LOSSES[name](logits, targets))
    LOSSES[name](other.requires_grad_(), targets).backward()
    assert not other.grad.masked_select(ignored).any()


def test_a_perfect_prediction_has_no_dice_loss(batch):
    targets = batch[1]
    sure = 1e4 * F.one_hot(targets.masked_fill(targets == 255, 2), 4).movedim(3, 1).double()
    assert dice_loss(sure, targets) == 0
    assert dice_loss(sure.roll(1, dims=1), targets) == 1


def test_under_autocast_the_dice_loss_is_computed_in_float32(batch):
    logits, targets = batch[0].bfloat16(), batch[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dice_loss(logits, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(dice_in_loops(logits.double(), targets), rel=1e-6)


def test_no_loss_at_all_is_refused(batch):
    with pytest.raises(ValueError, match="cross_entropy_weight=0, dice_weight=0: no loss is left"):
        segmentation_loss(*batch, cross_entropy_weight=0.0)


def test_dice_of_millions_of_pixels_is_that_of_float64():
    """Sums of so many numbers in float32, one by one, are off by more than the loss itself."""
    torch.manual_seed(0)
    targets = torch.randint(2, (16, 512, 512))
    logits = 1.5 * (2 * torch.nn.functional.one_hot(targets, 2) - 1).permute(0, 3, 1, 2).float()
    assert dice_loss(logits, targets).item() == pytest.approx(dice_loss(logits.double(), targets).item(), rel=1e-3)


WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])


def weighted_in_loops(logits, targets, smoothing):
    """torch's weighted mean, pixel by pixel."""
    total = weight = 0.0
    share = logits.log_softmax(1)
    for n, row, column in (targets != 255).nonzero().tolist():
        label = targets[n, row, column].item()
        smoothed = [(k == label) * (1 - smoothing) + smoothing / 4 for k in range(4)]
        total -= sum(WEIGHTS[k].item() * smoothed[k] * share[n, k, row, column].item() for k in range(4))
        weight += WEIGHTS[label].item()
    return total / weight


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_of_masks_are_a_weighted_mean(batch, smoothing):
    found = cross_entropy(*batch, class_weights=WEIGHTS, label_smoothing=smoothing).item()
    assert found == pytest.approx(weighted_in_loops(*batch, smoothing), rel=1e-12)
    whole = segmentation_loss(*batch, class_weights=WEIGHTS, dice_weight=0.5, label_smoothing=smoothing).item()
    assert whole == pytest.approx(found + 0.5 * dice_in_loops(*batch), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_of_images_are_torchs(smoothing):
    torch.manual_seed(0)
    logits, targets = torch.randn(9, 4, dtype=torch.float64), torch.randint(4, (9,))
    settings = {"class_weights": WEIGHTS, "label_smoothing": smoothing}
    expected = F.cross_entropy(logits, targets, WEIGHTS.double(), label_smoothing=smoothing)
    assert cross_entropy(logits, targets, **settings).item() == pytest.approx(expected.item(), rel=1e-12)
    soft = F.one_hot(targets, 4).double()
    assert cross_entropy(logits, soft, **settings).item() == pytest.approx(expected.item(), rel=1e-12)


def test_without_a_labelled_pixel_the_weighted_loss_is_0(batch):
    logits, targets = batch[0].requires_grad_(), torch.full_like(batch[1], 255)
    loss = cross_entropy(logits, targets, class_weights=WEIGHTS)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
