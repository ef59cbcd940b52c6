"""The largest Hessian eigenvalue, against diagonal Hessians and torch.func's full one."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F

from runner.methods import apply_ghost_batchnorm
from runner.probes.sharpness import sharpness
from runner.results.measurement import Measurement


def diagonal(eigenvalues):
    """A model, a batch and a loss whose Hessian is diagonal with these eigenvalues, in float64."""
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    model = nn.Linear(len(eigenvalues), 1, bias=False).double()
    return model, (values.abs().sqrt().diag(), values.sign()), lambda x, sign: 0.5 * (sign * x[:, 0].square()).sum()


@pytest.mark.parametrize(
    ("eigenvalues", "largest", "dominant"),
    [((1, 5, 3), 5, 5), ((-5, 3, 1), 3, -5), ((-5, -3, -1), -1, -5), ((2, 0, 0), 2, 2)],
)
def test_diagonal_hessian(eigenvalues, largest, dominant):
    model, batch, loss = diagonal(eigenvalues)
    found = sharpness(model, [batch], loss, tolerance=1e-12, max_iterations=500)
    assert found.numbers["largest_eigenvalue"] == pytest.approx(largest, rel=1e-6)
    assert found.numbers["dominant_eigenvalue"] == pytest.approx(dominant, rel=1e-6)
    assert found.numbers["residual"] < 1e-3
    assert found.numbers["converged"] == 1


def test_a_linear_loss_has_no_curvature():
    model, batch, _ = diagonal([1.0, 2.0])
    numbers = sharpness(model, [batch], lambda x, _: x.sum()).numbers
    assert (numbers["largest_eigenvalue"], numbers["iterations"], numbers["converged"]) == (0, 1, 1)


def test_mean_over_batches():
    model, (images, sign), loss = diagonal([3.0, 1.0])
    other = torch.tensor([1.0, 11.0]).double().sqrt().diag(), sign
    numbers = sharpness(model, [(images, sign), other], loss, tolerance=1e-9).numbers
    assert numbers["largest_eigenvalue"] == pytest.approx(6, rel=1e-6)


@pytest.mark.parametrize("ghost", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_network_with_batch_norm(mode, ghost):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)
    model = nn.Sequential(conv, norm, nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3)).double()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if ghost:
        apply_ghost_batchnorm(model, ghost_batch_size=4)
    batch = torch.randn(8, 2, 4, 4).double(), torch.randint(3, (8,))
    found = sharpness(model, [batch], F.cross_entropy, mode=mode, tolerance=1e-9, max_iterations=2000)
    model.train(mode == "train")
    model[4].eval()
    parameters = dict(model.named_parameters())

    def loss_of(flat):
        parts = flat.split([parameter.numel() for parameter in parameters.values()])
        shaped = {name: part.view_as(parameters[name]) for name, part in zip(parameters, parts, strict=True)}
        state = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return F.cross_entropy(functional_call(model, {**shaped, **state}, batch[0]), batch[1])

    full = jacrev(grad(loss_of))(torch.cat([parameter.detach().flatten() for parameter in parameters.values()]))
    assert found.numbers["largest_eigenvalue"] == pytest.approx(torch.linalg.eigvalsh(full)[-1].item(), rel=1e-5)
    assert found.texts["mode"] == mode


def test_parameters_that_are_frozen_do_not_count():
    model, batch, loss = diagonal([3.0, 1.0])
    both = nn.Sequential(model, nn.Linear(1, 1, bias=False).double())
    both[1].weight.requires_grad_(False).fill_(2.0)
    numbers = sharpness(both, [batch], loss, tolerance=1e-9).numbers
    assert numbers["largest_eigenvalue"] == pytest.approx(12, rel=1e-6)


def test_the_seed_fixes_the_estimates_and_not_the_result():
    model, batch, loss = diagonal([5.0, 4.0, 1.0])
    runs = [sharpness(model, [batch], loss, seed=seed, tolerance=1e-10) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0].arrays["estimate"], runs[1].arrays["estimate"])
    assert runs[0].arrays["estimate"][0] != runs[2].arrays["estimate"][0]
    assert runs[2].numbers["largest_eigenvalue"] == pytest.approx(5, rel=1e-6)


def test_it_is_set_beside_the_threshold_of_the_optimizer(small, tmp_path):
    words = ("probe=sharpness", "probe_at=[0,2]", "optimizer.lr=0.2", "schedule=constant", "schedule.warmup_epochs=0")
    assert small(*words, "optimizer.nesterov=false", "train.max_steps=2", "name=run").code == 0
    for step in (0, 2):
        numbers = Measurement.load(tmp_path / f"outputs/runs/run/probes/sharpness-step{step}.npz").numbers
        assert numbers["stability_threshold"] == pytest.approx(2 * 1.9 / 0.2)
        assert numbers["threshold_share"] == pytest.approx(numbers["largest_eigenvalue"] / 19)


def test_without_a_threshold_there_is_no_share():
    model, batch, loss = diagonal([5.0, 1.0])
    assert "threshold_share" not in sharpness(model, [batch], loss).numbers


def test_too_few_iterations_are_told():
    model, batch, loss = diagonal([5.0, 4.9, 1.0])
    found = sharpness(model, [batch], loss, tolerance=1e-12, max_iterations=3)
    assert found.numbers["converged"] == 0
    assert found.numbers["iterations"] == len(found.arrays["estimate"]) == 3


def test_a_diverged_model_gives_nan():
    model, batch, _ = diagonal([5.0, 1.0])
    model.weight.data.fill_(math.nan)
    numbers = sharpness(model, [batch], lambda x, _: x.pow(4).sum()).numbers
    assert math.isnan(numbers["largest_eigenvalue"])
    assert (numbers["converged"], numbers["iterations"]) == (0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"mode": "test"}, "mode=test"), ({"tolerance": 0.0}, "tolerance=0.0"), ({"max_iterations": 1}, "iterations=1")],
)
def test_wrong_settings(settings, message):
    model, batch, loss = diagonal([1.0])
    with pytest.raises(ValueError, match=message):
        sharpness(model, [batch], loss, **settings)
