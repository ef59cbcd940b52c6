"""`python -m runner plan ...`: the jobs of a sweep, how each stands, and how long what is left would take."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from runner.config.options import option_label
from runner.config.ranges import seconds_of
from runner.config.schema import TOP_LEVEL
from runner.config.settings import Settings
from runner.config.validation import method_nodes
from runner.experiment.check import Checked, check
from runner.files.readers import Unreadable, read_yaml_mapping
from runner.report.plan_table import PlannedRun, print_plan
from runner.results.job import Job
from runner.results.run_state import FAILED, RESULTS, RUNNING, TO_DO, RunState, read_state
from runner.sweeps.decision import Decision
from runner.sweeps.jobs_at_once import JobsAtOnce
from runner.sweeps.needed_time import print_needs
from runner.sweeps.step_time import StepTime, measure_step
from runner.tracking.terminal import terminal
from runner.training.checkpoint import load_latest
from runner.training.plan import steps_of

FINISHED, MEASURED = "from finished jobs", "measured here"
FREE = ("name", "seed", "resume", "probe", "probe_at", "probe_every_epochs", "schedule", "wandb", "paths", "sweep")
# settings of train.* on which a step's time depends
COSTLY = ("precision", "channels_last", "device", "num_devices", "global_batch_size", "accumulation_steps", "ema")
COSTLY += ("sync_batchnorm", "trained_parameters", "compile", "deterministic")
NOTES = {
    FINISHED: "seconds a step of finished jobs with the same model, methods and batch",
    MEASURED: "a few steps on random images; start, reading images, probes and compilation come on top",
}


def show_sweep(
    folder: Path,
    jobs: Sequence[Job],
    checked: Mapping[str, Checked],
    at_once: JobsAtOnce | None = None,
    decision: Decision | None = None,
) -> None:
    """Print how each job of the sweep in `folder` stands, and an estimate of the time; writes nothing.

    `checked` has those that are to run, by the job's name; `at_once` says how many of them at a time.
    """
    if at_once:
        torch.set_num_threads(at_once.threads)
    on_cpu = all(each.precision.device.type == "cpu" for each in checked.values())
    forecast = Forecast(_finished_in(folder, torch.get_num_threads() if on_cpu else None))
    runs = [
        forecast.of(job.overrides, checked[job.name], read_state(job.path), job.path)
        if job.name in checked
        else _settled(job.overrides, read_state(job.path))
        for job in jobs
    ]
    title = f"Sweep {folder}" if folder.is_dir() else f"A new sweep: {folder}"
    print_plan(runs, title=title, notes=NOTES, at_once=at_once.number if at_once else 1)
    if decision is not None:
        print_needs(decision)


def show_run(config: Settings, overrides: Sequence[str]) -> None:
    """Print an estimate of the time of a single run, or of what is left of the one that `resume` names."""
    path = Path(config.resume or "")
    state = read_state(path) if config.resume else RunState(TO_DO)
    run = Forecast({}).of(overrides, check(config), state, path)
    print_plan([run], title=f"Run {path}" if config.resume else "A new run", notes=NOTES)


class Forecast:
    """Estimates the time of runs; `finished` are seconds a step of runs that are there, by `_cost`."""

    def __init__(self, finished: Mapping[str, float]) -> None:
        self._finished = finished
        self._measured: dict[str, StepTime] = {}

    def of(self, overrides: Sequence[str], checked: Checked, state: RunState, path: Path) -> PlannedRun:
        """What is planned for the run in the folder `path`, which stands as `state` says."""
        config = checked.settings
        if state.is_left_alone(retry_failed=config.sweep.retry_failed):
            return _settled(overrides, state)
        total = total_steps(config, len(checked.data.train))
        step = state.step if state.status == RUNNING else _checkpointed(path)
        text = TO_DO if state.status == TO_DO else f"{state.status} at step {step} of {total}"
        if total == 0:  # probes alone
            return PlannedRun(tuple(overrides), state.status, text)
        per_step, source = self._seconds_per_step(checked, total)
        seconds = per_step * max(total - step, 0)
        if config.train.max_time is not None:
            seconds = min(seconds, seconds_of(config.train.max_time))
        return PlannedRun(tuple(overrides), state.status, text, seconds, per_step, source)

    def _seconds_per_step(self, checked: Checked, total: int) -> tuple[float, str]:
        """Seconds for a step with its share of the evaluations, and where they are from."""
        config = checked.settings
        cost = _cost(config.plain())
        if cost in self._finished:
            return self._finished[cost], FINISHED
        if cost not in self._measured:
            terminal(stderr=True).print(
                "timing a few steps of", option_label(config.model), *method_nodes(config), style="dim"
            )
            self._measured[cost] = measure_step(checked)
        found, data, train = self._measured[cost], checked.data, config.train
        epochs = math.ceil(total * train.global_batch_size / len(data.train))
        evaluations = math.ceil(epochs / train.evaluate_every_epochs)
        images = evaluations * len(data.validation) + 2 * len(data.test)
        return (
            found.training * train.global_batch_size / train.num_devices + found.evaluation * images / total,
            MEASURED,
        )


def _settled(overrides: Sequence[str], state: RunState) -> PlannedRun:
    """What is planned for a run that is left alone."""
    text = "failed, left so" if state.status == FAILED else state.text
    return PlannedRun(tuple(overrides), state.status, text)


def total_steps(config: Mapping, training_images: int) -> int:
    """The optimizer steps of a whole run, unless its schedule should_extend it or it ends early."""
    train = config["train"]
    return steps_of(train["epochs"], training_images // train["global_batch_size"], train["max_steps"])


def _checkpointed(path: Path) -> int:
    """The step that the run in the folder `path` would go on from; 0 without a checkpoint that can be used."""
    try:
        latest = load_latest(path / "checkpoints" / "last.pt")
        return int(latest.checkpoint["progress"]["step"]) if latest else 0
    except (ValueError, LookupError, TypeError):  # told when it is run
        return 0


def _finished_in(folder: Path, threads: int | None) -> dict[str, float]:
    """Seconds for a step, evaluations included, of the runs in `folder` that have a result; the median by `_cost`.

    Runs that had another number of threads do not count; None takes all.
    """
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*/summary.json")):
        state = read_state(path.parent)
        try:
            speed = state.summary["throughput"]
            config = read_yaml_mapping(path.with_name("config.yaml"))
            steps = speed["images"] / config["train"]["global_batch_size"]
            seconds = max(speed["seconds"], speed["train_seconds"])  # the first is of the last attempt alone
            if threads not in (None, state.summary["provenance"]["hardware"]["threads"]):
                continue
            if state.status in RESULTS and steps > 0:
                found.setdefault(_cost(config), []).append(seconds / steps)
        except (Unreadable, AttributeError, LookupError, TypeError):
            continue  # a run of another version, or one that measured nothing
    return {cost: statistics.median(values) for cost, values in found.items()}


def _cost(config: Mapping) -> str:
    """What the time of a step depends on, as a text: model, methods, data, optimizer and some of train.*."""
    kept = {key: value for key, value in config.items() if key not in FREE}
    kept["train"] = {key: config["train"].get(key) for key in COSTLY}
    kept["optimizer"] = config["optimizer"]["name"]
    for name, node in kept.items():  # a clip costs the same whatever its size, not so a drop rate
        if isinstance(node, Mapping) and "_target_" in node and name not in TOP_LEVEL:
            kept[name] = {key: v for key, v in node.items() if not isinstance(v, float) or key == "drop_rate"}
    kept["dataset"] = {key: value for key, value in config["dataset"].items() if key not in ("root", "download")}
    return json.dumps(kept, sort_keys=True)
