"""Code of the user's own: what the command line allows by name, and what nobody but the command line may set.

Settings also come from files: options from a search path, the overrides of a run's folder, the axes of a study. Such
a file may have been written by anybody. So it neither allows a package (`paths.allowed_packages`, `paths.methods`) nor
sets anything of Hydra, which instantiates classes, starts jobs and sets the environment: these must be typed.

Nor does a run's folder, which may come from a stranger too, choose where things go (`PLACES`): what it says of these is
passed over. And no file reads the environment by an interpolation, `${oc.env:NAME}`: what a run records is resolved.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.grammar import all_parsed, options_of, parsed
from runner.config.options import CONF
from runner.config.text import SettingError, override_key, shortened, to_override
from runner.files.readers import read_yaml_mapping

METHODS, PACKAGES = "paths.methods", "paths.allowed_packages"
PLACES = ("paths.outputs", "train.device", "train.num_devices", "wandb.mode", "wandb.project", "wandb.entity")
RESOLVER = re.compile(r"\$\{\s*([\w.]*\s*:|hydra\b|\$)")  # ${oc.env:HOME}, ${hydra.runtime.cwd}, one in another's name


@dataclass(frozen=True)
class Allowed:
    """The packages, and the folder with methods, that the user allows."""

    packages: tuple[str, ...] = ()
    methods: Path | None = None

    @classmethod
    def typed(cls, words: Sequence[str]) -> Allowed:
        """What `words`, the command line as it was typed, allow."""
        packages, methods = [], None
        for override in all_parsed(words):
            options = [str(option) for option in options_of(override) if option is not None]
            if override.key_or_group == PACKAGES:
                packages += options
            elif override.key_or_group == METHODS:
                methods = Path(options[-1]).resolve() if options else None
        return cls(tuple(dict.fromkeys(packages)), methods)

    def put_in(self, config: Any, folder: object) -> Any:
        """The configuration of a run's folder with what is allowed in the place of its own paths.

        Raises a SettingError if its methods need more.
        """
        methods, packages = config.paths.methods, list(config.paths.allowed_packages)
        if {*packages} - {*self.packages} or (methods and not self.methods):
            words = " ".join(words_again(config.paths))
            raise SettingError(
                f"{folder}: this run uses {words}, and a folder cannot allow code of its own. If you trust it: "
                f"load_run(FOLDER, methods={methods!r}, allowed_packages={packages})."
            )
        config.paths.methods = self.methods and str(self.methods)
        config.paths.allowed_packages = list(self.packages)
        return config

    def check(self, methods: object, packages: object, *, source: str = "") -> None:
        """Raise a SettingError if a configuration's paths.methods and paths.allowed_packages are more than allowed.

        `source` is where they stand, for the message.
        """
        wanted = list(packages) if isinstance(packages, Iterable) and not isinstance(packages, str) else [packages]
        missing = [name for name in wanted if name is not None and name not in self.packages]
        words = [f"{PACKAGES}={to_override([*self.packages, *missing])}"] if missing else []
        if methods is not None and (self.methods is None or Path(str(methods)).resolve() != self.methods):
            words.append(f"{METHODS}={methods}")
        if words:
            raise SettingError(_must_be_typed(words, source))


def words_again(paths: Any) -> list[str]:
    """The words that must be typed once more to go on with a run that has these `paths`."""
    words = [f"{METHODS}={paths.methods}"] if paths.methods else []
    return [*words, *([f"{PACKAGES}={to_override(list(paths.allowed_packages))}"] if paths.allowed_packages else [])]


def as_words(content: object, source: str) -> list[str]:
    """The overrides that a file (`source`) holds. Raises a SettingError if its content is something else."""
    if not isinstance(content, list) or not all(isinstance(word, str) for word in content):
        raise SettingError(f"{source}: it must be a list of overrides, KEY=VALUE.")
    return content


def check_words(words: Sequence[str], source: str) -> None:
    """Raise a SettingError if overrides from a file (`source`) do what the command line alone may do."""
    allowing = []
    for word in words:
        refuse_resolvers(word, source)
        override = parsed(word)
        key = "" if override is None else override.key_or_group
        names = (key, (override and override.package) or "")
        if word.startswith("-") or any(name.partition(".")[0].partition("/")[0] == "hydra" for name in names):
            raise SettingError(
                f"{source}: it holds {word}. A file may not set what is Hydra's; type it yourself if you trust it."
            )
        if key in (METHODS, PACKAGES, "paths"):
            allowing.append(f"{key}={to_override(override.value())}")  # without the quotes of add_search_path
    if allowing:
        raise SettingError(_must_be_typed(sorted(allowing, reverse=True), source))


def without_places(words: Sequence[str]) -> list[str]:
    """Overrides of a run's folder without those that choose where things go.

    >>> from runner.config.trust import without_places
    >>> without_places(["norm=agc", "++train.device=cuda", "wandb.mode=online"])
    ['norm=agc']
    """
    return [word for word in words if override_key(word) not in PLACES]


def places_again(config: Mapping) -> list[str]:
    """The words that must be typed once more for things to go where they went in a run with these settings."""
    defaults = read_yaml_mapping(CONF / "config.yaml")
    now = {key: _value(config, key) for key in PLACES}
    return [f"{key}={to_override(value)}" for key, value in now.items() if value != _value(defaults, key)]


def refuse_resolvers(value: object, source: object) -> None:
    """Raise a SettingError if a text of a file (`source`), or one in its plain data, calls a resolver of OmegaConf's.

    One of these reads the environment.
    """
    if isinstance(value, Mapping):
        for part in (*value.keys(), *value.values()):
            refuse_resolvers(part, source)
    elif isinstance(value, (list, tuple)):
        for part in value:
            refuse_resolvers(part, source)
    elif isinstance(value, str) and RESOLVER.search(value):
        raise SettingError(
            f"{source}: it holds {shortened(value)}. A file may not read the environment; type the value yourself."
        )


def resolved(words: Sequence[str], config: Any) -> list[str]:
    """Overrides as they are recorded: with the value that `config` has in the place of what a resolver gave."""
    return [f"{_key(word)}={_quoted(_value(config, _key(word)))}" if RESOLVER.search(word) else word for word in words]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _value(config: Any, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config


def _quoted(value: object) -> str:
    text = to_override(value)
    if isinstance(value, str) and not re.fullmatch(r"[\w./@%+-]+", text):
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return text


def _must_be_typed(words: Sequence[str], source: str) -> str:
    typed = " ".join(shlex.quote(word) for word in words)
    return (
        f"{f'{source}: ' if source else ''}{words[0]}: a file cannot allow code of its own; if you trust it, add "
        f"{typed} to the command line."
    )
