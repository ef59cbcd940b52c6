"""What a run does before its first step, timed in a process of its own: `python start.py THREADS OVERRIDE...`.

Prints one line of JSON. Imports and the reading of the data are told apart from the rest, those too that come late.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import builtins  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from pathlib import Path  # noqa: E402

sys.path[:1] = map(str, Path(__file__).resolve().parents[1:3])  # of this module's package, and of the runner

import torch  # noqa: E402

from benchmarks import watched_run  # noqa: E402
from benchmarks.watched_run import Clocks, WatchedBatches  # noqa: E402
from runner.experiment import builders  # noqa: E402
from runner.experiment import run as experiment  # noqa: E402
from runner.results.run_folder import RunFolder  # noqa: E402
from runner.training.loop import Trainer  # noqa: E402

IMPORTS, DATA = "imports", "data"
PARTS = (  # of what the last of them leaves nothing is timed by itself
    (builtins, "__import__", IMPORTS),
    (builders, "build_data", DATA),
    (watched_run, "composed", "composing and checking the configuration"),
    (builders, "build_meta", "the model on the meta device, multiply-adds"),
    (experiment, "provenance", "provenance"),
    (RunFolder, "write_settings", "the settings in the run's folder"),
    (builders, "build_changed_model", "model and methods"),
    (builders, "build_optimizer", "optimizer"),
)


def main() -> None:
    """Run two steps, and print the seconds of each part up to the first."""
    threads, *overrides = sys.argv[1:]
    torch.set_num_threads(int(threads))
    imported = time.perf_counter()
    clocks = Clocks(torch.device("cpu"), "wall")  # of the host: a GPU is not waited for
    reached: dict[str, float] = {}
    watched: list[WatchedBatches] = []

    def take(trainer: Trainer) -> None:
        batches = WatchedBatches(
            trainer.train_batches, trainer.state.precision.device, lambda epoch: reached.update(clocks.seconds)
        )
        trainer.train_batches = batches
        watched.append(batches)

    with ExitStack() as stack:
        for owner, name, part in PARTS:
            stack.enter_context(clocks.on(owner, name, part))
        watched_run.run(watched_run.composed(overrides), take)
    asked, given, ended, next_given, next_ended = watched[0].moments[:5]
    late_imports, data = reached.pop(IMPORTS, 0.0), reached.pop(DATA) + given - asked
    before = asked - imported - late_imports - (data - (given - asked))
    reached["the rest"] = before - sum(reached.values())
    times = {
        "imports_s": imported - BEGAN + late_imports,
        "data_s": data,
        "to_first_step_s": before,
        "parts_s": dict(sorted(reached.items(), key=lambda item: -item[1])),
        "first_step_s": ended - given,
        "second_step_s": next_ended - next_given,
        "imports_to_first_step_s": ended - BEGAN,
    }
    print(json.dumps(times))


if __name__ == "__main__":
    main()
