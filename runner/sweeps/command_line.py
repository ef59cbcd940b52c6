"""The command line, prepared in one place: what was typed, and the words that Hydra gets for it."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from runner.config.arguments import hydra_words
from runner.config.diagnose import CASE, EXPERIMENT
from runner.config.extensions import add_search_path, search_folders
from runner.config.grammar import is_swept, parsed
from runner.config.options import METHOD_GROUPS, SINGLE_GROUPS
from runner.config.overrides import prepare_overrides
from runner.distributed.environment import with_num_devices
from runner.experiment.earlier_overrides import earlier_overrides
from runner.sweeps.planned_sweep import NAME, key_of, sweep_name
from runner.sweeps.study import with_axes

PLAN = "plan"  # the word that asks what would run, and runs nothing
MULTIRUN = ("-m", "--multirun")


@dataclass(frozen=True)
class CommandLine:
    """`typed` is the command line without the word `plan`; `given` the same as Hydra's grammar takes it.

    `words` are what Hydra composes: flags first, with the overrides of a resumed run, the axes of a study, a sweep's
    name and the search path of methods from outside.
    """

    typed: tuple[str, ...]
    given: tuple[str, ...]
    words: tuple[str, ...]
    is_plan: bool

    @classmethod
    def read(cls, arguments: Sequence[str]) -> CommandLine:
        """The command line of `sys.argv[1:]`. Raises SettingError, and YAMLError for a study that cannot be read."""
        typed = [word for word in arguments if word != PLAN]
        given = with_num_devices(hydra_words(typed))
        words = prepare_overrides(with_axes(add_search_path(earlier_overrides(given))))
        return cls(tuple(typed), tuple(given), tuple(name_sweep(words)), PLAN in arguments)


def name_sweep(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments with a `sweep.name` for a sweep that has none: the study, or the swept keys, and
    the time.

    The flag -m goes to the front: Hydra takes no override behind a flag that stands between overrides.
    """
    overrides = [word for word in arguments if word not in MULTIRUN]
    if len(overrides) == len(arguments):
        return list(arguments)
    if sweep_name(overrides) is not None:
        return ["-m", *_put_off(overrides)]
    overrides = [word for word in overrides if key_of(word) != NAME]
    studies = [word.partition("=")[2] for word in overrides if word.startswith(f"{EXPERIMENT}=") and not is_swept(word)]
    swept = [parsed(word).key_or_group.rpartition(".")[2] for word in overrides if is_swept(word)]
    name = "-".join([*(study.replace("/", "-") for study in studies or swept[:4]), time.strftime("%Y%m%d-%H%M%S")])
    return ["-m", *_put_off(overrides), f"{NAME}={name}"]


def _put_off(overrides: Sequence[str]) -> list[str]:
    """`overrides`, where a setting of an option or a method whose group is swept becomes a sweep of one value.

    Hydra composes a sweep once without what is swept, so `agc.clip=0.02` under `norm=[agc],[agc,none]` would find no
    node agc there.
    """
    records = any(is_swept(word, group) for word in overrides for group in (EXPERIMENT, CASE))
    swept = [group for group in METHOD_GROUPS if records or any(is_swept(word, group) for word in overrides)]
    folders = [folder / group for folder in search_folders(overrides) for group in swept]
    methods = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    groups = {group for group in SINGLE_GROUPS if records or any(is_swept(word, group) for word in overrides)}
    return [
        f"{key}=choice({value})" if _belongs(key, methods, groups) and not is_swept(word, key) else word
        for word in overrides
        for key, _, value in [word.partition("=")]
    ]


def _belongs(key: str, methods: Collection[str], groups: Collection[str]) -> bool:
    """Whether `key` is a setting of one of the methods, or of an option of one of the groups."""
    node, _, rest = key.partition(".")
    return node in methods or (bool(rest) and node in groups)
