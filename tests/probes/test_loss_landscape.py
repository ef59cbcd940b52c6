"""The loss along the gradient, against quadratic losses in closed form."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from runner.methods import BatchChannelNorm2d
from runner.probes.loss_landscape import loss_landscape


def half_square(logits, targets):
    return 0.5 * logits.square().sum()


def quadratic(curvatures, weights):
    """A model and a batch with the loss 1/2 sum_i h_i w_i^2 of its weights, in float64."""
    model = nn.Linear(len(weights), 1, bias=False).double()
    model.weight.data.copy_(torch.as_tensor(weights))
    return model, (torch.tensor(curvatures, dtype=torch.float64).sqrt().diag(), torch.zeros(len(weights)))


def test_relative_loss_of_a_quadratic():
    h, w = np.array([4.0, 0.5]), np.array([1.0, -3.0])
    model, batch = quadratic(h, w)
    found = loss_landscape(model, [batch], half_square)
    steps = found.arrays["step_size"]
    expected = (h * (w * (1 - steps[:, None] * h)) ** 2).sum(1) / (h * w**2).sum()
    assert steps[[0, -1]] == pytest.approx([10**-5.5, 10**0.5])
    np.testing.assert_allclose(found.arrays["relative_loss"], [expected], rtol=1e-12)
    assert found.arrays["loss"] == pytest.approx([4.25])
    assert found.numbers["smallest_relative_loss"] == pytest.approx(expected.min())


def test_ranges_of_each_batch_and_their_medians():
    """With one curvature h the relative loss (1 - s h)^2 is below 1 until 2 / h, and 1000 from (1 + sqrt(1000)) / h."""
    curvatures = [1.0, 10.0, 100.0]
    model, _ = quadratic([1.0], [2.0])
    batches = [quadratic([h], [2.0])[1] for h in curvatures]
    found = loss_landscape(model, batches, half_square, exponents=(-3, 2), num_steps=101)
    grid = found.arrays["step_size"]
    last = [grid[grid < 2 / h].max() for h in curvatures]
    exploding = [grid[grid >= (1 + math.sqrt(1000)) / h].min() for h in curvatures]
    assert found.arrays["first_improving_step"] == pytest.approx([1e-3] * 3)
    assert found.arrays["last_improving_step"] == pytest.approx(last)
    assert found.arrays["improving_decades"] == pytest.approx(np.log10(last) + 3)
    assert found.arrays["first_exploding_step"] == pytest.approx(exploding)
    assert found.numbers["last_improving_step"] == pytest.approx(last[1])
    assert found.numbers["first_exploding_step"] == pytest.approx(exploding[1])


@pytest.mark.parametrize(
    ("exponents", "start", "end"),
    [((-2, 1.5), 0.0, 2 * math.pi - 1), ((1.02, 1.6), 2 * math.pi, 4 * math.pi - 1)],
    ids=["the first", "the second"],
)
def test_improving_steps_are_the_longest_run(exponents, start, end):
    """L(w) = 2 + cos(w) is below L(0.5) for 0.5 < w < 2 pi - 0.5, and again at each period; w(s) = 0.5 + s sin(0.5)."""
    model, batch = quadratic([1.0], [0.5])
    found = loss_landscape(model, [batch], lambda x, _: 2 + x.cos().sum(), exponents=exponents, num_steps=200)
    grid, relative = found.arrays["step_size"], found.arrays["relative_loss"][0]
    inside = grid[(grid > start / math.sin(0.5)) & (grid < end / math.sin(0.5))]
    assert relative[~np.isin(grid, inside)].min() < 1
    assert found.numbers["first_improving_step"] == inside[0]
    assert found.numbers["last_improving_step"] == inside[-1]
    assert found.numbers["first_exploding_step"] == math.inf


def test_no_step_improves():
    model, batch = quadratic([1.0], [1.0])
    numbers = loss_landscape(model, [batch], half_square, exponents=(0.5, 1), num_steps=3).numbers
    assert math.isnan(numbers["first_improving_step"])
    assert math.isnan(numbers["last_improving_step"])
    assert numbers["improving_decades"] == 0


def test_losses_that_are_not_finite():
    model, batch = quadratic([1.0], [2.0])
    overflowing = loss_landscape(model, [batch], lambda x, _: x.square().sum().exp(), exponents=(-3, 2), num_steps=6)
    relative = overflowing.arrays["relative_loss"][0]
    assert relative[0] < 1
    assert relative[-1] == math.inf
    beyond = loss_landscape(model, [batch], lambda x, _: (4 - x).log().sum(), exponents=(-1, 1), num_steps=50)
    grid = beyond.arrays["step_size"]  # w = 2 + s / 2, and the logarithm has no value from w = 4 on
    assert beyond.numbers["first_exploding_step"] == grid[grid > 4].min()
    assert np.isinf(beyond.arrays["relative_loss"][0, grid > 4]).all()
    diverged = loss_landscape(model, [batch], lambda x, _: x.sum() * math.nan, num_steps=3)
    assert np.isnan(diverged.arrays["relative_loss"]).all()
    assert diverged.numbers["first_exploding_step"] == math.inf


def test_each_step_starts_from_the_same_buffers():
    """A norm whose running estimates shape the training loss would drift from step to step."""
    torch.manual_seed(0)
    norm = BatchChannelNorm2d(4, num_groups=2, estimate=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)).double()
    batch = torch.randn(8, 3, 4, 4).double(), torch.randint(3, (8,))
    found = loss_landscape(model, [batch], nn.functional.cross_entropy, exponents=(-12, -11), num_steps=5)
    np.testing.assert_allclose(found.arrays["relative_loss"], 1, atol=1e-9)
    model[2] = nn.Identity()
    undropped = loss_landscape(model, [batch], nn.functional.cross_entropy, exponents=(-12, -11), num_steps=5)
    assert found.arrays["loss"] == undropped.arrays["loss"]


@pytest.mark.parametrize("settings", [{"exponents": (0, -1)}, {"num_steps": 1}])
def test_steps_that_do_not_increase_are_refused(settings):
    model, batch = quadratic([1.0], [1.0])
    with pytest.raises(ValueError, match="increasing steps"):
        loss_landscape(model, [batch], half_square, **settings)
