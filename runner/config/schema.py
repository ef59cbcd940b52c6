"""Which settings there are beside those of groups, and of which type; the defaults stand in conf/ alone.

The types are written as OmegaConf reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Optional, Union


@dataclass
class Train:
    epochs: int
    max_steps: Optional[int]
    global_batch_size: int
    accumulation_steps: int
    precision: str
    channels_last: Optional[bool]
    compile: bool
    cuda_graph: Any  # a truth value or auto
    device: str
    num_devices: int
    rank_timeout: float
    deterministic: bool
    sync_batchnorm: bool
    trained_parameters: str
    class_weights: Any  # a list of numbers or a word
    cross_entropy_weight: float
    dice_weight: float
    dice_squared: bool
    ema: Optional[float]
    ema_warmup: bool
    max_time: Optional[str]
    early_stopping_epochs: Optional[int]
    evaluate_every_epochs: int
    log_every_steps: int
    checkpoint_every_epochs: int
    checkpoint_every_steps: Optional[int]
    checkpoint_every_minutes: Optional[float]
    keep_best: int
    auto_resume: bool
    on_divergence: str
    max_divergences: int
    divergence_lr_factor: float


@dataclass
class Wandb:
    mode: str
    project: str
    entity: Optional[str]
    group: Optional[str]
    tags: list[str]


@dataclass
class Paths:
    outputs: str
    extensions: Optional[str]
    allowed_packages: list[str]


@dataclass
class Sweep:
    name: Optional[str]
    retry_failed: bool
    mix: bool
    jobs_at_once: Optional[Union[int, str]]
    jobs_per_device: int
    decide: bool
    budget: Optional[str]
    max_seeds: int


@dataclass
class Study(Sweep):
    """A sweep's node as it is composed; what it says beside the name is about all jobs, and is left out of each."""

    title: Optional[str]
    source: Optional[str]
    about: Optional[str]
    axes: Any
    measures: list[str]
    names: Any
    claims: Any


@dataclass
class Values:
    """The settings of the top level that belong to no node; each chosen probe is typed by its own file."""

    name: Optional[str]
    seed: int
    resume: Optional[str]
    probe: Any
    probe_at: list[int]
    probe_every_epochs: Optional[int]


@dataclass
class Root(Values):
    """The top level. A node typed `Any` here has a type of its own for each option, found by its name."""

    train: Train
    wandb: Wandb
    paths: Paths
    sweep: Sweep
    model: Any
    optimizer: Any
    schedule: Any
    dataset: Any


TOP_LEVEL = tuple(field.name for field in fields(Root))
