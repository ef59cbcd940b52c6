"""A run in words: the rows that the console shows at its start and at its end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap

import torch

from runner.config.options import option_label
from runner.config.text import to_override
from runner.config.validation import method_nodes
from runner.data.dataset import Data, size_text
from runner.data.image_check import unseen_text
from runner.experiment.check import Checked
from runner.optim.optimizers import scaled_lr
from runner.results.metrics import METRICS, SCORES, read_rows
from runner.results.number_text import format_count, format_duration, format_lr, format_share, format_value
from runner.results.run_folder import probe_files
from runner.tracking.console import Rows
from runner.training.precision import Precision

NUMBERS_WIDTH = 54  # of the lines of a probe's numbers: beside its name they have room on 80 columns


def opening_rows(checked: Checked, folder: Path, epochs_done: int | None) -> Rows:
    """Model, what each method changed, data, optimizer, device and folder. `epochs_done` is that of a resumed run."""
    config, data, methods, counts = checked.settings, checked.data, checked.built.methods, checked.built.counts
    num_params, multiply_adds = format_count(checked.num_params), format_count(checked.multiply_adds)
    size = f"{num_params} parameters, {multiply_adds} multiply-adds an image"
    stem = f", {config.model.stem} stem" if "stem" in config.model else ""
    rows = [("model", f"{option_label(config.model)}{stem}; {size}")]
    for name, method in methods.items():
        if name == "batchnorm" and "sync_batchnorm" in methods:
            continue  # they are not left as they are
        if is_noop(name, counts):
            rows.append((name, "no batch norm in the model"))
            continue
        node = method_nodes(config).get(name, {})
        settings = [
            f"{key}={to_override(value)}"
            for key, value in node.items()
            if key != "_target_" and value not in (None, (), {})
        ]
        changed = [f"{counts[name]} {method.counted}"] if counts[name] else []
        rows.append((name, "; ".join([*changed, *([", ".join(settings)] if settings else [])])))
    train, optimizer, schedule = config.train, config.optimizer, config.schedule
    lr_batch_size, decay = optimizer.get("lr_batch_size"), optimizer.get("weight_decay", 0.0)
    rate = scaled_lr(optimizer.lr, global_batch_size=train.global_batch_size, lr_batch_size=lr_batch_size)
    at_most = f", at most {train.max_steps} steps" if train.max_steps else ""
    parts = f" in {train.accumulation_steps} micro-batches" if train.accumulation_steps > 1 else ""
    average = "" if train.ema is None else f"; weights averaged with decay {train.ema:g}"
    held_out = (
        "the test split stands in for validation"
        if data.validation_source == "test"
        else (f"{len(data.validation):,} validation")
    )
    training = (
        f"{_epochs(train.epochs)}{at_most}, batch {train.global_batch_size}{parts}; {optimizer.name}, lr "
        f"{format_lr(rate)}, weight decay {format_lr(decay)}; {schedule.name} schedule, "
        f"{_epochs(schedule.get('warmup_epochs', 0))} of warm-up{average}"
    )
    rows += [
        (
            "data",
            f"{data.name}: {len(data.train):,} training, {held_out}, {len(data.test):,} test images of "
            f"{size_text(data.image_shape[1:])}, {data.num_classes} classes",
        ),
        ("training", "none, probes alone (train.max_steps=0)" if train.max_steps == 0 else training),
        ("device", _device(checked.precision)),
        ("folder", str(folder)),
    ]
    if epochs_done is not None:
        rows.append(("resumed", f"after epoch {epochs_done}"))
    return rows


def is_noop(name: str, counts: Mapping[str, int]) -> bool:
    """Whether the method is `batchnorm`, which leaves a model's batch norms as they are, and the model has none."""
    return name == "batchnorm" and not counts[name]


def closing_rows(summary: Mapping, data: Data, folder: Path) -> Rows:
    """The result, where it lies, and the error if there was one."""
    rows = []
    metrics, best = summary["metrics"], summary["best"]
    score = next(iter(metrics))  # the task's
    if summary["error"]:
        rows.append(("reason", str(summary["error"])))
    if metrics[score] is not None:
        rows.append(("test", f"{SCORES[score]} {format_share(metrics[score])}, loss {metrics['loss']:.4f}"))
    if best:
        source = "test split, which stands in for validation" if data.validation_source == "test" else "validation"
        rows.append(("best", f"{source}: {SCORES[score]} {format_share(best[score])} after epoch {best['epoch']}"))
    if data.unreadable:
        file, reason = next(iter(data.unreadable.items()))
        number = len(data.unreadable)
        rows.append(("unreadable", f"{number} file{'s' if number > 1 else ''} left out: {file} ({reason})"))
    rows += [("unseen", unseen_text(split, names)) for split, names in data.unseen_classes().items() if names]
    throughput = summary.get("throughput") or {}
    if throughput.get("images_per_second"):
        speed = f"{throughput['images_per_second']:,.0f} images/s"
        rows.append(("time", f"{format_duration(throughput['train_seconds'])} of training, {speed}"))
    return [*rows, ("folder", str(folder))]


def probe_rows(folder: Path) -> Rows:
    """The numbers that each probe measured last, and the file of its picture in the folder."""
    latest: dict[str, dict[str, float]] = {}
    for row in read_rows(folder) if (folder / METRICS).is_file() else ():
        for name, value in row.items():
            probe, _, number = name.partition("/")
            if row["split"] == "probe" and number and value is not None:
                latest.setdefault(probe, {})[re.sub(r"(?<=\d)_(?=\d)", ".", number).replace("_", " ")] = value
    pictures = {file.probe: file.path for file in probe_files(folder, "png")}
    rows = []
    for probe in dict.fromkeys([*latest, *pictures]):
        numbers = [f"{name} {format_value(value, 3)}" for name, value in latest.get(probe, {}).items()]
        lines = wrap(", ".join(numbers), NUMBERS_WIDTH) + [str(pictures[probe].relative_to(folder))] * (
            probe in pictures
        )
        rows.append((probe, "\n".join(lines)))
    return rows


def dataset_info(data: Data) -> dict:
    """The data set as summary.json has it."""
    return {
        "name": data.name,
        "train": len(data.train),
        "validation": len(data.validation),
        "test": len(data.test),
        "validation_source": data.validation_source,
        "num_classes": data.num_classes,
        "image_size": data.image_size,
        "unreadable": dict(data.unreadable),
        "unseen_classes": data.unseen_classes(),
        **data.findings.entries,
    }


def wandb_summary(summary: Mapping) -> dict:
    """What W&B's table of runs shows of a summary: numbers and words with one name each."""
    return {
        **{f"test/{key}": value for key, value in summary["metrics"].items() if value is not None},
        **{f"validation/{key}": value for key, value in summary["best"].items()},
        **{f"throughput/{key}": value for key, value in (summary.get("throughput") or {}).items()},
        **{f"model/{key}": value for key, value in summary["model"].items()},
    }


def _epochs(number: float) -> str:
    return f"{number:g} epoch{'' if number == 1 else 's'}"


def _device(precision: Precision) -> str:
    formats = f"{precision.name}{', channels last' if precision.channels_last else ''}"
    if precision.device.type == "cuda":
        return f"{torch.cuda.get_device_name(precision.device)}, {formats}"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}, {formats}"
