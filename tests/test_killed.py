"""A run that is killed at any moment goes on to the bits, and to the rows, of one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from runner.results.metrics import read_rows
from runner.training.checkpoint import load_checkpoint

RUN = ("dataset=random", "dataset.num_images=64", "dataset.image_size=8", "train.global_batch_size=8")
RUN += ("model=nf_resnet26", "model.width=0.25", "model.dropout=0.2", "norm=agc", "train.device=cpu")
RUN += ("regularization=[stochastic_depth,mixup]", "stochastic_depth.drop_rate=0.5", "train.ema=0.9")
RUN += ("train.epochs=6", "train.log_every_steps=2", "train.checkpoint_every_steps=3", "train.keep_best=2")
RUN += ("wandb.mode=disabled",)
TIMINGS = ("images_per_second", "seconds")


def command(*arguments):
    return [sys.executable, "-m", "runner", *arguments]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def rows(folder):
    found = read_rows(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in found]


def weights(path):
    checkpoint = load_checkpoint(path)
    return {name: value for part in ("model", "ema") for name, value in flat(checkpoint.get(part, {}), part)}


def flat(state, name):
    for key, value in state.items():
        yield from flat(value, f"{name}.{key}") if isinstance(value, dict) else [(f"{name}.{key}", value)]


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(3))
def test_killed_many_times(tmp_path, draw):
    """The moments are random: while it starts, in a step, as it evaluates, writes a checkpoint or a summary."""
    whole = subprocess.run(command(*RUN, "name=whole"), cwd=tmp_path, env=environment(), capture_output=True)
    assert whole.returncode == 0, whole.stdout
    moments = random.Random(draw)
    again = (*RUN, "name=parts", "train.auto_resume=true")
    folder = tmp_path / "outputs/runs/parts"
    killed = 0
    for _ in range(30):
        process = subprocess.Popen(command(*again), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
        for line in process.stdout:  # until training has begun: the imports take most of the time
            if "folder:" in line:
                break
        time.sleep(moments.uniform(0, 1))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    last = subprocess.run(command(*again), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert last.returncode == 0, last.stdout
    assert killed >= 3
    one = tmp_path / "outputs/runs/whole"
    for name in ("last.pt", "best.pt"):
        expected = weights(one / "checkpoints" / name)
        found = weights(folder / "checkpoints" / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(value)), (name, key)
    assert rows(folder) == rows(one)
    summaries = [json.loads((path / "summary.json").read_text()) for path in (one, folder)]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    assert summaries[0]["best"] == summaries[1]["best"]
    names = [sorted(path.name for path in (f / "checkpoints").iterdir()) for f in (one, folder)]
    assert names[0] == names[1]
