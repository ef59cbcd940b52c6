"""The range of every setting, in one place that needs no torch.

The command line checks a configuration against this table before torch is imported; the functions of the
library check their arguments against the same rows. So both give the same answer, in the same words.

A row is that of a node of the settings, or of a group's option (`dataset.ade20k`), which goes before its group's. It
also gives the type of a setting whose default cannot: one that is null, or a number that may be a word instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.config.ranges import (
    LARGEST,
    Duration,
    Each,
    FilePath,
    Layer,
    Limit,
    OneOf,
    OrNull,
    OrWord,
    Range,
    Rising,
    Text,
    TrueOrFalse,
)
from runner.config.text import did_you_mean, to_override

POSITIVE = Range(above=0, at_most=LARGEST)
NOT_NEGATIVE = Range(at_least=0, at_most=LARGEST)
COUNT = Range(at_least=1, at_most=LARGEST, whole=True)
COUNT_OR_NONE = Range(at_least=0, at_most=LARGEST, whole=True)
SECONDS = Range(above=0, at_most=10**6)  # of waiting
CHANNELS = Range(at_least=1, at_most=2**16, whole=True)
PIXELS = Range(at_least=8, at_most=2**14, whole=True)
CONCENTRATION = Range(at_least=1e-3, at_most=1e3)  # of a beta distribution; beyond these torch draws NaN
PORTIONS = ("auto", "all", "first_half", "second_half")  # of a batch

LIMITS: dict[str, dict[str, Limit]] = {
    "agc": {"clip": POSITIVE, "eps": POSITIVE, "granularity": OneOf(("unit", "layer"))},
    "ghost_batchnorm": {"ghost_batch_size": COUNT, "running_stats": OneOf(("scaled", "sequential"))},
    "groupnorm": {"num_groups": CHANNELS},
    "batch_channel_norm": {"num_groups": CHANNELS},
    "weight_standardization": {"n_last_layers_ignore": COUNT_OR_NONE, "eps": NOT_NEGATIVE},
    "stochastic_depth": {
        "drop_rate": Range(at_least=0, below=1),
        "drop_warmup": Range(at_least=0, at_most=1),
        "drop_distribution": OneOf(("linear", "uniform")),
        "stochastic_method": OneOf(("block", "sample")),
        "rescale": OneOf(("inference", "training")),
        "dropped_update": OneOf(("rest", "continue")),
        "target_layer_name": OrNull(Text(200)),
    },
    "label_smoothing": {"smoothing": Range(at_least=0, below=1)},
    "mixup": {"alpha": CONCENTRATION, "portion": OneOf(PORTIONS)},
    "cutmix": {"alpha": CONCENTRATION, "portion": OneOf(PORTIONS)},
    "dropout": {"rate": Range(at_least=0, below=1)},
    "clip_by_norm": {"max_norm": POSITIVE},
    "clip_by_value": {"max_value": POSITIVE},
    "precise_batchnorm": {"num_batches": COUNT},
    "model": {
        "stem": OneOf(("auto", "imagenet", "strided", "small", "wide")),
        "width": Range(at_least=1 / 64, at_most=64),
        "alpha": POSITIVE,
        "output_stride": OneOf((8, 16)),
        "head_channels": CHANNELS,
        "methods_on": OneOf(("all", "backbone", "head")),
        "shortcut": OneOf(("zero_pad", "projection")),
        "dropout": Range(at_least=0, below=1),  # null, of an NFNet: the published rate
        "activation": OneOf(("relu", "gelu", "silu", "tanh", "elu", "leaky_relu", "sigmoid")),
        "initialization": OneOf(("default", "xavier_uniform", "xavier_normal", "kaiming_fan_in", "kaiming_fan_out")),
        "initialized_layers": OneOf(("conv", "all")),
        "pretrained": OrNull(FilePath()),
    },
    "optimizer": {
        "lr": POSITIVE,
        "lr_batch_size": OrNull(COUNT),
        "momentum": Range(at_least=0, below=1),
        "beta1": Range(at_least=0, below=1),
        "beta2": Range(at_least=0, below=1),
        "eps": POSITIVE,
        "weight_decay": NOT_NEGATIVE,
        "trust_coefficient": POSITIVE,
    },
    "schedule": {
        "warmup_epochs": NOT_NEGATIVE,
        "final_lr_share": Range(at_least=0, at_most=1),
        "milestones": Rising(Range(above=0, below=1)),
        "gamma": Range(above=0, at_most=1),
        "power": POSITIVE,
        "pct_start": Range(above=0, below=1),
        "div_factor": Range(above=1, at_most=LARGEST),
        "final_div_factor": Range(at_least=1, at_most=LARGEST),
        "anneal": OneOf(("cos", "linear")),
        "patience": COUNT,
        "max_doublings": Range(at_least=0, at_most=20, whole=True),
    },
    "dataset": {
        "validation": OrWord(Range(above=0, below=1), "test"),
        "check_duplicates": OrNull(TrueOrFalse()),
        "mask_values": OrNull(Each(Range(at_least=0, at_most=2**16 - 1, whole=True))),
        "image_size": PIXELS,
        "crop_padding": Range(at_least=0, at_most=128, whole=True),
        "num_classes": Range(at_least=2, at_most=10**6, whole=True),
        "num_images": Range(at_least=8, at_most=LARGEST, whole=True),
        "test_size": PIXELS,
        "ignore_label": OrNull(OrWord(Range(at_least=0, at_most=2**16 - 1, whole=True), "auto")),
        "scale_min": Range(above=0, at_most=100),
        "scale_max": Range(above=0, at_most=100),
        "mean": Each(Range(at_least=0, at_most=1)),
        "std": Each(Range(above=0, at_most=1)),
        "max_class_share": Range(above=0, at_most=1),
        "root": FilePath(),
        "num_workers": OrNull(Range(at_least=0, at_most=1024, whole=True)),
        "max_unreadable": COUNT_OR_NONE,
        "test_resize": PIXELS,
        "rand_augment_layers": Range(at_least=0, at_most=100, whole=True),
        "timeout_seconds": SECONDS,
        "rand_augment_magnitude": Range(at_least=0, at_most=30, whole=True),
        "random_erasing": Range(at_least=0, at_most=1),
        "interpolation": OneOf(("bilinear", "bicubic")),
    },
    **{f"dataset.{name}": {"test_size": OrNull(PIXELS)} for name in ("mask_folder", "ade20k")},
    "train": {
        "epochs": COUNT,
        "max_steps": OrNull(COUNT_OR_NONE),
        "global_batch_size": COUNT,
        "accumulation_steps": COUNT,
        "cross_entropy_weight": NOT_NEGATIVE,
        "dice_weight": NOT_NEGATIVE,
        "ema": OrNull(Range(above=0, below=1)),
        "num_devices": Range(at_least=1, at_most=2**16, whole=True),
        "rank_timeout": SECONDS,
        "max_time": OrNull(Duration()),
        "early_stopping_epochs": OrNull(COUNT),
        "evaluate_every_epochs": COUNT,
        "log_every_steps": COUNT,
        "checkpoint_every_epochs": COUNT,
        "checkpoint_every_steps": OrNull(COUNT),
        "checkpoint_every_minutes": OrNull(POSITIVE),
        "keep_best": Range(at_least=1, at_most=1000, whole=True),
        "on_divergence": OneOf(("stop", "skip", "restore")),
        "max_divergences": COUNT,
        "divergence_lr_factor": Range(above=0, at_most=1),
        "precision": OneOf(("auto", "fp32", "bf16", "tf32", "fp16")),
        "device": OneOf(("auto", "cpu", "cuda")),
    },
    "": {
        "seed": Range(at_least=-(2**31), at_most=2**32 - 1, whole=True),
        "probe_every_epochs": OrNull(COUNT),
        "probe_at": Each(COUNT_OR_NONE),
    },
    "probe": {"num_batches": COUNT},
    "probe.activation_statistics": {"layers": OrNull(Each(Layer()))},
    "probe.signal_propagation": {
        "skipinit_gain": OrNull(Range(at_least=-LARGEST, at_most=LARGEST)),
    },
    "probe.gradient_histogram": {
        "layer": Layer(),
        "num_bins": Range(at_least=1, at_most=10**6, whole=True),
        "tail_share": Range(above=0, below=1),
    },
    "probe.loss_landscape": {
        "exponents": Rising(Range(at_least=-30, at_most=30), is_interval=True),
        "num_steps": Range(at_least=2, at_most=10**5, whole=True),
        "exploded": Range(above=1, at_most=LARGEST),
    },
    "probe.divergence_trace": {
        "lr": POSITIVE,
        "steps": Range(at_least=1, at_most=10**4, whole=True),
        "parts": CHANNELS,
    },
    "probe.gradient_terms": {"layers": Each(Layer()), "chunk_size": COUNT},
    "probe.clipping": {"clip": POSITIVE, "eps": POSITIVE},
    "probe.sharpness": {
        "mode": OneOf(("train", "eval")),
        "tolerance": POSITIVE,
        "max_iterations": COUNT,
        "seed": Range(at_least=-(2**31), at_most=2**32 - 1, whole=True),
    },
    "paths": {"outputs": FilePath(), "extensions": OrNull(FilePath())},
    "wandb": {
        "mode": OneOf(("offline", "online", "disabled")),
        "project": Text(128, without="/\\#?%:"),
        "entity": OrNull(Text(128)),
        "group": OrNull(Text(128)),
        "tags": Each(Text(64)),
    },
}

COMMON = {  # settings that the runner itself acts on, or that have one meaning in all options of a group
    "model": ("initialization", "initialized_layers", "pretrained", "methods_on"),
    "optimizer": ("lr", "lr_batch_size", "weight_decay"),
    "schedule": ("warmup_epochs",),
    "dataset": ("image_size", "validation", "check_duplicates", "num_workers", "root"),
    "probe": ("num_batches",),
}


def ranges_of(group: str, name: str, *, own: bool = True) -> dict[str, Limit]:
    """The ranges of the settings of a group's option; a method's stand under its name alone.

    Of an option that is not our `own` those alone that mean the same in each: its others may have our names by chance.
    """
    ranges = LIMITS.get(group, {}) | LIMITS.get(name, {}) | LIMITS.get(f"{group}.{name}", {})
    return ranges if own else {key: ranges[key] for key in ranges.keys() & COMMON.get(group, ())}


def check(node: str, ranges: Mapping[str, Limit] | None = None, /, **settings: object) -> None:
    """Raise a ValueError that names the first of `settings` outside its range, that of the table if not given."""
    ranges = LIMITS.get(node, {}) if ranges is None else ranges
    for key, value in settings.items():
        limit = ranges.get(key)
        if limit is not None and value not in limit:
            hint = f" {did_you_mean(str(value), limit.choices)}" if isinstance(limit, OneOf) else ""
            spoken = to_override(value) if isinstance(value, Sequence) else value
            raise ValueError(f"{f'{node}.{key}'.lstrip('.')}={spoken}: {limit}.{hint}".rstrip())
