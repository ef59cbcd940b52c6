"""The training loop: one step against plain torch, resume bit for bit, divergence, interruption, precision."""

import json
import os
import re
import signal
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from runner import load_run
from runner.data.random import random
from runner.methods import estimate_batchnorm_statistics, remove_batchnorm
from runner.methods.cutmix import CutMix
from runner.methods.mixup import MixUp
from runner.models import resnet
from runner.results.metrics import read_rows
from runner.training.checkpoint import load_checkpoint
from runner.training.loop import Trainer
from runner.training.precision import Precision, choose_device

# every kind of state there is: momentum, running statistics, a generator, a warm-up, dropout
STATEFUL = (
    "model=nf_resnet26",
    "model.width=0.25",
    "model.dropout=0.2",
    "norm=agc",
    "regularization=[stochastic_depth,label_smoothing]",
    "stochastic_depth.drop_rate=0.5",
    "stochastic_depth.drop_warmup=0.8",
    "train.epochs=3",
    "train.log_every_steps=2",
)
# batches changed by draws of their own, statistics measured before each evaluation; stopped between two logged rows
MIXED = (
    "norm=[ghost_batchnorm,precise_batchnorm]",
    "ghost_batchnorm.ghost_batch_size=4",
    "precise_batchnorm.num_batches=3",
    "regularization=[mixup,cutmix,dropout,label_smoothing]",
    "train.epochs=3",
    "train.log_every_steps=4",
)
# a number of epochs that is doubled after the first, an average of the weights and of the running statistics
PROLONGED = (
    "optimizer=lars",
    "schedule=plateau",
    "schedule.patience=1",
    "schedule.max_doublings=1",
    "regularization=stochastic_depth",
    "stochastic_depth.drop_warmup=0.5",
    "train.ema=0.9",
    "train.epochs=2",
    "train.log_every_steps=3",
)
# masks from files, read by processes of their own
SCENES = ("dataset.num_workers=1", "dataset.validation=test", "train.accumulation_steps=2", "train.dice_weight=0.5")
SCENES += ("train.epochs=3",)


def last(folder):
    return load_checkpoint(folder / "checkpoints" / "last.pt")


def assert_same(a, b):
    """Equal bit for bit, all the way down."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            if key not in ("seconds", "train_seconds", "first_step_seconds", "first_step_images", "wandb_id", "record"):
                assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def rows(folder):
    timings = ("images_per_second", "seconds")
    return [
        {key: value for key, value in row.items() if key not in timings} for row in read_rows(folder / "metrics.jsonl")
    ]


def test_training_is_what_a_bare_loop_in_torch_does(finished):
    folder = finished("train.epochs=2", "optimizer.lr=0.02", "seed=3", "schedule=constant")
    torch.manual_seed(3)
    model = resnet.resnet18(num_classes=10).train()
    weights = [p for n, p in model.named_parameters() if p.ndim > 1]
    others = [p for n, p in model.named_parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 5e-4}, {"params": others}], lr=0.02, momentum=0.9, nesterov=True
    )
    batches = random(num_images=32, image_size=8).train_batches(batch_size=8, seed=3, device=torch.device("cpu"))
    for step in range(8):
        images, targets = list(batches.epoch(step // 4))[step % 4]
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * min((step + 1) / 4, 1)
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()
    trained = last(folder)["model"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-5)


def test_micro_batches_add_up_to_the_batch(small, tmp_path):
    """Without batch norm the gradient of a batch is the mean over its micro-batches."""
    for name, parts in (("whole", 1), ("parts", 4)):
        steps = ("train.epochs=1", "train.max_steps=2", f"train.accumulation_steps={parts}", f"name={name}")
        assert small("model=nf_resnet26", "model.width=0.25", "norm=agc", *steps).code == 0
    whole, parts = (last(tmp_path / "outputs/runs" / name) for name in ("whole", "parts"))
    for name, value in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_mixed_batches_are_trained_on_with_the_formula(finished, parts):
    """Mixed before a batch is cut into micro-batches, half by MixUp and half by CutMix; then labels are smoothed."""
    methods = ("norm=none", "none.skipinit=true", "regularization=[mixup,cutmix,label_smoothing]", "mixup.alpha=1.0")
    settings = ("train.epochs=1", "optimizer.lr=0.02", "seed=3", "schedule=constant", "train.log_every_steps=4")
    folder = finished(*methods, *settings, f"train.accumulation_steps={parts}")
    torch.manual_seed(3)
    model = resnet.resnet18(num_classes=10).train()
    remove_batchnorm(model, skipinit=True)
    weights = [p for n, p in model.named_parameters() if p.ndim > 1]
    others = [p for n, p in model.named_parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 5e-4}, {"params": others}], lr=0.02, momentum=0.9, nesterov=True
    )
    mixing = MixUp(alpha=1.0, portion="first_half"), CutMix(portion="second_half")
    for method in mixing:
        method.apply(model, torch.zeros(1), seed=3)
    batches = random(num_images=32, image_size=8).train_batches(batch_size=8, seed=3, device=torch.device("cpu"))
    losses, correct = [], 0
    for step, (images, targets) in enumerate(batches.epoch(0)):
        for method in mixing:
            images, targets = method.transform_batch(images, targets, 10)
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (step + 1) / 4
        optimizer.zero_grad()
        logits = model(images)
        loss = -((0.9 * targets + 0.1 / 10) * logits.log_softmax(1)).sum(1).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        correct += (logits.argmax(1) == targets.argmax(1)).sum().item()
    trained = last(folder)["model"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-5)
    [row] = [row for row in rows(folder) if row["split"] == "train"]
    assert row["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert row["accuracy"] == correct / 32


def test_statistics_are_measured_over_the_micro_batches_of_the_epoch_before_evaluation(finished):
    methods = ("norm=precise_batchnorm", "precise_batchnorm.num_batches=5", "train.accumulation_steps=2", "seed=2")
    folder = finished(*methods, "train.epochs=2")
    data = random(num_images=32, image_size=8)
    batches = data.train_batches(batch_size=8, seed=2, device=torch.device("cpu"))
    for checkpoint in ("last", "best"):
        model, _ = load_run(folder, checkpoint)
        saved = {name: buffer.clone() for name, buffer in model.named_buffers()}
        epoch = load_checkpoint(folder / "checkpoints" / f"{checkpoint}.pt").get("epoch", 2)  # counted from 1
        parts = [part for images, _ in batches.epoch(epoch - 1) for part in images.chunk(2)]
        estimate_batchnorm_statistics(model, parts[:5])
        assert all(torch.equal(buffer, saved[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(
    ("settings", "stop_after_step"),
    [
        *((settings, step) for settings in (STATEFUL, MIXED, PROLONGED) for step in (4, 6)),
        *(pytest.param(SCENES, step, marks=pytest.mark.slow) for step in (4, 6)),
    ],
    ids=[f"{name}-{step}" for name in ("stateful", "mixed", "prolonged", "scenes") for step in (4, 6)],
)
def test_a_resumed_run_ends_with_the_bits_of_one_never_stopped(
    runner, small, finished, make_scenes, tmp_path, monkeypatch, settings, stop_after_step
):
    """Stopped at the end of an epoch (4) and within one (6)."""
    if settings is SCENES:
        settings = (*make_scenes(tmp_path / "scenes", training=16, validation=3), *SCENES)
        run = runner
        assert run(*settings, "name=run").code == 0
    else:
        run = small
        finished(*settings)

    step = Trainer._step

    def stopping(trainer, *args):
        step(trainer, *args)
        if trainer.progress.step + 1 == stop_after_step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        stopped = run(*settings, "name=parts")
    folder = tmp_path / "outputs/runs/parts"
    assert stopped.code == 130
    assert "python -m runner resume=outputs/runs/parts" in stopped.out
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert last(folder)["progress"]["step"] == stop_after_step

    torch.manual_seed(123)  # whatever the process did in between
    resumed = run("resume=outputs/runs/parts")
    assert resumed.code == 0, resumed.err
    whole = tmp_path / "outputs/runs/run"
    assert_same(last(folder), last(whole))
    assert_same(rows(folder), rows(whole))
    summaries = [json.loads((path / "summary.json").read_text()) for path in (folder, whole)]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    assert summaries[0]["status"] == "completed"


def test_resume_takes_overrides_of_its_own(small, tmp_path):
    longer = ("schedule=constant", "optimizer.lr=0.01")
    assert small(*longer, "train.epochs=1", "name=run").code == 0
    assert small(*longer, "train.epochs=3", "name=whole").code == 0
    assert small("resume=outputs/runs/run", "train.epochs=3").code == 0
    folder = tmp_path / "outputs/runs/run"
    assert_same(last(folder), last(tmp_path / "outputs/runs/whole"))
    assert [row["epoch"] for row in rows(folder) if row["split"] == "train"] == [1, 2, 3]
    assert [row["step"] for row in rows(folder) if row["split"] == "test"] == [12]
    assert "train.epochs=3" in json.loads((folder / "record.json").read_text())["overrides"]
    assert len(list(folder.parent.iterdir())) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("norm=none", "batchnorm is part of the run: the weights so far were trained with it"),
        ("model=nf_resnet26", "the run so far has model.name=resnet18, which a resumed run keeps"),
        ("optimizer=adamw", "holds the state of sgd, not of optimizer=adamw"),
    ],
)
def test_an_override_that_does_not_fit_the_checkpoint_changes_nothing(small, finished, override, message):
    folder = finished("train.max_steps=1")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    outcome = small("resume=outputs/runs/run", override)
    assert outcome.code == 2
    assert message in outcome.err
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_damaged_checkpoint_is_named(small, finished):
    path = finished("train.max_steps=1") / "checkpoints/last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    outcome = small("resume=outputs/runs/run")
    assert outcome.code == 2
    assert "last.pt: this checkpoint cannot be used; it is cut off" in outcome.err


def test_a_run_that_diverges_is_a_result(small, tmp_path):
    outcome = small("norm=none", "optimizer.lr=1e9", "schedule.warmup_epochs=0", "train.epochs=2", "name=run")
    summary = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())
    assert outcome.code == 0
    assert summary["status"] == "diverged"
    assert re.match(r"the (training loss|gradient) was not finite at step \d, at a learning rate of", summary["error"])
    assert summary["metrics"] == {"accuracy": None, "loss": None}
    assert "diverged" in outcome.out


def test_a_failure_is_told_and_kept(small, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("\x1b[31mthe device fell off")

    monkeypatch.setattr(Trainer, "_step", fail)
    outcome = small("name=run")
    folder = tmp_path / "outputs/runs/run"
    assert outcome.code == 1
    assert "the device fell off" in outcome.out
    first, *_, last = (folder / "error.txt").read_text().splitlines()
    assert first == "Traceback (most recent call last):"
    assert last == r"RuntimeError: \x1b[31mthe device fell off"
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"


def test_load_run_brings_the_best_model_back(finished, tmp_path):
    methods = ("norm=[ghost_batchnorm,weight_standardization]", "ghost_batchnorm.ghost_batch_size=4")
    folder = finished(*methods, "regularization=stochastic_depth", "train.epochs=2")
    model, config = load_run(folder)
    assert not model.training
    assert config.ghost_batchnorm.ghost_batch_size == 4
    assert config.model.stem == "wide"
    data = random(num_images=32, image_size=8)
    with torch.no_grad():
        logits = model(data.test.images)
    summary = json.loads((folder / "summary.json").read_text())
    assert F.cross_entropy(logits, data.test.targets).item() == pytest.approx(summary["metrics"]["loss"], rel=1e-5)
    assert (logits.argmax(1) == data.test.targets).float().mean().item() == summary["metrics"]["accuracy"]
    with pytest.raises(ValueError, match="no run lies there"):
        load_run(tmp_path)


def test_bf16_trains_on_a_cpu_with_float32_weights(small, tmp_path):
    assert small("train.precision=bf16", "train.max_steps=2", "name=run").code == 0
    assert all(v.dtype in (torch.float32, torch.int64) for v in last(tmp_path / "outputs/runs/run")["model"].values())


def test_devices_and_precisions_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"train\.precision=fp16: half precision needs a GPU"):
        Precision("fp16", torch.device("cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"train\.device=cuda: torch sees no GPU"):
            choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16"])
def test_a_gpu_trains_without_waiting_in_a_step(runner, monkeypatch, no_host_sync, precision):
    step = Trainer._step

    def watched(trainer, *args):
        with no_host_sync() if trainer.progress.step else nullcontext():  # the first step may set up
            step(trainer, *args)

    monkeypatch.setattr(Trainer, "_step", watched)
    small = ("dataset=random", "dataset.num_images=64", "train.global_batch_size=16", "train.epochs=1", "name=run")
    methods = ("norm=[ghost_batchnorm,weight_standardization,agc]", "ghost_batchnorm.ghost_batch_size=8")
    regularization = "regularization=[stochastic_depth,label_smoothing,mixup,cutmix,dropout]"
    outcome = runner(*small, *methods, regularization, f"train.precision={precision}")
    assert outcome.code == 0, outcome.out
    for clip in ("clip_by_norm", "clip_by_value"):
        outcome = runner(*small, f"norm=[precise_batchnorm,{clip}]", f"train.precision={precision}")
        assert outcome.code == 0, outcome.out
