"""The model of a run that was trained before, from its folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from runner.config.extensions import use_folder
from runner.config.settings import Settings
from runner.config.stored import validate_stored
from runner.config.trust import Allowed
from runner.data.dataset import sides_of
from runner.experiment import builders
from runner.experiment.resume import check_fit, check_settings, check_state, older_settings
from runner.files.readers import is_there
from runner.results.record import record_in, verified_record
from runner.results.run_folder import RunFolder
from runner.training.checkpoint import load_checkpoint, restore_model
from runner.training.checkpoint_content import check_weights


def load_run(
    folder: str | Path,
    checkpoint: str = "best",
    *,
    extensions: str | Path | None = None,
    allowed_packages: Sequence[str] = (),
) -> tuple[torch.nn.Module, Settings]:
    """The trained model of a run folder, on the CPU and ready for evaluation, and the run's settings.

    `checkpoint` is "best" (chosen on the validation split) or "last". A run with options of your own needs their folder
    `extensions` and the `allowed_packages` again: nothing that lies in the run's folder can allow them. Raises
    ValueError if the folder holds no run, or no such checkpoint.
    """
    folder = RunFolder(Path(folder))
    path = folder.checkpoint(checkpoint)
    if not any(map(is_there, (folder.config, folder.record, path))):
        raise ValueError(f"{folder.path}: no run lies there ({folder.record.name} is missing).")
    saved = load_checkpoint(path, check=check_weights)
    known = verified_record(folder.path, {path: saved})
    for note in known.notes:
        warnings.warn(note, stacklevel=2)
    settings = known.record.settings if known.record else older_settings(folder)
    allowed = Allowed(tuple(allowed_packages), Path(extensions).resolve() if extensions else None)
    config = validate_stored(settings, folder.path, allowed)
    use_folder(allowed.extensions)
    if own := record_in(saved, path):
        check_settings(own.settings, settings, saved["methods"])
    with torch.device("meta"):  # so that settings which ask for more than the checkpoint holds take no memory
        trial = _build(config, saved["about"])
    check_fit(saved, trial.model, config.optimizer.name)
    check_state(saved, trial.methods)
    built = _build(config, saved["about"])
    averaged = {"model": saved["ema"]["model"]} if "ema" in saved else {}  # what an evaluation of last.pt looks at
    restore_model({**saved, **averaged}, built.model, built.methods)
    return built.model.eval(), config


def _build(config: Settings, about: Mapping) -> builders.Built:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the run showed them when it began
        return builders.build_changed_model(
            config,
            num_classes=about["num_classes"],
            example_input=torch.zeros(2, len(about["mean"]), *sides_of(about["image_size"])),
            pretrained=False,
        )
