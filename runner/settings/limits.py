"""The range of every setting, in one place that needs no torch.

The command line checks a configuration against this table before torch is imported; the functions of the
library check their arguments against the same rows. So both give the same answer, in the same words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite


@dataclass(frozen=True)
class Range:
    """An interval of numbers; `None` leaves an end open to infinity, `above` and `below` exclude their end.

    `whole` takes whole numbers only.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return (
            isfinite(value)  # a NaN lies in no interval, and infinity is no setting
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low = f"[{self.at_least}" if self.at_least is not None else f"({'-inf' if self.above is None else self.above}"
        high = f"{self.at_most}]" if self.at_most is not None else f"{'inf' if self.below is None else self.below})"
        return f"it must {'be a whole number' if self.whole else 'lie'} in {low}, {high}"


@dataclass(frozen=True)
class OneOf:
    """One of a few words or numbers."""

    choices: tuple[str | int, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return f"it must be one of {', '.join(map(str, self.choices))}"


@dataclass(frozen=True)
class OrWord:
    """A number of a range, or one word."""

    range: Range
    word: str

    def __contains__(self, value: object) -> bool:
        return value == self.word or value in self.range

    def __str__(self) -> str:
        return f"{self.range}, or be {self.word}"


@dataclass(frozen=True)
class Duration:
    """A time with its units, which a bare number would leave to be guessed."""

    def __contains__(self, value: object) -> bool:
        return seconds_of(str(value)) > 0

    def __str__(self) -> str:
        return "it must be a time with its unit, as in 45s, 90min, 11h or 2h30min"


def seconds_of(duration: str) -> float:
    """The seconds of a time as in 1.5h, 90min, 2h30min or 45s; 0 for what is none.

    >>> from runner.settings.limits import seconds_of
    >>> seconds_of("2h30min"), seconds_of("90")
    (9000.0, 0.0)
    """
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(?:{number}d)?(?:{number}h)?(?:{number}min)?(?:{number}s)?", duration)
    parts = match.groups(default="0") if match else ()
    return float(sum(float(part) * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=bool(parts))))


POSITIVE = Range(above=0)
NOT_NEGATIVE = Range(at_least=0)
COUNT = Range(at_least=1, whole=True)
COUNT_OR_NONE = Range(at_least=0, whole=True)
PORTIONS = ("auto", "all", "first_half", "second_half")  # of a batch

LIMITS: dict[str, dict[str, Range | OneOf | OrWord | Duration]] = {
    "agc": {"clip": POSITIVE, "eps": POSITIVE, "granularity": OneOf(("unit", "layer"))},
    "ghost_batchnorm": {"ghost_batch_size": COUNT, "running_stats": OneOf(("scaled", "sequential"))},
    "groupnorm": {"num_groups": COUNT},
    "batch_channel_norm": {"num_groups": COUNT},
    "weight_standardization": {"n_last_layers_ignore": COUNT_OR_NONE, "eps": NOT_NEGATIVE},
    "stochastic_depth": {
        "drop_rate": Range(at_least=0, below=1),
        "drop_warmup": Range(at_least=0, at_most=1),
        "drop_distribution": OneOf(("linear", "uniform")),
        "stochastic_method": OneOf(("block", "sample")),
        "rescale": OneOf(("inference", "training")),
        "dropped_update": OneOf(("rest", "continue")),
    },
    "label_smoothing": {"smoothing": Range(at_least=0, below=1)},
    "mixup": {"alpha": POSITIVE, "portion": OneOf(PORTIONS)},
    "cutmix": {"alpha": POSITIVE, "portion": OneOf(PORTIONS)},
    "dropout": {"rate": Range(at_least=0, below=1)},
    "clip_by_norm": {"max_norm": POSITIVE},
    "clip_by_value": {"max_value": POSITIVE},
    "precise_batchnorm": {"num_batches": COUNT},
    "model": {
        "stem": OneOf(("auto", "imagenet", "strided", "small", "wide")),
        "width": POSITIVE,
        "alpha": POSITIVE,
        "output_stride": OneOf((8, 16)),
        "head_channels": COUNT,
        "methods_on": OneOf(("all", "backbone", "head")),
        "shortcut": OneOf(("zero_pad", "projection")),
        "dropout": Range(at_least=0, below=1),
        "activation": OneOf(("relu", "gelu", "silu", "tanh", "elu", "leaky_relu", "sigmoid")),
        "initialization": OneOf(("default", "xavier_uniform", "xavier_normal", "kaiming_fan_in", "kaiming_fan_out")),
        "initialized_layers": OneOf(("conv", "all")),
    },
    "optimizer": {
        "lr": POSITIVE,
        "lr_batch_size": COUNT,
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
        "gamma": Range(above=0, at_most=1),
        "power": POSITIVE,
        "pct_start": Range(above=0, below=1),
        "div_factor": Range(above=1),
        "final_div_factor": Range(at_least=1),
        "anneal": OneOf(("cos", "linear")),
        "patience": COUNT,
        "max_doublings": COUNT_OR_NONE,
    },
    "dataset": {
        "image_size": Range(at_least=8, whole=True),
        "crop_padding": COUNT_OR_NONE,
        "num_classes": Range(at_least=2, whole=True),
        "num_images": Range(at_least=8, whole=True),
        "test_size": Range(at_least=8, whole=True),
        "ignore_label": OrWord(Range(at_least=0, at_most=2**16 - 1, whole=True), "auto"),
        "scale_min": POSITIVE,
        "scale_max": POSITIVE,
        "max_class_share": Range(above=0, at_most=1),
        "num_workers": COUNT_OR_NONE,
        "max_unreadable": COUNT_OR_NONE,
        "test_resize": Range(at_least=8, whole=True),
        "rand_augment_layers": COUNT_OR_NONE,
        "rand_augment_magnitude": Range(at_least=0, at_most=30, whole=True),
        "random_erasing": Range(at_least=0, at_most=1),
        "interpolation": OneOf(("bilinear", "bicubic")),
    },
    "train": {
        "epochs": COUNT,
        "max_steps": COUNT_OR_NONE,
        "global_batch_size": COUNT,
        "accumulation_steps": COUNT,
        "cross_entropy_weight": NOT_NEGATIVE,
        "dice_weight": NOT_NEGATIVE,
        "ema": Range(above=0, below=1),
        "num_devices": COUNT,
        "max_time": Duration(),
        "early_stopping_epochs": COUNT,
        "evaluate_every_epochs": COUNT,
        "log_every_steps": COUNT,
        "checkpoint_every_epochs": COUNT,
        "checkpoint_every_steps": COUNT,
        "checkpoint_every_minutes": POSITIVE,
        "keep_best": COUNT,
        "on_divergence": OneOf(("stop", "skip", "restore")),
        "max_divergences": COUNT,
        "divergence_lr_factor": Range(above=0, at_most=1),
        "precision": OneOf(("auto", "fp32", "bf16", "tf32", "fp16")),
        "device": OneOf(("auto", "cpu", "cuda")),
    },
    "": {"probe_every_epochs": COUNT},
    "probe.activation_statistics": {"num_batches": COUNT},
    "probe.class_gradients": {"num_batches": COUNT},
    "probe.signal_propagation": {"num_batches": COUNT},
    "probe.train_eval_discrepancy": {"num_batches": COUNT},
    "probe.gradient_histogram": {"num_batches": COUNT, "num_bins": COUNT, "tail_share": Range(above=0, below=1)},
    "probe.loss_landscape": {
        "num_batches": COUNT,
        "num_steps": Range(at_least=2, whole=True),
        "exploded": Range(above=1),
    },
    "probe.divergence_trace": {"num_batches": COUNT, "lr": POSITIVE, "steps": COUNT, "parts": COUNT},
    "probe.gradient_terms": {"num_batches": COUNT, "chunk_size": COUNT},
    "probe.clipping": {"num_batches": COUNT, "clip": POSITIVE, "eps": POSITIVE},
    "probe.sharpness": {
        "num_batches": COUNT,
        "mode": OneOf(("train", "eval")),
        "tolerance": POSITIVE,
        "max_iterations": COUNT,
    },
    "wandb": {"mode": OneOf(("offline", "online", "disabled"))},
}


NULLABLE = {("train", key) for key in ("max_steps", "max_time", "early_stopping_epochs", "ema")}
NULLABLE |= {("train", "checkpoint_every_steps"), ("train", "checkpoint_every_minutes"), ("model", "dropout")}
NULLABLE |= {("optimizer", "lr_batch_size"), ("dataset", "test_size"), ("dataset", "ignore_label")}
NULLABLE |= {("dataset", "num_workers"), ("", "probe_every_epochs")}


def check(node: str, **settings: object) -> None:
    """Raise a ValueError that names the first of `settings` outside its range; those in `NULLABLE` may be None."""
    for key, value in settings.items():
        limit = LIMITS.get(node, {}).get(key)
        if value is None and (node, key) in NULLABLE:
            continue
        if limit is not None and value not in limit:
            hint = f" {did_you_mean(str(value), limit.choices)}" if isinstance(limit, OneOf) else ""
            raise ValueError(f"{f'{node}.{key}'.lstrip('.')}={value}: {limit}.{hint}".rstrip())


def did_you_mean(word: str, choices: object) -> str:
    """`Did you mean x?` for the nearest of `choices`, or an empty string."""
    near = get_close_matches(word, [str(choice) for choice in choices], n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else ""
