"""The probe `learning_curves`, which reads the run's metrics and needs no model."""

from runner.results.learning_curves import learning_curves

__all__ = ["learning_curves"]
