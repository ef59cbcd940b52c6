"""The size of every model: parameters, multiply-adds and activations (the numbers that convolutions put out).

Counted for one image on torch's meta device, where nothing is computed. Without --image-size each model is counted at
the size it is published for in evaluation. With --methods: which methods work on which models of timm and torchvision.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.table import Table

from runner.commands.help import by_number
from runner.config.extensions import import_builder
from runner.config.options import CONF, TARGET, read_option
from runner.config.text import SettingError
from runner.results.number_text import format_count

EXAMPLE = "example: runner describe resnet50 timm/resnet50d --image-size 256"
LIBRARIES = ("timm", "torchvision")  # whose models are named as in timm/resnet50d


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("runner describe", description=__doc__, epilog=EXAMPLE)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a model, as for model=NAME, or as timm/resnet50d; all without any"
    )
    parser.add_argument("--image-size", type=_positive, metavar="PIXELS")
    parser.add_argument("--num-classes", type=_positive, metavar="NUMBER")
    parser.add_argument("--methods", action="store_true", help="what each method does to models such as timm/resnet50d")
    options = parser.parse_args(arguments)
    if options.methods:
        _describe_methods(options.names)
        return

    files = sorted((CONF / "model").glob("*.yaml"), key=lambda file: by_number(file.stem))
    models = {file.stem: file for file in files}
    for name in options.names:
        if name.partition("/")[0] not in (LIBRARIES if "/" in name else models):
            parser.error(
                f"{name}: there is no such model; choose of {', '.join(models)}, or name one as timm/resnet50d"
            )

    from runner.models.size import measure_size  # imports torch, which --help needs not

    table = Table(box=None, pad_edge=False)
    for header in ("model", "image", "parameters", "multiply-adds", "activations"):
        table.add_column(header, justify="left" if header == "model" else "right")
    for name in options.names or models:
        option, _, architecture = name.partition("/")
        build = import_builder(read_option("model", option, models[option]).settings[TARGET])
        if architecture:
            build = partial(build, architecture=architecture)
        try:
            size = measure_size(build, image_size=options.image_size, num_classes=options.num_classes)
        except ValueError as error:
            parser.error(f"{name}: {error}")
        except (RuntimeError, AssertionError) as error:
            parser.error(f"{name}: it does not take images of {options.image_size} pixels ({error})")
        counts = (size.parameters, size.multiply_adds, size.activations)
        table.add_row(name, f"{size.image_size} px", *(format_count(count) for count in counts))
    Console(highlight=False).print(table)


def _describe_methods(names: Sequence[str]) -> None:
    """Print the table of methods by models, each named as in timm/resnet50d; without names, that of the README."""
    from runner.experiment.method_support import ARCHITECTURES, table_of

    architectures = [tuple(name.split("/", 1)) for name in names]
    for name, (library, *architecture) in zip(names, architectures, strict=True):
        if library not in LIBRARIES or not architecture:
            raise SettingError(f"{name}: name a model of {' or '.join(LIBRARIES)}, as in timm/resnet50d.")
    try:
        print(table_of(architectures or ARCHITECTURES))
    except ValueError as error:
        raise SettingError(str(error)) from None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number
