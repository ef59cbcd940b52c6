"""Code of the user's own: what the command line allows by name, and what nobody but the command line may set.

Settings also come from files: options from a search path, the overrides of a run's folder, the axes of a study. Such
a file may have been written by anybody. So it neither allows a package (`paths.allowed_packages`, `paths.extensions`)
nor sets anything of Hydra, which instantiates classes, starts jobs and sets the environment: these must be typed.
A file that is not in `conf` may not choose where things go either (`PLACES`).

What a run's folder, which may come from a stranger too, says of these is passed over. And no file reads the
environment by an interpolation, `${oc.env:NAME}`: what a run records is resolved.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.grammar import all_parsed, options_of, parsed
from runner.config.options import CONF
from runner.config.text import SettingError, override_key, shortened, to_override
from runner.files.readers import read_yaml_mapping

EXTENSIONS, PACKAGES = "paths.extensions", "paths.allowed_packages"
FORMER = "paths.methods"  # what `paths.extensions` was called when it held methods alone
PLACES = ("paths.outputs", "train.device", "train.num_devices", "wandb.mode", "wandb.project", "wandb.entity")
MISSING = object()
RESOLVER = re.compile(r"\$\{\s*([\w.]*\s*:|hydra\b|\$)")  # ${oc.env:HOME}, ${hydra.runtime.cwd}, one in another's name


@dataclass(frozen=True)
class Allowed:
    """The packages, and the folder with options and modules of their own, that the user allows."""

    packages: tuple[str, ...] = ()
    extensions: Path | None = None

    @classmethod
    def typed(cls, words: Sequence[str]) -> Allowed:
        """What `words`, the command line as it was typed, allow."""
        packages, folder = [], None
        for override in all_parsed(words):
            options = [str(option) for option in options_of(override) if option is not None]
            if override.key_or_group == PACKAGES:
                packages += options
            elif override.key_or_group == EXTENSIONS:
                folder = Path(options[-1]).resolve() if options else None
        return cls(tuple(dict.fromkeys(packages)), folder)

    def put_in(self, config: Any, folder: object) -> Any:
        """The configuration of a run's folder with what is allowed in the place of its own paths.

        Raises a SettingError if its options need more.
        """
        extensions, packages = config.paths.extensions, list(config.paths.allowed_packages)
        if {*packages} - {*self.packages} or (extensions and not self.extensions):
            words = " ".join(words_again(config.paths))
            raise SettingError(
                f"{folder}: this run uses {words}, and a folder cannot allow code of its own. If you trust it: "
                f"load_run(FOLDER, extensions={extensions!r}, allowed_packages={packages})."
            )
        config.paths.extensions = self.extensions and str(self.extensions)
        config.paths.allowed_packages = list(self.packages)
        return config

    def check(self, extensions: object, packages: object, *, source: str = "") -> None:
        """Raise a SettingError if a configuration's paths.extensions and paths.allowed_packages are more than allowed.

        `source` is where they stand, for the message.
        """
        wanted = list(packages) if isinstance(packages, Iterable) and not isinstance(packages, str) else [packages]
        missing = [name for name in wanted if name is not None and name not in self.packages]
        words = [f"{PACKAGES}={to_override([*self.packages, *missing])}"] if missing else []
        if extensions is not None and (self.extensions is None or Path(str(extensions)).resolve() != self.extensions):
            words.append(f"{EXTENSIONS}={extensions}")
        if words:
            raise SettingError(_must_be_typed(words, source))


def words_again(paths: Any) -> list[str]:
    """The words that must be typed once more to go on with a run that has these `paths`."""
    words = [f"{EXTENSIONS}={paths.extensions}"] if paths.extensions else []
    return [*words, *([f"{PACKAGES}={to_override(list(paths.allowed_packages))}"] if paths.allowed_packages else [])]


def as_words(content: object, source: str) -> list[str]:
    """The overrides that a file (`source`) holds. Raises a SettingError if its content is something else."""
    if not isinstance(content, list) or not all(isinstance(word, str) for word in content):
        raise SettingError(f"{source}: it must be a list of overrides, KEY=VALUE.")
    return content


def with_present_names(words: Sequence[str]) -> list[str]:
    """Overrides that a run recorded, with the present name of a setting that had another one.

    >>> from runner.config.trust import with_present_names
    >>> with_present_names(["norm=own", "paths.methods=folder"])
    ['norm=own', 'paths.extensions=folder']
    """
    return [f"{EXTENSIONS}{word.removeprefix(FORMER)}" if override_key(word) == FORMER else word for word in words]


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
        if key in (EXTENSIONS, PACKAGES, "paths"):
            allowing.append(f"{key}={to_override(override.value())}")  # without the quotes of add_search_path
    if allowing:
        raise SettingError(_must_be_typed(sorted(allowing, reverse=True), source))


def check_places(settings: Mapping, file: object) -> None:
    """Raise a SettingError if the settings of a file from elsewhere choose where things go.

    A copy of conf/config.yaml may say what this one says.
    """
    defaults = read_yaml_mapping(CONF / "config.yaml")
    for place in (*PLACES, EXTENSIONS, PACKAGES):
        key, value = place, settings
        for number, part in enumerate(place.split(".")):
            if not isinstance(value, Mapping):  # an interpolation of a whole node, say
                key = ".".join(place.split(".")[:number])
                break
            value = value.get(part, MISSING)
            if value is MISSING:
                break
        if value is not MISSING and (key != place or value != _value(defaults, place)):
            word = f"{key}={to_override(value)}"
            remedy = f"if you trust it, add {word} to the command line"
            raise SettingError(f"{file}: it sets {word}. A file from elsewhere may not; {remedy}.")


def leaves(node: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Every value in plain data by its key, as in `launcher.n_jobs`."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, list) and node:
        for number, value in enumerate(node):
            yield from leaves(value, f"{place}.{number}")
    else:
        yield place, node


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
