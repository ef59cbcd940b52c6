"""How training ends and goes on: divergence, early stopping, its time, which epochs are evaluated and kept."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from runner.data.batches import TensorTrainBatches
from runner.results.metrics import read_rows
from runner.training import plan as plan_module
from runner.training.checkpoint import load_checkpoint
from runner.training.divergence import FirstNonFinite, gradient_norm
from runner.training.evaluation import Evaluation
from runner.training.loop import Trainer
from runner.training.plan import Clock
from runner.training.precision import Precision
from runner.training.state import State
from runner.training.step import OptimizerStep
from runner.training.tasks import Classification


def folder(tmp_path, name="run"):
    return tmp_path / "outputs/runs" / name


def summary(tmp_path, name="run"):
    return json.loads((folder(tmp_path, name) / "summary.json").read_text())


def checkpoint(tmp_path, name="last.pt", run="run"):
    return load_checkpoint(folder(tmp_path, run) / "checkpoints" / name)


def rows(tmp_path, split, name="run"):
    return [row for row in read_rows(folder(tmp_path, name) / "metrics.jsonl") if row["split"] == split]


@pytest.fixture
def planted(monkeypatch):
    """`planted(5, 6)`: the images of these optimizer steps, counted from 1, are not numbers, as often as they come."""
    epoch = TensorTrainBatches.epoch

    def call(*steps, times=math.inf):
        left = dict.fromkeys(steps, times)

        def with_nan(batches, number, start=0):
            for place, (images, targets) in enumerate(epoch(batches, number, start), start=start):
                step = number * len(batches) + place + 1
                if left.get(step, 0) > 0:
                    left[step] -= 1
                    images = torch.full_like(images, math.nan)
                yield images, targets

        monkeypatch.setattr(TensorTrainBatches, "epoch", with_nan)

    return call


@pytest.mark.parametrize("log_every_steps", [1, 50])
def test_the_step_the_quantity_and_the_rate_are_told(small, tmp_path, planted, monkeypatch, log_every_steps):
    """Also where the sums are read only now and then, as on a GPU."""
    planted(6)
    monkeypatch.setattr("runner.training.loop.is_distributed", lambda: log_every_steps == 50)
    settings = ("train.epochs=2", "schedule=constant", "schedule.warmup_epochs=0", "optimizer.lr=0.03", "name=run")
    assert small(*settings, f"train.log_every_steps={log_every_steps}").code == 0
    found = summary(tmp_path)
    assert found["status"] == "diverged"
    assert (
        found["error"] == "the gradient was not finite at step 6, at a learning rate of 0.03"
        or found["error"] == "the training loss was not finite at step 6, at a learning rate of 0.03"
    )


def test_a_skipped_step_changes_nothing(small, tmp_path, planted):
    """Weights, momentum, running statistics and the average are those of a run without the step."""
    planted(2)
    settings = ("train.max_steps=2", "train.ema=0.9", "schedule=constant", "schedule.warmup_epochs=0")
    outcome = small(*settings, "train.on_divergence=skip", "name=run")
    assert outcome.code == 0, outcome.out
    assert "not finite at step 2" in outcome.out
    assert "the step was skipped" in outcome.out
    assert small("train.max_steps=1", *settings[1:], "name=one").code == 0
    skipped, one = checkpoint(tmp_path), checkpoint(tmp_path, run="one")
    for part in ("model", "ema"):
        expected = one[part] if part == "model" else one[part]["model"]
        for name, value in (skipped[part] if part == "model" else skipped[part]["model"]).items():
            assert torch.equal(value, expected[name]), (part, name)
    for number, state in one["optimizer"]["state"].items():
        assert torch.equal(skipped["optimizer"]["state"][number]["momentum_buffer"], state["momentum_buffer"])
    assert summary(tmp_path)["divergences"] == {"skipped_steps": 1, "restores": 0}
    assert summary(tmp_path)["status"] == "completed"


def test_too_many_skipped_in_a_row_are_divergence(small, tmp_path, planted):
    planted(2, 3, 4)
    settings = ("train.epochs=2", "train.on_divergence=skip")
    assert small(*settings, "train.max_divergences=3", "name=three").code == 0
    assert summary(tmp_path, "three")["status"] == "completed"
    assert small(*settings, "train.max_divergences=2", "name=two").code == 0
    found = summary(tmp_path, "two")
    assert found["status"] == "diverged"
    assert found["error"].endswith("3 steps in a row were skipped")


def test_an_epoch_whose_steps_were_all_skipped_has_no_training_loss(small, tmp_path, planted):
    """The second of three, of four steps each; the rest goes on as ever."""
    planted(5, 6, 7, 8)
    settings = ("train.epochs=3", "train.on_divergence=skip", "train.max_divergences=4", "train.log_every_steps=1")
    outcome = small(*settings, "name=run")
    assert outcome.code == 0, outcome.out
    found = summary(tmp_path)
    assert (found["status"], found["divergences"]["skipped_steps"]) == ("completed", 4)
    assert ["loss" in row for row in rows(tmp_path, "train")] == [True, False, True]
    assert [row["step"] for row in rows(tmp_path, "steps")] == [1, 2, 3, 4, 9, 10, 11, 12]


@pytest.mark.parametrize("on_divergence", ["stop", "skip"])
def test_a_gradient_that_overflows_at_the_smallest_scale_diverges(small, tmp_path, monkeypatch, on_divergence):
    """As under fp16, with a finite loss: the scaler lowers its scale from 8 to 1, and then has to skip for ever."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=8.0))
    backward = OptimizerStep._backward

    def overflowing(take_step, images, targets):
        found = backward(take_step, images, targets)
        next(take_step.state.model.parameters()).grad.fill_(math.inf)
        return found

    monkeypatch.setattr(OptimizerStep, "_backward", overflowing)
    settings = ("train.epochs=5", "train.max_divergences=2", f"train.on_divergence={on_divergence}", "name=run")
    assert small(*settings).code == 0
    found = summary(tmp_path)
    assert found["status"] == "diverged"  # scales 8, 4, 2 are tried before 1
    assert "the gradient was not finite at step 6" in found["error"]


def test_a_gradient_that_overflows_now_and_then_does_not_diverge():
    seen = FirstNonFinite(torch.device("cpu"), max_overflows=2)
    one, wrong = torch.tensor(1.0), torch.tensor(math.inf)
    for step in range(1, 30):
        seen.update(step, one, wrong if step % 3 else one, one)  # twice in a row at the smallest scale
    for step in range(30, 60):
        seen.update(step, one, wrong, torch.tensor(2.0))
    assert seen.read() is None


def test_going_back_to_the_last_checkpoint_with_a_lower_rate(small, tmp_path, planted):
    """The end is that of a run which was stopped at the checkpoint and goes on with the lower rate."""
    planted(6, times=1)
    settings = ("train.epochs=2", "schedule=constant", "schedule.warmup_epochs=0", "train.log_every_steps=1")
    outcome = small(*settings, "optimizer.lr=0.04", "train.on_divergence=restore", "name=run")
    assert "back to step 4, with 0.5 times the rate" in outcome.out
    found = summary(tmp_path)
    assert found["status"] == "completed"
    assert found["divergences"] == {"skipped_steps": 0, "restores": 1}
    assert [row["lr"] for row in rows(tmp_path, "steps")] == [0.04] * 4 + [0.02] * 4
    assert [row["step"] for row in rows(tmp_path, "steps")] == list(range(1, 9))
    assert small(*settings, "optimizer.lr=0.04", "train.epochs=1", "name=two").code == 0
    assert small("resume=outputs/runs/two", "train.epochs=2", "optimizer.lr=0.02").code == 0
    other = checkpoint(tmp_path, run="two")["model"]
    assert all(torch.equal(value, other[name]) for name, value in checkpoint(tmp_path)["model"].items())


def test_going_back_before_the_first_epoch_and_a_limited_number_of_times(small, tmp_path, planted):
    planted(2)
    settings = ("train.on_divergence=restore", "train.max_divergences=2", "train.divergence_lr_factor=0.1", "name=run")
    assert small("train.epochs=2", *settings).code == 0
    found = summary(tmp_path)
    assert found["status"] == "diverged"
    assert found["error"].endswith("training had gone back 2 times")
    assert found["divergences"]["restores"] == 2


def test_a_step_skipped_under_loss_scaling():
    """As under fp16: a loss that is no number skips the step; an overflow of the scaled gradient is for the scaler."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    precision = Precision("fp32", torch.device("cpu"))
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    non_finite = FirstNonFinite(precision.device)
    state = State(model, optimizer, {}, Classification(10), precision)
    take_step = OptimizerStep(state, non_finite=non_finite, num_classes=3, may_skip=True)
    images, targets = torch.randn(8, 4), torch.randint(3, (8,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not take_step(images * math.nan, targets, number=1, progress=0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert non_finite.read() == (1, "training loss")
    assert precision.scaler.get_scale() == 2.0**9
    non_finite.clear()
    weight = model[1].weight.clone()
    overflow = model[1].weight.register_hook(lambda gradient: gradient * math.inf)
    assert take_step(images, targets, number=2, progress=0.0)
    overflow.remove()
    assert torch.equal(model[1].weight, weight)
    assert non_finite.read() is None
    assert take_step(images, targets, number=3, progress=0.0)
    assert not torch.equal(model[1].weight, weight)


@pytest.mark.parametrize("may_wait", [True, False])
def test_the_norm_of_all_gradients(may_wait):
    parameters = [
        torch.nn.Parameter(torch.zeros(3)),
        torch.nn.Parameter(torch.zeros(2, 2)),
        torch.nn.Parameter(torch.zeros(1)),
    ]
    parameters[0].grad, parameters[1].grad = torch.tensor([1.0, 2.0, 2.0]), torch.full((2, 2), 2.0)
    norm, finite = gradient_norm(parameters, may_wait=may_wait)
    assert norm.item() == pytest.approx(5.0)
    assert finite.isfinite()
    parameters[0].grad[0] = 3e38  # its square is beyond float32, it is not
    norm, finite = gradient_norm(parameters, may_wait=may_wait)
    assert math.isinf(norm.item())
    assert finite.isfinite()
    for wrong in (math.inf, -math.inf, math.nan):
        parameters[1].grad[0, 1] = wrong
        assert not gradient_norm(parameters, may_wait=may_wait)[1].isfinite()
    assert gradient_norm([])[0] == 0


def test_the_first_step_that_was_not_finite_is_kept():
    seen, one, wrong = FirstNonFinite(torch.device("cpu")), torch.tensor(1.0), torch.tensor(math.nan)
    assert seen.read() is None
    seen.update(3, one, one)
    seen.update(4, one, wrong)
    seen.update(5, wrong, wrong)
    assert seen.read() == (4, "gradient")
    seen.update(2, wrong, one)
    assert seen.read() == (4, "gradient")
    seen.clear()
    seen.update(7, wrong, wrong)
    assert seen.read()[0] == 7


@pytest.fixture
def scored(monkeypatch):
    """`scored(0.1, 0.3, 0.2)`: the validation scores of the epochs; the test's score is 0."""

    import runner.experiment.testing  # noqa: F401  imports `evaluate`, for the test, before it is replaced

    def call(*scores):
        left = iter(scores)

        def evaluation(*_):
            return Evaluation({"accuracy": next(left, 0.0), "loss": 1.0}, [0, 1], 1)

        monkeypatch.setattr("runner.training.evaluation.evaluate", evaluation)

    return call


def test_early_stopping(small, tmp_path, scored):
    scored(0.1, 0.3, 0.3, 0.2, 0.9)
    outcome = small("train.epochs=5", "train.early_stopping_epochs=2", "name=run")
    assert "no better accuracy on the validation split for 2 epochs" in outcome.out
    assert [row["epoch"] for row in rows(tmp_path, "validation")] == [1, 2, 3, 4]
    found = summary(tmp_path)
    assert found["status"] == "completed"
    assert found["best"]["epoch"] == 2
    assert "no better" in found["ended_early"]
    refused = small("resume=outputs/runs/run")
    assert refused.code == 2
    assert "train.early_stopping_epochs=2 ended the run, whose best epoch is 2 of 4; set it to 3 or more" in refused.err
    scored(0.8)
    assert small("resume=outputs/runs/run", "train.early_stopping_epochs=null").code == 0
    assert summary(tmp_path)["best"]["epoch"] == 5
    assert "ended_early" not in summary(tmp_path)


def test_the_time_of_a_run(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "poll", lambda self: (False, False))
    assert small("train.epochs=4", "train.max_time=1h", "name=whole").code == 0
    steps = iter([False] * 5 + [True])
    monkeypatch.setattr(Clock, "poll", lambda self: (next(steps), False))
    outcome = small("train.epochs=4", "train.max_time=1h", "name=run")
    assert "train.max_time=1h is over: training has ended after 6 steps" in outcome.out
    assert summary(tmp_path)["status"] == "completed"
    assert summary(tmp_path)["metrics"]["accuracy"] is not None
    assert [(row["step"], row["epoch"]) for row in rows(tmp_path, "validation")] == [(4, 1), (6, 2)]
    assert rows(tmp_path, "steps") == rows(tmp_path, "steps", "whole")[: len(rows(tmp_path, "steps"))]


def test_time_adds_up_over_resumes(small, tmp_path):
    assert small("train.epochs=1", "name=run").code == 0
    first = checkpoint(tmp_path)["progress"]["seconds"]
    assert first > 0
    assert small("resume=outputs/runs/run", "train.epochs=2").code == 0
    assert checkpoint(tmp_path)["progress"]["seconds"] > first
    refused = small("resume=outputs/runs/run", "train.epochs=3", "train.max_time=0.001s")
    assert refused.code == 2
    assert "train.max_time=0.001s is over" in refused.err


def test_evaluation_and_checkpoints_every_few_epochs(small, tmp_path):
    settings = ("train.epochs=5", "train.evaluate_every_epochs=2", "train.checkpoint_every_epochs=3", "name=run")
    outcome = small(*settings)
    assert outcome.code == 0, outcome.out
    assert [row["epoch"] for row in rows(tmp_path, "validation")] == [2, 4, 5]
    assert [row["epoch"] for row in rows(tmp_path, "train")] == [1, 2, 3, 4, 5]
    assert checkpoint(tmp_path)["progress"]["epoch"] == 5
    assert checkpoint(tmp_path, "previous.pt")["progress"]["epoch"] == 3


def test_the_best_epochs_are_kept(small, tmp_path, scored):
    scored(0.1, 0.5, 0.3, 0.5, 0.4)
    assert small("train.epochs=5", "train.keep_best=3", "name=run").code == 0
    names = sorted(path.name for path in (folder(tmp_path) / "checkpoints").iterdir())
    assert names == ["best.pt", "epoch-002.pt", "epoch-004.pt", "epoch-005.pt", "last.pt", "previous.pt"]
    assert checkpoint(tmp_path, "best.pt")["epoch"] == 2  # of equal ones the earlier
    for epoch in (2, 4, 5):
        assert checkpoint(tmp_path, f"epoch-{epoch:03}.pt")["epoch"] == epoch
    assert [entry["epoch"] for entry in checkpoint(tmp_path)["progress"]["kept"]] == [2, 4, 5]


def test_a_kept_checkpoint_takes_the_place_of_a_best_one_from_after_the_last(small, tmp_path, scored):
    """Killed after best.pt of the third epoch, before last.pt: the first epoch's file is still known, and dropped."""
    scored(0.4, 0.3, 0.5, 0.45)
    assert small("train.epochs=4", "train.keep_best=2", "schedule=constant", "name=whole").code == 0
    scored(0.4, 0.3, 0.5)
    assert small("train.epochs=3", "train.keep_best=2", "schedule=constant", "name=run").code == 0
    checkpoints = folder(tmp_path) / "checkpoints"
    (checkpoints / "previous.pt").replace(checkpoints / "last.pt")
    scored(0.5, 0.45)
    outcome = small("resume=outputs/runs/run", "train.epochs=4")
    assert outcome.code == 0, outcome.out
    assert "best.pt is of epoch 3, after the checkpoint that the run goes on from: epoch-001.pt takes its place." in (
        " ".join(outcome.out.split())
    )
    names = [{path.name for path in (folder(tmp_path, run) / "checkpoints").iterdir()} for run in ("run", "whole")]
    assert names[0] == names[1] == {"best.pt", "epoch-003.pt", "epoch-004.pt", "last.pt", "previous.pt"}
    assert checkpoint(tmp_path, "best.pt")["epoch"] == 3


def test_a_best_checkpoint_from_after_the_last_one_is_chosen_anew(small, tmp_path):
    """last.pt is damaged, and the one before it knows nothing of the epoch whose best.pt lies there."""
    settings = ("train.epochs=3", "schedule=constant")
    assert small(*settings, "name=whole").code == 0
    assert small(*settings, "train.epochs=2", "name=run").code == 0
    path = folder(tmp_path) / "checkpoints/last.pt"
    path.write_bytes(path.read_bytes()[:500])
    outcome = small("resume=outputs/runs/run", "train.epochs=3")
    assert outcome.code == 0, outcome.out
    assert "last.pt: this checkpoint cannot be used; it is cut off or damaged" in outcome.out
    assert "The run goes on from the one before it, at step 4" in outcome.out
    assert (folder(tmp_path) / "checkpoints/last.damaged").is_file()
    whole = checkpoint(tmp_path, run="whole")
    assert all(torch.equal(value, whole["model"][name]) for name, value in checkpoint(tmp_path)["model"].items())
    assert checkpoint(tmp_path, "best.pt")["epoch"] == checkpoint(tmp_path, "best.pt", run="whole")["epoch"]


def test_auto_resume(small, tmp_path):
    settings = ("train.auto_resume=true", "name=run")
    assert small("train.max_steps=5", *settings).code == 0
    again = small("train.max_steps=5", *settings)
    assert again.code == 0
    assert "completed before; nothing is left to do" in again.out
    assert small("train.max_steps=7", *settings).code == 0
    assert checkpoint(tmp_path)["progress"]["step"] == 7
    assert len(list((tmp_path / "outputs/runs").iterdir())) == 1
    refused = small("train.max_steps=9", "seed=3", *settings)
    assert refused.code == 2
    assert "train.auto_resume=true: seed=3: the run so far has seed=0" in refused.err
    refused = small("train.auto_resume=true")
    assert refused.code == 2
    assert "add name=NAME" in refused.err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.max_time=90", "it must be a time with its unit, as in 45s, 90min, 11h or 2h30min"),
        ("train.on_divergence=ignore", "it must be one of stop, skip, restore"),
        ("train.early_stopping_epochs=0", "it must be a whole number in [1, 10^9]"),
    ],
)
def test_wrong_settings(small, setting, message):
    outcome = small(setting)
    assert outcome.code == 2
    assert f"{setting}: {message}" in outcome.err


# ---- throughput


@pytest.fixture
def slow_first_step(monkeypatch):
    """A clock on which the first step of a process takes 100 seconds, each other 2, and writing a checkpoint 7."""
    clock = SimpleNamespace(now=0.0, steps=0, seconds=2)
    step, save = Trainer._step, State.save

    def timed_step(trainer, *args):
        step(trainer, *args)
        clock.now += clock.seconds if clock.steps else 100
        clock.steps += 1

    def timed_save(state, *args):
        save(state, *args)
        clock.now += 7

    monkeypatch.setattr(Trainer, "_step", timed_step)
    monkeypatch.setattr(State, "save", timed_save)
    monkeypatch.setattr(plan_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.mark.parametrize("log_every_steps", [1, 50])
def test_first_steps_and_checkpoints_do_not_slow_the_throughput(
    small, tmp_path, slow_first_step, monkeypatch, log_every_steps
):
    """8 images each 2 seconds, whatever CUDA's start, the choice of kernels and compilation took; so after a resume.

    Also where the sums are read only now and then, as on a GPU.
    """
    monkeypatch.setattr("runner.training.loop.is_distributed", lambda: log_every_steps == 50)
    settings = (
        "train.epochs=2",
        "train.checkpoint_every_steps=3",
        f"train.log_every_steps={log_every_steps}",
        "name=run",
    )
    assert small(*settings, "train.max_steps=5", "name=run").code == 0
    seconds = {"images": 40, "train_seconds": 100 + 4 * 2, "first_step_seconds": 100}
    assert summary(tmp_path)["throughput"].items() >= {**seconds, "images_per_second": 4.0}.items()
    speeds = [row.get("images_per_second") for row in rows(tmp_path, "steps")]
    assert speeds == ([None, 4, 4, 4, 4] if log_every_steps == 1 else [])
    assert [row["images_per_second"] for row in rows(tmp_path, "train")] == [4, 4]
    slow_first_step.steps = 0  # another process
    assert small("resume=outputs/runs/run", "train.max_steps=8").code == 0
    seconds = {"images": 64, "train_seconds": 2 * 100 + 6 * 2, "first_step_seconds": 200}
    assert summary(tmp_path)["throughput"].items() >= {**seconds, "images_per_second": 4.0}.items()


def test_a_resumed_run_shows_the_images_per_second_of_the_epoch_it_is_in(small, tmp_path, slow_first_step):
    slow_first_step.seconds = 8  # a machine that others kept busy
    assert small("train.max_steps=5", "train.epochs=2", "train.log_every_steps=1", "name=run").code == 0
    slow_first_step.steps, slow_first_step.seconds = 0, 2
    assert small("resume=outputs/runs/run", "train.max_steps=8").code == 0
    speeds = [row.get("images_per_second") for row in rows(tmp_path, "steps")]
    assert speeds == [None, 1, 1, 1, 1, None, 4, 4]
    assert summary(tmp_path)["throughput"]["images_per_second"] == (64 - 2 * 8) / (4 * 8 + 2 * 2)


def test_of_a_run_of_one_step_no_throughput_is_told(small, tmp_path, slow_first_step):
    outcome = small("train.max_steps=1", "train.log_every_steps=1", "name=run")
    assert outcome.code == 0
    assert summary(tmp_path)["throughput"]["images_per_second"] is None
    assert "images_per_second" not in rows(tmp_path, "train")[0]
    assert "nan" not in outcome.out
