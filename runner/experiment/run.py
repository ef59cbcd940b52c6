"""An experiment from its configuration to its run folder: the whole story."""

from __future__ import annotations

import contextlib
import shlex
import time
import traceback
from collections.abc import Callable

import torch

from runner.config.overrides import method_group
from runner.config.secrets import redact
from runner.config.settings import Settings
from runner.config.text import SettingError, visible
from runner.config.trust import resolved
from runner.config.validation import METHOD_GROUPS
from runner.data.dataset import DataFault
from runner.data.loader_faults import loader_fault
from runner.data.sampling import Shard
from runner.distributed.collectives import (
    barrier,
    broadcast_object,
    is_connection_lost,
    is_distributed,
    is_timeout,
    rank,
    world_size,
)
from runner.experiment.check import Checked, check
from runner.experiment.entry import Entry, enter, resume_command
from runner.experiment.methods import conf_folders_of
from runner.experiment.setup import prepare
from runner.experiment.summary import closing_rows, dataset_info, is_noop, opening_rows, wandb_summary
from runner.files.atomic import CannotWrite, write_atomically
from runner.results.job import Job
from runner.results.run_folder import RunFolder
from runner.tracking.console import Rows, RunConsole
from runner.tracking.metrics_log import MetricsLog
from runner.tracking.provenance import provenance
from runner.tracking.tracker import SilentTracker, Tracker
from runner.tracking.wandb_run import WandbRun, new_run_id, override_columns
from runner.training.checkpoint import load_checkpoint, load_latest, restore_model
from runner.training.checkpoint_content import check_last
from runner.training.divergence import Diverged
from runner.training.evaluation import evaluate
from runner.training.loop import Trainer
from runner.training.plan import Interrupted
from runner.training.tasks import Segmentation


def run(
    config: Settings,
    overrides: list[str],
    command: list[str],
    job: Job | None = None,
    *,
    announce: Callable[[str], object] | None = None,
) -> str:
    """Run an experiment; returns "completed", "diverged", "interrupted" or "failed", as its summary.json says.

    Raises SettingError before anything is written; whatever fails later ends in the status "failed", with the
    error shown, in the folder's error.txt and in its summary. Of several ranks each calls it. `announce` is told the
    folder's path before the run begins.
    """
    checked = check(config)
    config = checked.settings
    if rank() > 0:
        return _run_worker(checked)
    entry = _entered(config, checked, overrides, job)
    with entry.lock:
        if announce is not None:
            announce(str(entry.folder.path))
        if entry.finished_status is not None:
            RunConsole().message(f"{entry.folder.path}: {entry.finished_status} before; nothing is left to do.")
            return entry.finished_status
        return _run_rank0(config, checked, entry, overrides, command, job)


def _run_rank0(
    config: Settings, checked: Checked, entry: Entry, overrides: list[str], command: list[str], job: Job | None
) -> str:
    """The run in the only process, or in the first of several, which alone writes."""
    folder, checkpoint = entry.folder, entry.checkpoint
    record = entry.record(config.plain(), resolved(overrides, config), new_run_id(folder.path.name))
    entry.clear()
    folder.write_settings(record)
    metrics = MetricsLog(folder.metrics)
    metrics.cut_back(checkpoint["progress"]["step"] if checkpoint else -1)
    console = RunConsole()
    started = time.perf_counter()
    summary = {
        "status": "failed",
        "metrics": {checked.task.score: None, "loss": None},
        "best": {},
        "model": {"name": config.model.name, "num_params": checked.num_params, "multiply_adds": checked.multiply_adds},
        "methods": checked.built.counts,
        "overrides": [word for word in overrides if not word.startswith("sweep.")],
        "provenance": provenance(command),
        "wandb_id": record.id,
        "error": None,
    }
    wandb = _wandb_run(config, checked.chosen, overrides, folder, record.id, console)
    failure = None
    with Tracker(metrics=metrics, wandb=wandb, console=console) as tracker:
        position = (job.number, job.total) if job else None
        on_test = checked.data.validation_source == "test"
        tracker.start(
            folder.path.name,
            _opening(config, checked, folder, checkpoint),
            job=position,
            validation="test as val." if on_test else "validation",
        )
        for kind, text in checked.data.findings.notes:
            tracker.message(text, kind)
        if passed_over := entry.passed_over(overrides):
            words = shlex.join(passed_over)
            tracker.message(f"a folder does not say where things go; type it again to have it as before: {words}")
        for note in entry.notes:
            tracker.message(note, "warning")
        if entry.latest and entry.latest.damaged:
            step = checkpoint["progress"]["step"]
            tracker.message(
                f"{entry.latest.damaged} The run goes on from the one before it, at step {step}.", "warning"
            )
        rows = []
        trainer = None
        try:
            try:
                trainer = prepare(checked, folder, checkpoint, record, tracker)
                summary |= _train_and_test(trainer, checked, tracker)
            except Diverged as reason:
                summary |= {"status": "diverged", "error": str(reason)}
            except (Interrupted, KeyboardInterrupt):
                summary["status"] = "interrupted"
                rows.append(("go on with", resume_command(folder, config)))
            if trainer is not None:
                if trainer.prober is not None:
                    trainer.prober.finish(folder.metrics, step=trainer.progress.step)
                summary["best"] = trainer.progress.best
                summary["divergences"] = _divergences(trainer)
                summary["throughput"] = _throughput(trainer, time.perf_counter() - started)
        except Exception as error:  # the boundary of a run: recorded, shown, and told to the caller by the status
            failure = error
            summary["error"] = redact(_told(error) or f"{type(error).__name__}: {error}")
            trace = redact(traceback.format_exc())
            tracker.message(summary["error"] if _told(error) else trace.rstrip(), "error")
            with contextlib.suppress(CannotWrite):  # as on a full disk, of which the message above speaks
                write_atomically(folder.error, visible(trace, keep="\n\t"))
            if isinstance(error, CannotWrite):
                rows.append(("go on with", resume_command(folder, config)))
        summary["data"] = dataset_info(checked.data)
        summary["rows"] = metrics.rows
        try:
            folder.write_summary(summary)
        except CannotWrite as error:
            summary["status"] = "failed"
            tracker.message(str(error), "error")
        tracker.finish(
            summary["status"],
            [*closing_rows(summary, checked.data, folder.path), *rows],
            summary=wandb_summary(summary),
        )
    if failure is not None and is_distributed():
        raise failure  # for the launcher to end the other ranks
    return summary["status"]


def _run_worker(checked: Checked) -> str:
    """The run in one of the other processes: it trains and evaluates along, and writes nothing."""
    path, done, refusal = broadcast_object(None)
    if refusal is not None:
        raise SettingError(refusal)
    if done is not None:
        return done
    latest = load_latest(RunFolder(path).checkpoint("last"), checked.precision.device, check=check_last)
    tracker = SilentTracker()
    try:
        trainer = prepare(checked, RunFolder(path), latest.checkpoint if latest else None, None, tracker)
        return _train_and_test(trainer, checked, tracker)["status"]
    except Diverged:
        return "diverged"
    except (Interrupted, KeyboardInterrupt):
        return "interrupted"


def _opening(config: Settings, checked: Checked, folder: RunFolder, checkpoint: dict | None) -> Rows:
    return opening_rows(
        config,
        checked.data,
        checked.built.methods,
        checked.built.counts,
        num_params=checked.num_params,
        multiply_adds=checked.multiply_adds,
        precision=checked.precision,
        folder=folder.path,
        epochs_done=checkpoint["progress"]["epoch"] if checkpoint else None,
    )


def _entered(config: Settings, checked: Checked, overrides: list[str], job: Job | None) -> Entry:
    """The run's folder, of which the other ranks are told."""
    try:
        entry = _entry(config, checked, overrides, job)
    except SettingError as error:
        broadcast_object((None, None, str(error)))
        raise
    broadcast_object((entry.folder.path, entry.finished_status, None))
    return entry


def _entry(config: Settings, checked: Checked, overrides: list[str], job: Job | None) -> Entry:
    acting = [name for name in checked.chosen if not is_noop(name, checked.built.counts)]
    name = config.name or "-".join([config.dataset.name, config.model.name, *acting])
    built = checked.built
    settings, device = config.plain(), checked.precision.device
    return enter(settings, overrides, job, name, built.model, built.methods, device)


def _train_and_test(trainer: Trainer, checked: Checked, tracker: Tracker) -> dict:
    """What the summary says of a run that came to its end."""
    trainer.train()
    found = {"status": "completed"}
    if reason := trainer.why_ended():
        found["ended_early"] = reason
        tracker.message(f"{reason}: training has ended after {trainer.progress.step} steps")
    return {**found, **(_test(trainer, checked, tracker) if trainer.schedule.total_steps > 0 else {})}


def _divergences(trainer: Trainer) -> dict[str, int]:
    """What became of steps whose loss or gradient was not finite."""
    return {"skipped_steps": trainer.progress.skipped_steps, "restores": trainer.progress.restores}


def _told(error: Exception) -> str | None:
    """The message of an error that says it all, without a traceback."""
    if is_distributed() and is_timeout(str(error)):
        return "train.rank_timeout: another rank did not answer for so long."
    if is_distributed() and isinstance(error, RuntimeError) and is_connection_lost(str(error)):
        return "Another rank has died, or cannot be reached any more."
    error = loader_fault(error) or error
    return str(error) if isinstance(error, (DataFault, CannotWrite)) else None


def _test(trainer: Trainer, checked: Checked, tracker: Tracker) -> dict:
    """Evaluate best.pt, chosen on the validation split, on the test split; and the last weights beside it."""
    task, precision, progress = trainer.task, checked.precision, trainer.progress
    batches = checked.data.evaluation_batches(
        "test",
        batch_size=checked.data.evaluation_batch_size,
        device=precision.device,
        channels_last=trainer.validation_batches.channels_last,
        shard=Shard(rank(), world_size()),
    )
    last = evaluate(trainer.evaluated_model, batches, precision, task)
    barrier()  # the first rank writes best.pt
    restore_model(load_checkpoint(trainer.plan.best, precision.device), trainer.model, trainer.methods)
    best = evaluate(trainer.model, batches, precision, task)
    tracker.log({"step": progress.step, "epoch": progress.best["epoch"], "split": "test", **best.metrics})
    by_class = {"iou_by_class": task.by_class(best.counts)} if isinstance(task, Segmentation) else {}
    return {"metrics": best.metrics, "last": last.metrics, **by_class}


def _throughput(trainer: Trainer, seconds: float) -> dict:
    progress = trainer.progress
    throughput = {
        "images_per_second": progress.images_per_second,
        "images": progress.trained_images,
        "train_seconds": progress.train_seconds,
        "first_step_seconds": progress.first_step_seconds,
        "seconds": seconds,
    }
    if trainer.precision.device.type == "cuda":
        throughput["peak_memory_gib"] = torch.cuda.max_memory_allocated(trainer.precision.device) / 2**30
    return throughput


def _wandb_run(
    config: Settings, methods: list[str], overrides: list[str], folder: RunFolder, run_id: str, console: RunConsole
) -> WandbRun:
    """The run's mirror in W&B; a run of a sweep is in the sweep's group, also where it is resumed by itself."""
    settings, sweep, folders = config.wandb, config.sweep.name, conf_folders_of(config)
    chosen = {
        group: "+".join(name for name in methods if method_group(name, folders) == group) or "-"
        for group in METHOD_GROUPS
    }
    return WandbRun(
        mode=settings.mode,
        folder=config.paths.outputs,
        run_id=run_id,
        project=settings.project,
        name=folder.path.name,
        entity=settings.entity,
        group=settings.group or sweep,
        tags=[*settings.tags, config.model.name, config.dataset.name, *methods],
        config={**config.plain(), "methods": methods, **chosen, **override_columns(overrides)},
        job_type="sweep" if sweep else "run",
        report=lambda text: console.message(redact(text), "warning"),
    )
