"""An experiment from its configuration to its run folder: the whole story."""

from __future__ import annotations

import shlex
import time
import traceback
import warnings
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from runner import build
from runner.checked import Checked, check
from runner.chosen_methods import conf_folders_of
from runner.config import METHOD_GROUPS, validate, with_defaults
from runner.data.dataset import DataFault
from runner.description import closing_rows, flat, idle, opening_rows, sizes
from runner.job import Job
from runner.overrides import method_group
from runner.preparation import prepare
from runner.resume import new_folder, open_folder
from runner.run_folder import RunFolder
from runner.tracking.console import Rows, RunConsole
from runner.tracking.metrics_log import MetricsLog
from runner.tracking.provenance import provenance
from runner.tracking.tracker import Tracker
from runner.tracking.wandb_run import WandbRun, new_run_id, override_columns
from runner.training.checkpoint import load_checkpoint, restore_model
from runner.training.evaluation import evaluate
from runner.training.loop import Trainer
from runner.training.plan import Diverged, Interrupted
from runner.training.tasks import Segmentation


def run(config: DictConfig, overrides: list[str], command: list[str], job: Job | None = None) -> str:
    """Run an experiment; returns "completed", "diverged", "interrupted" or "failed", as its summary.json says.

    Raises SettingError before anything is written; whatever fails later ends in the status "failed", with the
    error shown, in the folder's error.txt and in its summary.
    """
    checked = check(config)
    folder, checkpoint = _folder(config, job, checked)
    folder.error.unlink(missing_ok=True)
    folder.write_settings(OmegaConf.to_container(config), overrides)
    metrics = MetricsLog(folder.metrics)
    metrics.cut_back(checkpoint["progress"]["step"] if checkpoint else -1)
    wandb_id = checkpoint["about"]["wandb_id"] if checkpoint else new_run_id(folder.path.name)
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
        "wandb_id": wandb_id,
        "error": None,
    }
    wandb = _wandb_run(config, checked.chosen, overrides, folder, wandb_id, console)
    with Tracker(metrics=metrics, wandb=wandb, console=console) as tracker:
        position = (job.number, job.total) if job else None
        on_test = checked.data.validation_source == "test"
        tracker.start(
            folder.path.name,
            _opening(config, checked, folder, checkpoint),
            job=position,
            validation="test as val." if on_test else "validation",
        )
        rows = []
        trainer = None
        try:
            try:
                trainer = prepare(config, checked, folder, checkpoint, wandb_id, tracker)
                trainer.train()
                if trainer.total_steps > 0:
                    summary |= _test(trainer, checked, folder, tracker)
                summary["status"] = "completed"
            except Diverged as reason:
                summary |= {"status": "diverged", "error": str(reason)}
            except (Interrupted, KeyboardInterrupt):
                summary["status"] = "interrupted"
                rows.append(("go on with", f"python -m runner {shlex.quote(f'resume={folder.path}')}"))
            if trainer is not None:
                if trainer.prober is not None:
                    trainer.prober.finish(folder.metrics, step=trainer.progress.step)
                summary["best"] = trainer.progress.best
                summary["throughput"] = _throughput(trainer, time.perf_counter() - started)
        except Exception as error:  # the boundary of a run: recorded, shown, and told to the caller by the status
            trace, is_told = traceback.format_exc(), isinstance(error, DataFault)  # whose message says it all
            summary["error"] = str(error) if is_told else f"{type(error).__name__}: {error}"
            folder.error.write_text(trace)
            tracker.message(str(error) if is_told else trace.rstrip(), "error")
        summary["data"] = sizes(checked.data)
        folder.write_summary(summary)
        tracker.finish(
            summary["status"], [*closing_rows(summary, checked.data, folder.path), *rows], summary=flat(summary)
        )
    return summary["status"]


def load_run(folder: str | Path, checkpoint: str = "best") -> tuple[torch.nn.Module, DictConfig]:
    """The trained model of a run folder, on the CPU and ready for evaluation, and the run's configuration.

    `checkpoint` is "best" (chosen on the validation split) or "last". Raises ValueError if the folder holds no run,
    or no such checkpoint.
    """
    folder = RunFolder(Path(folder))
    if not folder.config.is_file():
        raise ValueError(f"{folder.path}: no run lies there ({folder.config.name} is missing).")
    config = validate(with_defaults(OmegaConf.load(folder.config)))
    saved = load_checkpoint(folder.checkpoint(checkpoint))
    about = saved["about"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the run showed them when it began
        built = build.build_changed_model(
            config,
            num_classes=about["num_classes"],
            example_input=torch.zeros(2, 3, about["image_size"], about["image_size"]),
            pretrained=False,
        )
    averaged = {"model": saved["ema"]["model"]} if "ema" in saved else {}  # what an evaluation of last.pt looks at
    restore_model({**saved, **averaged}, built.model, built.methods)
    return built.model.eval(), config


def _opening(config: DictConfig, checked: Checked, folder: RunFolder, checkpoint: dict | None) -> Rows:
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


def _folder(config: DictConfig, job: Job | None, checked: Checked) -> tuple[RunFolder, dict | None]:
    """A new folder, or the one to resume with its last checkpoint."""
    if config.resume is not None:
        settings = OmegaConf.to_container(config)
        return open_folder(settings, checked.built.model, checked.built.methods, device=checked.precision.device)
    if job is not None:
        return new_folder(job.folder, job.name, config.paths.outputs), None
    acting = [name for name in checked.chosen if not idle(name, checked.built.counts)]
    name = config.name or "-".join([config.dataset.name, config.model.name, *acting])
    return new_folder(Path(config.paths.outputs) / "runs", name, config.paths.outputs), None


def _test(trainer: Trainer, checked: Checked, folder: RunFolder, tracker: Tracker) -> dict:
    """Evaluate best.pt, chosen on the validation split, on the test split; and the last weights beside it."""
    task, precision, progress = trainer.task, checked.precision, trainer.progress
    batches = checked.data.evaluation_batches(
        "test",
        batch_size=checked.data.evaluation_batch_size,
        device=precision.device,
        channels_last=trainer.validation_batches.channels_last,
    )
    last = evaluate(trainer.evaluated_model, batches, precision, task)
    restore_model(load_checkpoint(folder.checkpoint("best"), precision.device), trainer.model, trainer.methods)
    best = evaluate(trainer.model, batches, precision, task)
    tracker.log({"step": progress.step, "epoch": progress.best["epoch"], "split": "test", **best.metrics})
    by_class = {"iou_by_class": task.by_class(best.counts)} if isinstance(task, Segmentation) else {}
    return {"metrics": best.metrics, "last": last.metrics, **by_class}


def _throughput(trainer: Trainer, seconds: float) -> dict:
    progress = trainer.progress
    throughput = {
        "images_per_second": progress.trained_images / progress.train_seconds if progress.train_seconds else None,
        "train_seconds": progress.train_seconds,
        "seconds": seconds,
    }
    if trainer.precision.device.type == "cuda":
        throughput["peak_memory_gib"] = torch.cuda.max_memory_allocated(trainer.precision.device) / 2**30
    return throughput


def _wandb_run(
    config: DictConfig, methods: list[str], overrides: list[str], folder: RunFolder, run_id: str, console: RunConsole
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
        config={**OmegaConf.to_container(config), "methods": methods, **chosen, **override_columns(overrides)},
        job_type="sweep" if sweep else "run",
        report=lambda text: console.message(text, "warning"),
    )
