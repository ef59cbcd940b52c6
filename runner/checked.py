"""The check of a configuration against what it names: the data, the model, its methods, the device."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from runner import build
from runner.config import method_nodes
from runner.data.dataset import Data, check_batch_size
from runner.settings.text import SettingError
from runner.training.precision import Precision, choose_device
from runner.training.tasks import Task, task_of


@dataclass(frozen=True)
class Checked:
    """What the check of a configuration found out on the way."""

    data: Data
    task: Task
    precision: Precision
    built: build.Built  # on torch's meta device, without memory; a run makes its own
    multiply_adds: int
    chosen: list[str]  # the names of the chosen methods in the order in which they are applied

    @property
    def num_params(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.built.model.parameters())


def check(config: DictConfig) -> Checked:
    """Everything that can be wrong with a configuration before a run begins. Raises SettingError; writes nothing.

    Puts the stem that was chosen in the place of `model.stem=auto`.
    """
    if config.train.deterministic:
        # Else cuBLAS may add in any order. It reads this once in a process: before the first job of a sweep begins.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        precision = Precision(config.train.precision, choose_device(config.train.device))
    except ValueError as error:
        raise SettingError(str(error)) from None
    # the jobs of a sweep share the data, and each finds its own unreadable files
    data = build.build_data(config.dataset)
    data = replace(data, unreadable=dict(data.unreadable))
    build.choose_stem(config.model, data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the run applies the methods again, and shows them
            built, multiply_adds = build.build_meta(config, data)
        check_batch_size(config.train.global_batch_size, data)
    except ValueError as error:
        raise SettingError(str(error)) from None
    chosen = [name for name in built.methods if name in method_nodes(config)]
    return Checked(data, task_of(data, config.train), precision, built, multiply_adds, chosen)
