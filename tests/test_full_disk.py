"""A disk without room: the file is named, nothing that was written before is lost, and the run goes on later."""

import os
import resource
import subprocess
import sys

import pytest

from runner.results.metrics import read_rows

RUN = ("dataset=random", "dataset.num_images=64", "dataset.image_size=8", "train.global_batch_size=2", "name=run")
RUN += ("model=resnet20", "train.device=cpu", "train.epochs=1", "train.log_every_steps=1", "wandb.mode=disabled")


def run(folder, *arguments, largest_file):
    """The command line, whose files may grow to `largest_file` bytes: its error is another, its way the same."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.run(
        [sys.executable, "-m", "runner", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=limit,
    )


@pytest.mark.parametrize(("largest_file", "file"), [(200, "record.json"), (4000, "metrics.jsonl")])
def test_the_file_is_named_and_the_run_goes_on_when_there_is_room(runner, tmp_path, largest_file, file):
    folder = tmp_path / "outputs/runs/run"
    done = run(tmp_path, *RUN, largest_file=largest_file)
    assert done.returncode == 1
    assert f"error: outputs/runs/run/{file} cannot be written (File too large)." in done.stdout
    assert "Traceback" not in done.stdout
    if file == "record.json":
        assert done.stdout.count("\n") == 1
        return
    assert "go on with: python -m runner resume=outputs/runs/run" in done.stdout
    assert 1 < len(read_rows(folder / "metrics.jsonl")) < 30  # the row that did not fit counts for nothing
    resumed = runner("resume=outputs/runs/run")
    assert resumed.code == 0, resumed.err
    steps = [row["step"] for row in read_rows(folder / "metrics.jsonl") if row["split"] == "steps"]
    assert steps == list(range(1, 33))
