"""The ranges of settings that the runner itself acts on, or that several options of a group have; no torch is needed.

A setting of one option alone has its range in the option's YAML file. The command line checks a configuration against
both before torch is imported; the functions of the library check their arguments against the same rows. So both give
the same answer, in the same words.

A row is that of a node of the settings. It also gives the type of a setting whose default cannot: one that is null, or
a number that may be a word instead. How a range is written: conf/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from runner.config.ranges import Each, Limit, OneOf, OrNull, Text, parse_range
from runner.config.text import did_you_mean, to_override

if TYPE_CHECKING:
    from runner.config.options import Option

COUNT, CHANNELS, PIXELS = ">= 1 int", "[1, 65536] int", "[8, 16384] int"
SECONDS = "(0, 1000000]"  # of waiting

TABLE: dict[str, dict[str, str | list[str] | Limit]] = {
    "model": {
        "stem": ["auto", "imagenet", "strided", "small", "wide"],
        "width": "[0.015625, 64]",
        "alpha": "> 0",
        "output_stride": OneOf((8, 16)),
        "head": ["composer", "paper"],
        "head_channels": f"{CHANNELS} or null",
        "methods_on": ["all", "backbone", "head"],
        "shortcut": ["zero_pad", "projection"],
        "dropout": "[0, 1)",  # null, of an NFNet: the published rate
        "group_width": CHANNELS,
        "activation": ["relu", "gelu", "silu", "tanh", "elu", "leaky_relu", "sigmoid"],
        "initialization": ["default", "xavier_uniform", "xavier_normal", "kaiming_fan_in", "kaiming_fan_out"],
        "initialized_layers": ["conv", "all"],
        "pretrained": "path or null",
    },
    "optimizer": {
        "lr": "> 0",
        "lr_batch_size": f"{COUNT} or null",
        "momentum": "[0, 1)",
        "weight_decay": ">= 0",
    },
    "schedule": {
        "warmup_epochs": ">= 0",
        "final_lr_share": "[0, 1]",
        "milestones": "rising (0, 1)",
        "gamma": "(0, 1]",
    },
    "dataset": {
        "validation": "(0, 1) or test",
        "check_duplicates": "bool or null",
        "train_images": f"{COUNT} or null",
        "label_noise": "[0, 1]",
        "image_size": PIXELS,
        "channels": OneOf((1, 3)),
        "crop_padding": "[0, 128] int",
        "num_classes": "[2, 1000000] int",
        "test_size": PIXELS,
        "scale_min": "(0, 100]",
        "scale_max": "(0, 100]",
        "mean": "each [0, 1]",
        "std": "each (0, 1]",
        "max_class_share": "(0, 1]",
        "root": "path",
        "num_workers": "[0, 1024] int or null",
        "max_unreadable": ">= 0 int",
        "test_resize": PIXELS,
        "rand_augment_layers": "[0, 100] int",
        "timeout_seconds": SECONDS,
        "rand_augment_magnitude": "[0, 30] int",
        "random_erasing": "[0, 1]",
        "interpolation": ["bilinear", "bicubic"],
        "decode": ["torchvision", "pil", "cuda"],
    },
    "train": {
        "epochs": COUNT,
        "max_steps": ">= 0 int or null",
        "global_batch_size": COUNT,
        "accumulation_steps": COUNT,
        "trained_parameters": ["all", "norm", "classifier", "norm_and_classifier", "random"],
        "cross_entropy_weight": ">= 0",
        "dice_weight": ">= 0",
        "ema": "(0, 1) or null",
        "num_devices": "[1, 65536] int",
        "rank_timeout": SECONDS,
        "max_time": "time or null",
        "early_stopping_epochs": f"{COUNT} or null",
        "evaluate_every_epochs": COUNT,
        "log_every_steps": COUNT,
        "checkpoint_every_epochs": COUNT,
        "checkpoint_every_steps": f"{COUNT} or null",
        "checkpoint_every_minutes": "> 0 or null",
        "keep_best": "[1, 1000] int",
        "on_divergence": ["stop", "skip", "restore"],
        "max_divergences": COUNT,
        "divergence_lr_factor": "(0, 1]",
        "precision": ["auto", "fp32", "bf16", "tf32", "fp16"],
        "device": ["auto", "cpu", "cuda"],
        "cuda_graph": "bool or auto",
    },
    "": {
        "seed": "[-2147483648, 4294967295] int",
        "probe_every_epochs": f"{COUNT} or null",
        "probe_at": "each >= 0 int",
    },
    "probe": {"num_batches": COUNT},
    "paths": {"outputs": "path", "extensions": "path or null"},
    "sweep": {
        "jobs_at_once": "[1, 1024] int or auto or null",
        "jobs_per_device": "[1, 64] int",
        "budget": "time or null",
        "max_seeds": "[4, 1000] int",
    },
    "wandb": {
        "mode": ["offline", "online", "disabled"],
        "project": Text(128, without="/\\#?%:"),
        "entity": OrNull(Text(128)),
        "group": OrNull(Text(128)),
        "tags": Each(Text(64)),
    },
}
LIMITS = {
    node: {key: row if isinstance(row, Limit) else parse_range(row) for key, row in rows.items()}
    for node, rows in TABLE.items()
}

COMMON = {  # settings that the runner itself acts on, or that have one meaning in all options of a group
    "model": ("initialization", "initialized_layers", "pretrained", "methods_on"),
    "optimizer": ("lr", "lr_batch_size", "weight_decay"),
    "schedule": ("warmup_epochs",),
    "dataset": ("image_size", "validation", "check_duplicates", "num_workers", "root"),
    "probe": ("num_batches",),
}


def ranges_of(group: str, option: Option) -> dict[str, Limit]:
    """The ranges of the settings of a group's option.

    Of those in the table, an option from outside has those alone that mean the same in each option, and these go first:
    its others may have our names by chance.
    """
    shared = LIMITS.get(group, {})
    if option.is_own:
        return {**shared, **option.ranges}
    return {**option.ranges, **{key: shared[key] for key in COMMON.get(group, ())}}


@lru_cache
def own_ranges(name: str, *groups: str) -> Mapping[str, Limit]:
    """The ranges of an option of ours, a method if no group is named; empty if there is no such option."""
    from runner.config.options import METHOD_GROUPS, option_file, read_option  # on demand, for the library's sake

    for group in groups or METHOD_GROUPS:
        if file := option_file(group, name):
            return ranges_of(group, read_option(group, name, file))
    return {}


def check(node: str, ranges: Mapping[str, Limit] | None = None, /, **settings: object) -> None:
    """Raise a ValueError that names the first of `settings` outside its range.

    Without `ranges`, as the library calls this, they are those of the table, or of the method called `node`, and the
    message names an argument; with them it names a key of the command line.
    """
    prefix = f"{node}." if node and ranges is not None else ""
    if ranges is None:
        ranges = LIMITS[node] if node in LIMITS else own_ranges(node)
    for key, value in settings.items():
        limit = ranges.get(key)
        if limit is not None and value not in limit:
            hint = f" {did_you_mean(str(value), limit.choices)}" if isinstance(limit, OneOf) else ""
            spoken = to_override(value) if isinstance(value, (Sequence, Mapping)) else value
            raise ValueError(f"{prefix}{key}={spoken}: {limit}.{hint}".rstrip())
