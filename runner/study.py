"""Studies: a sweep whose axes, claims and names stand in conf/, run by `experiment=NAME` alone.

An experiment (or `sweep=NAME`) with `sweep.axes` is a study: its axes become overrides with several values, as -m takes
them. An axis that the command line sets itself gives way, so `experiment=NAME seed=0,1` is a smaller study, and with
one value for each axis a single run.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from runner.config import CONF
from runner.files import write_atomically
from runner.grammar import all_parsed, is_swept, options_of
from runner.method_folder import search_folders
from runner.remedies import CASE, EXPERIMENT, chosen_options
from runner.settings import SettingError, shown

SWEEP = "sweep"  # the group of axes and claims, and the node they stand in
NOT_A_RUN = ("--cfg", "-c", "--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc")
FILE = "sweep.yaml"


def with_axes(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments, with the axes of the study that they choose, if they choose one.

    Raises SettingError where several studies are named at once.
    """
    if any(word.partition("=")[0] in (*NOT_A_RUN, "resume") for word in arguments):
        return list(arguments)
    folders = search_folders(arguments)
    given = {override.key_or_group: override for override in all_parsed(arguments)}
    axes: dict[str, str] = {}
    for group in (EXPERIMENT, SWEEP):
        names = [str(name) for name in options_of(given[group])] if group in given else []
        found = [_axes(group, name, folders) for name in names]
        if any(found) and len(names) > 1:
            raise SettingError(f"{given[group].input_line}: a study is a sweep of its own; name one at a time.")
        axes |= found[0] if found else {}
    added = [f"{key}={values}" for key, values in axes.items() if key not in given]
    words = [word for word in arguments if word not in ("-m", "--multirun")]
    if axes and any(is_swept(word) for word in [*words, *added]):
        return ["-m", *words, *added]
    return [*arguments, *added]


def _axes(group: str, name: str, folders: Sequence[Path]) -> dict[str, str]:
    """The axes of an option of the group, in its file or that of the sweep it chooses, as the grammar writes them."""
    file = next((path for folder in folders if (path := folder / group / f"{name}.yaml").is_file()), None)
    if file is None:
        return {}  # told when Hydra composes
    axes = OmegaConf.select(OmegaConf.load(file), "axes" if group == SWEEP else f"{SWEEP}.axes") or {}
    if group == EXPERIMENT:
        for sweep in chosen_options([f"{EXPERIMENT}={name}"], folders).get(SWEEP, ()):
            axes = {**_axes(SWEEP, sweep, folders), **axes}
    return {str(key): str(values) for key, values in axes.items()}


def check_study(study: DictConfig, jobs: Sequence[Sequence[str]]) -> None:
    """Raise a SettingError for claims, measures or names that the sweep of these jobs can never bear out."""
    from runner.report.claims import check_claims
    from runner.report.measures import check_measure

    settings = OmegaConf.to_container(study)
    axes = _values(jobs)
    for key, values in settings["axes"].items():  # an axis that the command line cut short may still be spoken of
        [override] = all_parsed([f"{key}={values}"])
        axes[key] = list(dict.fromkeys([*axes.get(key, ()), *map(shown, _each(override))]))
    axes["case"] = axes.get("case", []) + _options(CASE)  # both sizes of a study share its claims, not its cases
    try:
        for name in settings["measures"]:
            check_measure(name)
        check_claims(settings["claims"], axes)
    except ValueError as error:
        raise SettingError(f"sweep: {error}") from None


def write_sweep(folder: Path, study: DictConfig, jobs: Sequence[Sequence[str]], command: Sequence[str]) -> None:
    """`sweep.yaml`: what was typed, what varies between the jobs, and what the study says of itself; for reports."""
    about = {key: value for key, value in OmegaConf.to_container(study).items() if key not in ("name", "axes")}
    axes = {key: column for key, column in _values(jobs).items() if len(column) > 1}
    folder.mkdir(parents=True, exist_ok=True)
    content = {"command": f"python -m runner {shlex.join(command)}", "axes": axes, **about}
    write_atomically(folder / FILE, yaml.safe_dump(content, sort_keys=False, width=100))


def _options(group: str) -> list[str]:
    return sorted(path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).rglob("*.yaml"))


def _values(jobs: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Every key that the jobs override, with its values in order of appearance."""
    values: dict[str, list[str]] = {}
    for key, _, value in (word.partition("=") for job in jobs for word in job):
        column = values.setdefault(key.lstrip("+"), [])
        if value not in column:
            column.append(value)
    return values


def _each(override: Override) -> list[object]:
    """The values of an override, one or several."""
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
