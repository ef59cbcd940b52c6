"""The tracker of a run, and what the console shows before the run begins."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from runner.config.options import option_label
from runner.config.overrides import method_group
from runner.config.secrets import redact
from runner.config.validation import METHOD_GROUPS
from runner.experiment.check import Checked
from runner.experiment.entry import Entry
from runner.experiment.methods import conf_folders_of
from runner.experiment.summary import opening_rows
from runner.results.job import Job
from runner.results.record import Record
from runner.tracking.console import RunConsole
from runner.tracking.metrics_log import MetricsLog
from runner.tracking.tracker import Tracker
from runner.tracking.wandb_run import WandbRun, override_columns, upload_command


def open_tracker(
    checked: Checked, entry: Entry, record: Record, overrides: Sequence[str], console: RunConsole
) -> Tracker:
    """Metrics file, W&B and console of a run; a resumed run's metrics end at the checkpoint that it goes on from."""
    metrics = MetricsLog(entry.folder.metrics)
    metrics.cut_back(entry.checkpoint["progress"]["step"] if entry.checkpoint else -1)
    wandb = _wandb_run(checked, entry, record.id, overrides, console)
    return Tracker(metrics=metrics, wandb=wandb, console=console)


def show_start(tracker: Tracker, checked: Checked, entry: Entry, overrides: Sequence[str], job: Job | None) -> None:
    """The opening rows, and notes on the data and the folder."""
    on_test = checked.data.validation_source == "test"
    epochs_done = entry.checkpoint["progress"]["epoch"] if entry.checkpoint else None
    tracker.start(
        entry.folder.path.name,
        opening_rows(checked, entry.folder.path, epochs_done),
        job=(job.number, job.total) if job else None,
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
        step = entry.checkpoint["progress"]["step"]
        tracker.message(f"{entry.latest.damaged} The run goes on from the one before it, at step {step}.", "warning")


def _wandb_run(checked: Checked, entry: Entry, run_id: str, overrides: Sequence[str], console: RunConsole) -> WandbRun:
    """The run's mirror in W&B; a run of a sweep is in the sweep's group, also where it is resumed by itself."""
    settings, methods = checked.settings, checked.chosen
    wandb, sweep, folders = settings.wandb, settings.sweep.name, conf_folders_of(settings)
    chosen = {
        group: "+".join(name for name in methods if method_group(name, folders) == group) or "-"
        for group in METHOD_GROUPS
    }
    return WandbRun(
        mode=wandb.mode,
        folder=settings.paths.outputs,
        run_id=run_id,
        project=wandb.project,
        name=entry.folder.path.name,
        entity=wandb.entity,
        group=wandb.group or sweep,
        tags=[*wandb.tags, option_label(settings.model), option_label(settings.dataset), *methods],
        config={**settings.plain(), "methods": methods, **chosen, **override_columns(overrides)},
        job_type="sweep" if sweep else "run",
        upload=upload_command(entry.folder.path),
        report=lambda text: console.message(redact(text), "warning"),
    )
