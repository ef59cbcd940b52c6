"""MixUp: the formula, the portions of a batch, the distribution of lambda, draws that a resumed run repeats."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runner.methods import mixup_batch
from runner.methods.cutmix import CutMix
from runner.methods.mixing import probabilities
from runner.methods.mixup import MixUp


def numbered(size):
    """Images whose pixels all are the image's number, each of a class of its own."""
    return torch.arange(size, dtype=torch.float32).view(-1, 1, 1, 1).expand(size, 3, 4, 5), torch.arange(size)


@pytest.mark.parametrize("lam", [0.0, 0.31, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["indices", "int32", "probabilities"])
def test_images_and_labels_are_the_weighted_means(lam, kind):
    torch.manual_seed(0)
    images, permutation = torch.randn(7, 3, 5, 9), torch.randperm(7)
    targets = {
        "indices": torch.randint(5, (7,)),
        "int32": torch.randint(5, (7,), dtype=torch.int32),
        "probabilities": torch.rand(7, 5).softmax(1),
    }[kind]
    before = images.clone(), targets.clone()
    mixed, labels = mixup_batch(images, targets, num_classes=5, lam=lam, permutation=permutation)

    x = images.double().numpy()
    y = np.eye(5)[targets.numpy()] if targets.ndim == 1 else targets.double().numpy()
    partner = permutation.numpy()
    np.testing.assert_allclose(mixed.numpy(), lam * x + (1 - lam) * x[partner], rtol=0, atol=1e-6)
    np.testing.assert_allclose(labels.numpy(), lam * y + (1 - lam) * y[partner], rtol=0, atol=1e-6)
    assert mixed.dtype == labels.dtype == torch.float32
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])
    if lam == 1:
        assert torch.equal(mixed, images)


def test_the_loss_is_the_mean_of_the_two_losses():
    torch.manual_seed(0)
    logits, targets, permutation = torch.randn(9, 4), torch.randint(4, (9,)), torch.randperm(9)
    _, labels = mixup_batch(torch.zeros(9, 1), targets, num_classes=4, lam=0.3, permutation=permutation)
    expected = 0.3 * F.cross_entropy(logits, targets) + 0.7 * F.cross_entropy(logits, targets[permutation])
    torch.testing.assert_close(F.cross_entropy(logits, labels), expected)


def test_the_memory_format_stays():
    images = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for portion in ("all", "first_half", "second_half"):
        mixed, _ = MixUp(portion=portion).transform_batch(images, torch.arange(4), 4)
        assert mixed.is_contiguous(memory_format=torch.channels_last), portion


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lam": 1.5}, r"lam=1\.5: it must lie in \[0, 1\]"),
        ({"lam": float("nan")}, r"lam=nan"),
        ({"targets": torch.arange(3)}, "4 images, 3 targets and a permutation of 4"),
        ({"permutation": torch.arange(5)}, "4 images, 4 targets and a permutation of 5"),
        ({"targets": torch.zeros(4, 8, 8, dtype=torch.long)}, r"targets of shape \(4, 8, 8\) and torch.int64 cannot"),
        ({"targets": torch.zeros(4, 6)}, r"probabilities \(B, num_classes=5\)"),
        ({"targets": torch.zeros(4)}, "class indices"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    images, targets = numbered(4)
    arguments = {"targets": targets, "num_classes": 5, "lam": 0.5, "permutation": torch.arange(4)} | changes
    with pytest.raises(ValueError, match=message):
        mixup_batch(images, **arguments)


@pytest.mark.parametrize(
    ("portion", "members"),
    [("auto", range(7)), ("all", range(7)), ("first_half", range(3)), ("second_half", range(3, 7))],
)
def test_partners_come_from_the_portion_and_the_rest_stays(portion, members):
    """Each image and each label tell their two numbers and lambda; an odd batch has its larger half last."""
    method = MixUp(alpha=1.0, portion=portion)
    method.apply(torch.nn.Identity(), torch.zeros(1), seed=5)
    images, targets = numbered(7)
    moved = set()
    for _ in range(20):
        mixed, labels = method.transform_batch(images, targets, 7)
        shares = set()
        for i in range(7):
            assert mixed[i].unique().numel() == 1
            torch.testing.assert_close(mixed[i, 0, 0, 0], (labels[i] * torch.arange(7)).sum())
            partners = set(labels[i].nonzero().flatten().tolist()) - {i}
            assert partners <= set(members) if i in members else not partners
            if partners:
                shares.add(round(labels[i, i].item(), 5))
                moved.add(i)
        assert len(shares) <= 1  # one lambda for the batch
    assert moved == set(members)


@pytest.mark.parametrize("portion", ["all", "first_half", "second_half"])
def test_one_image_is_its_own_partner(portion):
    images, targets = numbered(1)
    mixed, labels = MixUp(portion=portion).transform_batch(images, targets, 3)
    assert torch.equal(mixed, images)
    assert torch.equal(labels, torch.tensor([[1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_has_the_beta_distribution(alpha):
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)); of two images half the permutations swap them and show lambda."""
    method = MixUp(alpha=alpha)
    method.apply(torch.nn.Identity(), torch.zeros(1), seed=1)
    images, targets = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
    drawn = torch.stack([method.transform_batch(images, targets, 2)[1][0, 0] for _ in range(3000)]).double()
    lam = drawn[drawn < 1]
    assert 1300 < len(lam) <= 1700
    assert lam.mean().item() == pytest.approx(0.5, abs=0.04)
    assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


@pytest.mark.parametrize("method_class", [MixUp, CutMix])
def test_a_resumed_run_goes_on_with_the_same_draws(method_class):
    images, targets = torch.randn(6, 3, 9, 7), torch.arange(6)

    def fresh(seed):
        method = method_class()
        assert method.apply(torch.nn.Identity(), images, seed=seed) == 0
        return method

    whole = fresh(seed=3)
    steps = [whole.transform_batch(images, targets, 6) for _ in range(4)]
    stopped = fresh(seed=3)
    for _ in range(2):
        stopped.transform_batch(images, targets, 6)
    state = stopped.state_dict()
    assert all(type(value) is int for value in state.values())
    resumed = fresh(seed=3)
    resumed.load_state_dict(state)
    for step in steps[2:]:
        again = resumed.transform_batch(images, targets, 6)
        assert torch.equal(again[0], step[0])
        assert torch.equal(again[1], step[1])
    assert not torch.equal(steps[0][0], steps[1][0])
    assert not torch.equal(fresh(seed=4).transform_batch(images, targets, 6)[0], steps[0][0])
    assert fresh(seed=-1).transform_batch(images, targets, 6)[0].shape == images.shape
    added = fresh(seed=3)
    added.load_state_dict({})  # a run resumed with a method that it did not have
    assert torch.equal(added.transform_batch(images, targets, 6)[0], steps[0][0])


def test_the_draws_of_mixup_and_cutmix_are_not_the_same():
    drawn = []

    for method in (MixUp(alpha=1.0), CutMix(alpha=1.0)):
        method.mix = lambda images, targets, lam, *_: drawn.append(lam) or (images, targets)
        method.transform_batch(torch.zeros(4, 3, 8, 8), torch.arange(4), 4)
    assert drawn[0] != drawn[1]


def test_the_global_random_states_are_left_alone():
    torch_state, (_, numpy_state, *_) = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    MixUp().transform_batch(*numbered(4), 4)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_probabilities_stay_what_they_are():
    targets = torch.rand(3, 4)
    assert probabilities(targets, 4) is targets


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"alpha": -1.0}, {"portion": "half"}])
def test_settings_out_of_range_are_refused(settings):
    for method_class in MixUp, CutMix:
        with pytest.raises(ValueError, match=rf"^{next(iter(settings))}="):
            method_class(**settings)


def test_per_image_every_image_has_its_own_share():
    torch.manual_seed(0)
    images, targets = torch.randn(6, 3, 4, 4), torch.arange(6)
    lam, permutation = [0.0, 0.25, 0.5, 0.75, 1.0, 0.1], torch.tensor([1, 2, 3, 4, 5, 0])
    mixed, labels = mixup_batch(images, targets, num_classes=6, lam=lam, permutation=permutation)
    for i, share in enumerate(lam):
        expected = share * images[i].double() + (1 - share) * images[permutation[i]].double()
        torch.testing.assert_close(mixed[i].double(), expected, rtol=0, atol=1e-6)
        assert labels[i, i].item() == pytest.approx(share, abs=1e-6)
    with pytest.raises(ValueError, match=r"one for each of 6 images"):
        mixup_batch(images, targets, num_classes=6, lam=lam[:2], permutation=permutation)
    drawn = MixUp(alpha=1.0, per_image=True).transform_batch(images, targets, 6)[1]
    assert len({round(value, 4) for value in drawn.amax(1).tolist()}) > 3
