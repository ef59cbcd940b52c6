"""The model of a run that was trained before, from its folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from runner import build
from runner.config import validate, with_defaults
from runner.runs.run_folder import RunFolder
from runner.safety.allowed import Allowed
from runner.training.checkpoint import load_checkpoint, restore_model


def load_run(
    folder: str | Path,
    checkpoint: str = "best",
    *,
    methods: str | Path | None = None,
    allowed_packages: Sequence[str] = (),
) -> tuple[torch.nn.Module, DictConfig]:
    """The trained model of a run folder, on the CPU and ready for evaluation, and the run's configuration.

    `checkpoint` is "best" (chosen on the validation split) or "last". A run with methods of your own needs their folder
    `methods` and the `allowed_packages` again: nothing that lies in the folder can allow them. Raises ValueError if the
    folder holds no run, or no such checkpoint.
    """
    folder = RunFolder(Path(folder))
    if not folder.config.is_file():
        raise ValueError(f"{folder.path}: no run lies there ({folder.config.name} is missing).")
    allowed = Allowed(tuple(allowed_packages), Path(methods).resolve() if methods else None)
    config = validate(allowed.put_in(with_defaults(OmegaConf.load(folder.config)), folder.path))
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
