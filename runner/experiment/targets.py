"""What the settings of an option are made into, by the class or function that their `_target_` names."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import TYPE_CHECKING, Any

from runner.config.extensions import describe_error, import_builder
from runner.config.options import TARGET
from runner.config.settings import Settings
from runner.config.targets import OWN_PACKAGE
from runner.config.text import SettingError
from runner.figures import NAMES, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from runner.results.measurement import Measurement

Builder = Callable[..., Any]


def builder_of(prefix: str, node: Settings) -> Builder:
    """What `_target_` of the settings `prefix` names, which raises SettingError for settings that it does not take."""
    target = node[TARGET]
    try:
        return checked(import_builder(target), prefix, target)
    except ValueError as error:
        raise SettingError(f"{prefix}.{TARGET}={target}: {error}.") from None


def figure_of(name: str, node: Settings) -> Callable[[Measurement], Figure] | None:
    """What draws a probe's measurement: our figure, or the function `figure` beside a probe from outside."""
    if name in NAMES:
        return partial(draw, name)
    module = node[TARGET].rpartition(".")[0]
    figure = getattr(sys.modules[module], "figure", None)
    drawn = figure and checked(figure, f"probe.{name}", f"{module}.figure")
    return drawn and (lambda measurement: drawn([("", [measurement])]))


def without(node: Settings, *keys: str) -> dict[str, Any]:
    """The settings as plain data without `_target_` and `keys`, which the runner itself acts on."""
    return {key: value for key, value in node.plain().items() if key not in (TARGET, *keys)}


def takes_argument(build: Builder, name: str) -> bool:
    """Whether a class or function can be called with an argument of that name."""
    parameters = inspect.signature(build).parameters
    return name in parameters or any(each.kind == each.VAR_KEYWORD for each in parameters.values())


@lru_cache  # so that what is built once of a builder and its settings can be kept
def checked(build: Builder, prefix: str, target: str) -> Builder:
    """`build`, with a SettingError for settings that it does not take, and for what code from outside raises in it."""

    @wraps(build)
    def call(*arguments: Any, **settings: Any) -> Any:
        try:
            inspect.signature(build).bind(*arguments, **settings)
        except TypeError as error:
            raise SettingError(f"{prefix}.{TARGET}={target}: it does not take its settings ({error}).") from None
        try:
            return build(*arguments, **settings)
        except (ValueError, OSError):
            raise
        except Exception as error:  # what a class from outside raises is told as a wrong option
            if target.startswith(f"{OWN_PACKAGE}."):
                raise
            raise SettingError(f"{prefix}.{TARGET}={target}: {describe_error(error)}.") from error

    return call
