"""The classes and functions that a configuration names by `_target_`, and which of them may be imported.

A name may walk: `torch.os.system` begins with torch. So a name is never looked up step by step. What stands before
the last dot must be a module, which is imported, and the last part what is defined in the same package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runner.config.options import METHOD_GROUPS, TARGET
from runner.config.text import SettingError

OWN_PACKAGE = "runner"
METHOD_PACKAGE = "runner.methods"
OWN_PACKAGES = {  # what builds the options of a group, if it is ours; that of a method is a node of its own
    "model": "runner.models",
    "dataset": "runner.data",
    "optimizer": "runner.optim",
    "schedule": "runner.optim",
    "probe": "runner.probes",
}


def targets_in(settings: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Every `_target_` in settings (plain data), at any depth, with its place: `agc._target_`."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            where = f"{place}.{key}" if place else str(key)
            if key == TARGET:
                yield where, str(value)
            yield from targets_in(value, where)
    elif isinstance(settings, (list, tuple)):
        for number, value in enumerate(settings):
            yield from targets_in(value, f"{place}.{number}")


def check_targets(settings: Mapping, packages: Sequence[str]) -> None:
    """Raise a SettingError for a `_target_` in settings that is neither ours nor below one of `packages`."""
    for place, target in targets_in(settings):
        node = place.partition(".")[0]
        if node not in METHOD_GROUPS:  # these names are refused, with another remedy, as no settings
            own = OWN_PACKAGES.get(node, METHOD_PACKAGE)
            noun = node if node in OWN_PACKAGES else "method"
            article = "an" if noun == "optimizer" else "a"
            check_target(place, target, (own, *packages), what=f"{article} {noun}")


def check_target(place: str, target: str, packages: Sequence[str], *, what: str) -> None:
    """Raise a SettingError unless `target` names something in a module below one of `packages`; our own come first."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target):
        raise SettingError(f"{place}={target}: it must name a module and a class in it, as in my_method.MyMethod.")
    if package_of(target, packages) is None:
        first = target.partition(".")[0]
        raise SettingError(
            f"{place}={target}: {what} must come from {packages[0]} or from a package that you allow on the command "
            f"line; add paths.allowed_packages=[{first}]."
        )


def package_of(name: str, packages: Sequence[str]) -> str | None:
    """The one of `packages` that the full name of a class lies below."""
    return next((package for package in packages if name.startswith(f"{package}.")), None)


def check_defined(found: Any, target: str) -> None:
    """Raise a ValueError if what was found is defined in another package than the one that its name leads through."""
    module, name = getattr(found, "__module__", None) or "", getattr(found, "__qualname__", type(found).__qualname__)
    if module.partition(".")[0] != target.partition(".")[0]:
        raise ValueError(f"this is {module}.{name}, a class of another package")
