"""Several processes train one model: the same learning as one, the same bits after a resume, an end when one dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
import torch

from runner.results.metrics import read_rows
from runner.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="this torch has no gloo"
)
SMALL = (
    "train.precision=fp32",
    "dataset=random",
    "dataset.num_images=64",
    "dataset.image_size=8",
    "train.global_batch_size=16",
)
# with seed 0 and four ranks an activation at 0 falls on another side of a ReLU, by rounding, and the losses part
SMALL += (
    "model=resnet20",
    "train.device=cpu",
    "wandb.mode=disabled",
    "train.log_every_steps=1",
    "optimizer.lr=0.01",
    "seed=1",
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


STARTED = []  # the processes of the test that is running


@pytest.fixture(autouse=True)
def nothing_is_left():
    """After a test that failed, or that its time limit ended, its launchers and their ranks are killed."""
    yield
    while STARTED:
        process = STARTED.pop()
        for pid in left_of(process):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def left_of(process):
    """The processes in its session, and those below them: torchrun gives its ranks sessions of their own."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,sid="], capture_output=True, text=True).stdout
    left = []
    for pid, parent, session in sorted(tuple(map(int, line.split())) for line in listed.splitlines()):
        if session == process.pid or parent in left:
            left.append(pid)
    return left


def started(folder, *arguments, program=("-m", "runner")):
    """The command in a session of its own, which its ranks belong to as well."""
    process = subprocess.Popen(
        [sys.executable, *program, *SMALL, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def run(folder, *arguments, code=0, **options):
    process = started(folder, *arguments, **options)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == code, out
    return out


def losses(folder, name):
    rows = read_rows(folder / "outputs/runs" / name / "metrics.jsonl")
    return [row["loss"] for row in rows if row["split"] == "steps"]


def last(folder, name):
    return load_checkpoint(folder / "outputs/runs" / name / "checkpoints/last.pt")


def ranks_of(process):
    """The process ids of the ranks that `process` started, in their order."""
    children = subprocess.run(
        ["ps", "-ww", "-o", "pid=", "-o", "args=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    return sorted(int(line.split()[0]) for line in children.stdout.splitlines() if "spawn_main" in line)


METHODS = {
    "groupnorm": ("norm=groupnorm", "groupnorm.num_groups=8"),
    "sync_batchnorm": ("train.sync_batchnorm=true", "seed=3"),
    "trained_parameters": ("norm=groupnorm", "groupnorm.num_groups=8", "train.trained_parameters=norm"),
    "agc": ("model=nf_resnet26", "model.width=0.25", "norm=agc"),
    "accumulation": ("norm=groupnorm", "groupnorm.num_groups=8", "train.accumulation_steps=2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_ranks_learn_what_one_process_learns(tmp_path, method):
    settings = (*METHODS[method], "train.epochs=3", "train.ema=0.9")
    for number in (1, 2, 4):
        out = run(tmp_path, *settings, f"train.num_devices={number}", f"name=on{number}")
        assert out.count("status: completed") == 1, out
    one = losses(tmp_path, "on1")
    assert len(one) == 12
    summaries = {n: json.loads((tmp_path / f"outputs/runs/on{n}/summary.json").read_text()) for n in (1, 2, 4)}
    for number in (2, 4):
        torch.testing.assert_close(losses(tmp_path, f"on{number}")[:10], one[:10], rtol=2e-3, atol=2e-4)
        assert summaries[number]["metrics"]["loss"] == pytest.approx(summaries[1]["metrics"]["loss"], rel=2e-2)
        assert load_checkpoint(tmp_path / f"outputs/runs/on{number}/checkpoints/last.pt")["progress"]["step"] == 12


def test_two_ranks_learn_what_one_process_learns(runner, tmp_path):
    """The short form of the one above: micro-batches, an average of the weights, two epochs."""
    settings = (*METHODS["accumulation"], "train.epochs=2", "train.ema=0.9")
    for number, name in ((2, "two"), (1, "one")):
        assert runner(*SMALL, *settings, f"train.num_devices={number}", f"name={name}").code == 0
    torch.testing.assert_close(losses(tmp_path, "two"), losses(tmp_path, "one"), rtol=1e-4, atol=1e-5)
    one, two = (last(tmp_path, name) for name in ("one", "two"))
    torch.testing.assert_close(two["ema"]["model"], one["ema"]["model"], rtol=1e-3, atol=1e-4)
    images = [dict(np.load(tmp_path / f"outputs/runs/{name}/predictions.npz")) for name in ("one", "two")]
    np.testing.assert_array_equal(images[0]["test/target"], images[1]["test/target"])  # in the order of the split
    np.testing.assert_allclose(images[0]["test/loss"], images[1]["test/loss"], rtol=1e-3, atol=1e-4)


PLANTER = """
from runner.methods.method import Method
from runner.distributed.collectives import rank


class Planter(Method):
    counted = "steps"

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def apply(self, model, example_input, seed=0):
        return 1

    def transform_batch(self, images, targets, num_classes):
        self.seen += 1
        return (images * float("nan") if self.seen == self.step and rank() == 1 else images), targets
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on_divergence", "status", "told"),
    [
        ("stop", "diverged", "was not finite at step 6, at a learning rate of 0.01"),
        ("skip", "completed", "was not finite at step 6, at a learning rate of 0.01: the step was skipped"),
        ("restore", "completed", "back to step 4, with 0.5 times the rate"),
    ],
)
def test_a_loss_that_is_not_finite_on_one_rank_is_told_on_all(tmp_path, on_divergence, status, told):
    """The NaN is planted on the second rank, which writes nothing; both take the same way, and none waits for ever."""
    methods = tmp_path / "methods"
    (methods / "regularization").mkdir(parents=True)
    (methods / "planter.py").write_text(PLANTER)
    node = "# @package _global_\nplanter:\n  _target_: planter.Planter\n  step: 6\n"
    (methods / "regularization/planter.yaml").write_text(node)
    settings = (f"paths.extensions={methods}", "paths.allowed_packages=[planter]", "regularization=planter")
    settings += ("schedule=constant", "schedule.warmup_epochs=0", "train.epochs=3", "train.num_devices=2", "name=run")
    out = run(tmp_path, *settings, f"train.on_divergence={on_divergence}")
    summary = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())
    assert summary["status"] == status, out
    assert told in out
    expected = {"stop": {}, "skip": {"skipped_steps": 1}, "restore": {"restores": 1}}[on_divergence]
    assert summary["divergences"] == {"skipped_steps": 0, "restores": 0, **expected}
    if status == "completed":
        assert all(value.isfinite().all() for value in last(tmp_path, "run")["model"].values())
        assert len(losses(tmp_path, "run")) == 12 - (on_divergence == "skip")


@pytest.mark.slow
def test_two_ranks_go_on_to_the_same_bits(tmp_path):
    """Batch norm's statistics, dropout and dropped blocks differ by rank; killed in the middle of an epoch."""
    settings = ("regularization=[dropout,stochastic_depth]", "stochastic_depth.drop_rate=0.5", "train.num_devices=2")
    settings += ("stochastic_depth.use_same_gpu_seed=false", "train.epochs=4", "train.checkpoint_every_steps=2")
    run(tmp_path, *settings, "name=whole")
    stopped = started(tmp_path, *settings, "name=parts")
    checkpoint = tmp_path / "outputs/runs/parts/checkpoints/last.pt"
    while not checkpoint.is_file() and stopped.poll() is None:
        time.sleep(0.02)
    for pid in (stopped.pid, *ranks_of(stopped)):
        os.kill(pid, signal.SIGKILL)
    stopped.communicate()
    assert last(tmp_path, "parts")["progress"]["step"] < 16
    run(tmp_path, "resume=outputs/runs/parts", "train.num_devices=2")
    whole, parts = last(tmp_path, "whole"), last(tmp_path, "parts")
    for name, value in whole["model"].items():
        assert torch.equal(parts["model"][name], value), name
    assert losses(tmp_path, "parts") == losses(tmp_path, "whole")
    tests = [
        [row["loss"] for row in read_rows(tmp_path / f"outputs/runs/{name}/metrics.jsonl") if row["split"] == "test"]
        for name in ("whole", "parts")
    ]
    assert tests[0] == tests[1]


@pytest.mark.slow
@pytest.mark.parametrize("same", ["true", "false"])
@pytest.mark.parametrize("update", ["rest", "continue"])
def test_dropped_blocks_never_hang(tmp_path, same, update):
    settings = (
        "regularization=stochastic_depth",
        "stochastic_depth.drop_rate=0.9",
        f"stochastic_depth.use_same_gpu_seed={same}",
    )
    run(tmp_path, *settings, f"stochastic_depth.dropped_update={update}", "train.num_devices=2", "train.epochs=4")


@pytest.mark.slow
def test_every_sample_is_evaluated_once(tmp_path):
    """600 test samples are three batches for two ranks, the last one smaller."""
    settings = ("dataset.num_images=2400", "train.max_steps=1", "train.num_devices=2", "name=run")
    run(tmp_path, *settings)
    from runner import load_run
    from runner.data.random import random

    model, _ = load_run(tmp_path / "outputs/runs/run")
    data = random(num_images=2400, image_size=8)
    assert len(data.test) == 600
    with torch.no_grad():
        logits = model(data.test.images)
    found = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())["metrics"]
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, data.test.targets).item(), rel=1e-5)
    assert found["accuracy"] == (logits.argmax(1) == data.test.targets).sum().item() / 600


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_and_a_resume_goes_on(tmp_path, victim):
    settings = ("train.num_devices=2", "train.epochs=300", "train.checkpoint_every_steps=2", "name=run")
    process = started(tmp_path, *settings)
    folder = tmp_path / "outputs/runs/run"
    while not (folder / "checkpoints/last.pt").is_file() and process.poll() is None:
        time.sleep(0.05)
    killed = time.monotonic()
    os.kill(ranks_of(process)[victim], signal.SIGKILL)
    out, _ = process.communicate(timeout=90)
    assert time.monotonic() - killed < 60
    assert process.returncode == 1, out
    assert f"rank {victim}" in out
    assert "Signal 9" in out
    assert "Traceback" not in out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert f"rank {victim}" in summary["error"]
    step = last(tmp_path, "run")["progress"]["step"]
    run(tmp_path, "resume=outputs/runs/run", "train.epochs=300", f"train.max_steps={step + 3}")
    assert last(tmp_path, "run")["progress"]["step"] == step + 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_tells_how_to_go_on(tmp_path, number):
    process = started(tmp_path, "train.num_devices=2", "train.epochs=300", "name=run")
    while not (tmp_path / "outputs/runs/run/metrics.jsonl").is_file() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "resume=outputs/runs/run" in out
    assert json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())["status"] == "interrupted"
    assert len(losses(tmp_path, "run")) == last(tmp_path, "run")["progress"]["step"]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("ctrl-c twice", 130), ("watchdog", 1)])
def test_a_rank_that_is_stopped_does_not_hang_the_run(tmp_path, how, code):
    limit = ("train.rank_timeout=8",) if how == "watchdog" else ()
    process = started(
        tmp_path, "train.num_devices=2", "train.epochs=3000", "train.checkpoint_every_steps=2", "name=run", *limit
    )
    folder = tmp_path / "outputs/runs/run"
    while not (folder / "checkpoints/last.pt").is_file() and process.poll() is None:
        time.sleep(0.05)
    os.kill(ranks_of(process)[1], signal.SIGSTOP)
    for pause in (2, 0) if code == 130 else ():
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == code, out
    assert "go on with: python -m runner resume=outputs/runs/run" in out
    assert "Traceback" not in out
    assert ("train.rank_timeout=8: rank 1 did not answer for 8 seconds" in out) == (code == 1)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == ("interrupted" if code == 130 else "failed")
    assert last(tmp_path, "run")["progress"]["step"] >= 2


@pytest.mark.slow
def test_ranks_end_where_their_launcher_is_killed(tmp_path):
    process = started(tmp_path, "train.num_devices=2", "train.epochs=300", "name=run")
    while not (tmp_path / "outputs/runs/run/metrics.jsonl").is_file() and process.poll() is None:
        time.sleep(0.05)
    assert len(ranks_of(process)) == 2
    process.kill()
    process.communicate(timeout=60)  # the ranks have its output open as long as they live
    assert last(tmp_path, "run")["progress"]["step"] > 0
    assert json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_torchrun(tmp_path):
    run(tmp_path, "train.epochs=1", "train.num_devices=2", "name=own")
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "runner")
    out = run(tmp_path, "train.epochs=1", "name=torchrun", program=launcher)
    assert out.count("status: completed") == 1
    assert losses(tmp_path, "torchrun") == losses(tmp_path, "own")
    out = run(tmp_path, "train.epochs=0", "name=wrong", program=launcher, code=1)
    assert out.count("Wrong setting. train.epochs=0") == 1


@pytest.mark.slow
def test_torchrun_on_two_machines(tmp_path):
    """Which are two launchers here, each with a process of its own, that meet at a port as machines do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = ("-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1")
    machines = [
        started(tmp_path, "train.epochs=1", "name=both", program=(*both, f"--master-port={port}", *rest))
        for rest in (("--node-rank=0", "-m", "runner"), ("--node-rank=1", "-m", "runner"))
    ]
    outs = [machine.communicate(timeout=200)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outs
    assert ["status: completed" in out for out in outs] == [True, False]
    run(tmp_path, "train.epochs=1", "train.num_devices=2", "name=own")
    assert losses(tmp_path, "both") == losses(tmp_path, "own")


@pytest.mark.slow
def test_jobs_of_a_sweep_start_their_ranks(tmp_path):
    out = run(tmp_path, "-m", "seed=0,1", "train.num_devices=2", "train.epochs=1", "sweep.name=s")
    assert out.count("status: completed") == 2
    assert len(list((tmp_path / "outputs/sweeps/s").glob("*/summary.json"))) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("train.num_devices=3",), "train.num_devices=3 times train.accumulation_steps=1 must divide it"),
        (
            ("train.num_devices=2", "norm=ghost_batchnorm", "ghost_batchnorm.ghost_batch_size=16"),
            "train.accumulation_steps=1 and train.num_devices=2). Choose at most 8",
        ),
    ],
)
def test_a_number_of_ranks_that_does_not_fit_is_refused(runner, settings, message):
    outcome = runner(*SMALL, *settings)
    assert outcome.code == 2
    assert message in outcome.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there are GPUs")
def test_more_devices_than_there_are(runner):
    outcome = runner(*SMALL[:-4], "train.device=cuda", "train.num_devices=2")
    assert outcome.code == 2
