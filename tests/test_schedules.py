"""Learning-rate schedules against torch's own and closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from runner.schedules import constant, cosine, make_schedule, multistep


def rates(share, steps):
    return [share(step) for step in range(steps)]


def reference(make, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_is_torchs():
    expected = reference(lambda optimizer: CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1), 51)
    assert rates(cosine(50, final_lr_share=0.1), 51) == pytest.approx(expected)


def test_multistep_is_torchs():
    expected = reference(lambda optimizer: MultiStepLR(optimizer, milestones=[20, 30], gamma=0.1), 40)
    assert rates(multistep(40, milestones=[0.5, 0.75], gamma=0.1), 40) == pytest.approx(expected)


@pytest.mark.parametrize("make", [cosine, multistep, constant])
def test_the_warm_up_is_linear_and_ends_at_the_full_rate(make):
    found = rates(make(100, 10), 11)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10] == pytest.approx(1)


def test_after_the_warm_up_half_a_cosine_over_the_rest():
    found = rates(cosine(30, 10), 31)
    assert found[20] == pytest.approx(0.5)
    assert found[30] == pytest.approx(0)
    assert found[25] == pytest.approx((1 + math.cos(0.75 * math.pi)) / 2)


def test_a_schedule_that_starts_late_goes_on_as_one_that_never_stopped():
    share, optimizer = cosine(40, 5), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = make_schedule(optimizer, share, step=17)
    for step in range(17, 30):
        assert optimizer.param_groups[0]["lr"] == 0.3 * share(step)
        optimizer.step()
        schedule.step()
