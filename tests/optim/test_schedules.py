"""Learning-rate schedules against torch's own and closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, PolynomialLR

from runner.experiment import builders
from runner.optim.schedules import (
    PlateauRule,
    constant,
    cosine,
    make_schedule,
    multistep,
    onecycle,
    plateau,
    poly,
)

SCHEDULES = {make.__name__: make for make in (constant, cosine, multistep, onecycle, plateau, poly)}


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


@pytest.mark.parametrize("power", [0.9, 2.0])
def test_poly_is_torchs(power):
    expected = reference(lambda optimizer: PolynomialLR(optimizer, total_iters=50, power=power), 51)
    assert rates(poly(50, power=power), 51) == pytest.approx(expected)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(
    ("total_steps", "pct_start"), [(50, 0.3), (37, 0.25), (20, 0.95), (8, 0.3), (10, 0.05), (2, 0.3)]
)
def test_onecycle_is_torchs(total_steps, pct_start, anneal):
    """Tops that lie between two steps, before the first and at the last but one among them."""
    settings = {"pct_start": pct_start, "div_factor": 10.0, "final_div_factor": 100.0}

    def torchs(optimizer):
        strategy = {"anneal_strategy": anneal, "cycle_momentum": False}
        return OneCycleLR(optimizer, max_lr=1.0, total_steps=total_steps, **settings, **strategy)

    # one step fewer than `reference` takes, for torch refuses the one after the last
    expected = reference(torchs, total_steps - 1)
    found = rates(onecycle(total_steps, anneal=anneal, **settings), total_steps + 1)
    assert found[:-2] == pytest.approx(expected)
    assert found[-2:] == pytest.approx([1 / 1000] * 2)


@pytest.mark.parametrize("total_steps", [1, 2, 10])
def test_a_cycle_that_only_rises_has_the_full_rate_at_the_last_step(total_steps):
    def torchs(optimizer):
        return OneCycleLR(optimizer, max_lr=1.0, total_steps=total_steps, pct_start=1.0, cycle_momentum=False)

    found = rates(onecycle(total_steps, pct_start=1.0), total_steps)
    assert found[-1] == 1
    assert found[:-1] == pytest.approx(reference(torchs, total_steps - 1) if total_steps > 1 else [])


def test_a_cycle_begins_where_its_warm_up_ends():
    warmed_up, plain = onecycle(50, 10, div_factor=4.0), onecycle(40, div_factor=4.0)
    assert rates(warmed_up, 10) == pytest.approx([(step + 1) / 40 for step in range(10)])
    assert rates(warmed_up, 50)[10:] == pytest.approx(rates(plain, 40))


@pytest.mark.parametrize("make", [cosine, multistep, poly, plateau, constant])
def test_the_warm_up_is_linear_and_ends_at_the_full_rate(make):
    found = rates(make(100, 10), 11)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10] == pytest.approx(1)


@pytest.mark.parametrize("make", SCHEDULES.values())
@pytest.mark.parametrize(("total_steps", "warmup_steps"), [(1, 0), (1, 1), (2, 0), (5, 5), (5, 9), (40, 3)])
def test_every_step_and_the_one_after_the_last_have_a_share(make, total_steps, warmup_steps):
    assert all(0 <= share <= 1 for share in rates(make(total_steps, warmup_steps), total_steps + 1))


@pytest.mark.parametrize("make", [cosine, poly])
def test_a_share_of_the_rate_may_be_left_at_the_end(make):
    found, plain = rates(make(40, 10, final_lr_share=0.2), 41), rates(make(40, 10), 41)
    assert found[40] == pytest.approx(0.2)
    assert found[10:] == pytest.approx([0.2 + 0.8 * share for share in plain[10:]])


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


BJORCK = PlateauRule(first_milestone=0.5, patience=20, max_doublings=4)


def epochs_trained(rule, epochs, best_epochs):
    """How long a run is whose new bests come in `best_epochs`, and the epochs after which it was doubled."""
    doubled, best, epoch = [], 0, 0
    while epoch < epochs:
        epoch += 1
        best = epoch if best_epochs(epoch) else best
        if rule.doubles(epochs_done=epoch, epochs=epochs, best_epoch=best, doublings=len(doubled)):
            doubled.append(epoch)
            epochs *= 2
    return epochs, doubled


@pytest.mark.parametrize(
    ("best_epochs", "expected"),
    [
        (lambda epoch: True, (2640, [82, 165, 330, 660])),  # improving for ever: up to max_doublings
        (lambda epoch: epoch == 1, (165, [])),  # never after the first
        (lambda epoch: epoch <= 62, (165, [])),  # the 20 epochs from 63 to 82 brought nothing
        (lambda epoch: epoch <= 63, (330, [82])),
        (lambda epoch: epoch <= 200, (660, [82, 165])),  # at the third milestone, 330, no more
        (lambda epoch: epoch == 70, (330, [82])),  # one new best is enough
        (lambda epoch: epoch > 82, (165, [])),  # new bests after the first milestone come too late
    ],
)
def test_training_is_doubled_while_the_last_20_epochs_bring_a_new_best(best_epochs, expected):
    assert epochs_trained(BJORCK, 165, best_epochs) == expected


@pytest.mark.parametrize(
    ("rule", "epochs", "best_epochs", "expected"),
    [
        # a first milestone sooner than the patience: too early for a plateau, until 32 epochs have passed
        (BJORCK, 8, lambda epoch: epoch == 1, (64, [4, 8, 16])),
        (PlateauRule(0.5, 20, 0), 165, lambda epoch: True, (165, [])),
        (PlateauRule(0.5, 1, 9), 10, lambda epoch: epoch <= 5, (20, [5])),
        (PlateauRule(0.5, 20, 4), 1, lambda epoch: True, (1, [])),  # its only epoch ends after the milestone
        (PlateauRule(0.29, 1, 1), 100, lambda epoch: epoch == 29, (200, [29])),  # not 28, for 0.29 * 100 < 29
    ],
)
def test_the_edges_of_the_rule(rule, epochs, best_epochs, expected):
    assert epochs_trained(rule, epochs, best_epochs) == expected


@pytest.mark.parametrize("epochs", [2, 7, 10, 165])
@pytest.mark.parametrize("steps_per_epoch", [1, 3, 10])
@pytest.mark.parametrize("milestones", [(0.5, 0.75), (0.29, 0.8), (0.9,)])
def test_the_rate_is_full_until_training_is_doubled_and_goes_on_so(epochs, steps_per_epoch, milestones):
    """The warm-up is over by then and is not repeated."""
    rule, warmup_steps = PlateauRule(milestones[0], 20, 1), 1
    share = plateau(epochs * steps_per_epoch, warmup_steps, milestones=milestones)
    longer = plateau(2 * epochs * steps_per_epoch, warmup_steps, milestones=milestones)
    for epoch in range(1, epochs + 1):
        if rule.doubles(epochs_done=epoch, epochs=epochs, best_epoch=epoch, doublings=0):
            step = epoch * steps_per_epoch  # the next one
            assert rates(share, step) == [1.0] * step
            assert rates(longer, step + 1) == [1.0] * (step + 1)
            return
    assert math.floor(milestones[0] * epochs) == 0


def test_a_schedule_made_anew_after_a_doubling_takes_the_full_rate_back():
    """torch's scheduler has taken the lower rate of the milestone already when the rule is asked."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = make_schedule(optimizer, plateau(10, milestones=[0.5]))
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.03)
    make_schedule(optimizer, plateau(20, milestones=[0.5]), step=5)
    assert optimizer.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_defaults_of_a_schedule_are_those_of_its_yaml_file(composed, name):
    node = composed(f"schedule={name}", "schedule.warmup_epochs=0.25").schedule
    share = builders.build_schedule(node, total_steps=40, steps_per_epoch=12)
    assert rates(share, 41) == rates(SCHEDULES[name](40, 3), 41)


def test_the_rule_of_a_plateau_is_built_from_its_settings(composed):
    assert builders.build_plateau_rule(composed("schedule=plateau").schedule) == BJORCK
    assert builders.build_plateau_rule(composed("schedule=multistep").schedule) is None
