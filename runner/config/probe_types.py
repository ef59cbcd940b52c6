"""The settings of each probe and their types; the defaults stand in conf/probe alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional


@dataclass
class LearningCurves:
    pass


@dataclass
class Batches:
    num_batches: int


@dataclass
class GradientHistogram(Batches):
    layer: Any
    num_bins: int
    tail_share: float


@dataclass
class LossLandscape(Batches):
    exponents: list[float]
    num_steps: int
    exploded: float


@dataclass
class DivergenceTrace(Batches):
    lr: float
    steps: int
    parts: int


@dataclass
class ActivationStatistics(Batches):
    layers: Any


@dataclass
class GradientTerms(Batches):
    layers: Any
    chunk_size: int


@dataclass
class SignalPropagation(Batches):
    skipinit_gain: Optional[float]


@dataclass
class Clipping(Batches):
    clip: float
    eps: float
    exclude: list[str]


@dataclass
class Sharpness(Batches):
    mode: str
    tolerance: float
    max_iterations: int
    seed: int


PROBE_TYPES: dict[str, type] = {
    "learning_curves": LearningCurves,
    "gradient_histogram": GradientHistogram,
    "loss_landscape": LossLandscape,
    "divergence_trace": DivergenceTrace,
    "activation_statistics": ActivationStatistics,
    "class_gradients": Batches,
    "gradient_terms": GradientTerms,
    "signal_propagation": SignalPropagation,
    "clipping": Clipping,
    "train_eval_discrepancy": Batches,
    "sharpness": Sharpness,
}
