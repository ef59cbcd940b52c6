"""The scores and the loss of a run's checkpoint, on any split or data set.

Overrides of the data set put another one in the place of the run's own; it must have the same number of classes. Exit
code 2 for a wrong setting, 1 for data of which nothing can be measured.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from runner.config.composition import compose_run, validate_again
from runner.config.extensions import add_search_path
from runner.config.grammar import all_parsed
from runner.config.overrides import prepare_overrides
from runner.config.settings import Settings
from runner.config.text import SettingError
from runner.experiment.earlier_overrides import earlier_overrides
from runner.results.run_folder import RunFolder

EXAMPLE = "example: runner evaluate outputs/runs/NAME --split validation train.device=cpu"


def main(arguments: Sequence[str]) -> None:
    """Read the arguments, evaluate, print."""
    parser = argparse.ArgumentParser("runner evaluate", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run's folder")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="best: chosen on validation")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    about = "as for the runner: dataset=..., train.device=cpu"
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=about)
    options = parser.parse_intermixed_args(arguments)
    try:
        print(evaluate_run(options.folder, options.checkpoint, options.split, options.overrides))
    except ValueError as error:
        print(f"Wrong setting. {error}", file=sys.stderr)
        raise SystemExit(2) from None


def evaluate_run(folder: Path, checkpoint: str, split: str, overrides: list[str]) -> str:
    """The line to print."""
    words = prepare_overrides(add_search_path(earlier_overrides([f"resume={folder}", *overrides])))
    asked = {override.key_or_group for override in all_parsed(overrides)}
    config = compose_run(words, typed=overrides)

    import torch

    from runner.data.dataset import DataFault
    from runner.experiment.builders import build_data
    from runner.experiment.load import load_run
    from runner.results.metrics import SCORES
    from runner.training.checkpoint import load_checkpoint
    from runner.training.evaluation import evaluate
    from runner.training.formats import begun_formats
    from runner.training.precision import Precision, choose_device
    from runner.training.tasks import task_of

    allowed = {"extensions": config.paths.extensions, "allowed_packages": config.paths.allowed_packages}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model, settings = load_run(folder, checkpoint, **allowed)
    for note in caught:
        print(note.message, file=sys.stderr)
    config = validate_again(as_asked(config, settings, asked), words)
    trained = load_checkpoint(RunFolder(folder).checkpoint(checkpoint))["about"]
    data = build_data(config.dataset)
    if data.num_classes != trained["num_classes"]:
        raise SettingError(
            f"dataset={data.name}: it has {data.num_classes} classes, the model was trained for "
            f"{trained['num_classes']}."
        )
    if len(data.mean) != (channels := len(trained["mean"])):
        raise SettingError(
            f"dataset.channels={len(data.mean)}: the model was trained on images of {channels}. Leave it out, or "
            "choose a data set that has as many."
        )
    # the images are normalized as those were that the model was trained on
    data = replace(data, mean=torch.tensor(trained["mean"]), std=torch.tensor(trained["std"]))
    device = choose_device(config.train.device)
    formats = begun_formats(config.train, device)  # as the run itself evaluates
    precision = Precision(formats.precision, device, formats.channels_last)
    model.to(device, memory_format=precision.memory_format)
    batches = data.evaluation_batches(
        split, batch_size=data.evaluation_batch_size, device=device, channels_last=formats.channels_last
    )
    try:
        result = evaluate(model, batches, precision, task_of(data, config.train))
    except DataFault as error:
        raise SystemExit(f"{data.name} {split}: {error}") from None  # exit code 1
    *scores, loss = result.metrics.items()
    shares = ", ".join(f"{SCORES.get(name, name.replace('_', ' '))} {100 * share:.2f} %" for name, share in scores)
    return f"{data.name} {split}, {result.num_images:,} images, {checkpoint}.pt: {shares}, loss {loss[1]:.4f}"


def as_asked(composed: Settings, settings: Settings, asked: Collection[str]) -> Settings:
    """The run's own settings of data and training, and what was composed for the keys that were typed."""
    nodes = ("dataset", "train")
    keys = [key for key in asked if key.startswith(tuple(f"{node}." for node in nodes))]
    config = composed.changed({node: settings[node] for node in nodes if node not in asked})
    return config.changed({key: composed.select(key) for key in keys})
