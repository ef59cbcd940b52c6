"""Studies: a sweep whose axes, claims and names stand in conf/, run by `experiment=NAME` alone.

An experiment (or `sweep=NAME`) with `sweep.axes` is a study: its axes become overrides with several values, as -m takes
them. An axis that the command line sets itself gives way, so `experiment=NAME seed=0,1` is a smaller study, and with
one value for each axis a single run.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from runner.config.diagnose import EXPERIMENT, chosen_options
from runner.config.extensions import search_folders
from runner.config.grammar import all_parsed, is_swept, options_of, parsed
from runner.config.text import SettingError, override_key, same_value, to_override
from runner.config.trust import PLACES, check_words
from runner.files.atomic import write_atomically
from runner.files.readers import Unreadable, is_there, read_yaml_mapping

SWEEP = "sweep"  # the group of axes and claims, and the node they stand in
EXTREMES = {"largest": max, "smallest": min}
NOT_A_RUN = ("--cfg", "-c", "--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc")
FILE = "sweep.yaml"
NOT_OF_A_STUDY = ("name", "retry_failed", "mix")  # keys of its node
AND = " && "  # between the commands of a sweep that took several
NOT_OF_A_JOB = ("sweep.", "wandb.", "paths.")  # overrides that make no other job


def with_axes(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments, with the axes of the study that they choose, if they choose one.

    Raises SettingError where several studies are named at once, and for an axis that is set as `sweep.axes`.
    """
    if any(word.partition("=")[0] in (*NOT_A_RUN, "resume") for word in arguments):
        return list(arguments)
    folders = search_folders(arguments)
    given = {override.key_or_group: override for override in all_parsed(arguments)}
    for key, override in given.items():
        if f"{key}.".startswith(f"{SWEEP}.axes."):
            axis = key.removeprefix(f"{SWEEP}.axes").lstrip(".") or "KEY"
            raise SettingError(f"{override.input_line}: an axis is changed by its own key, as in {axis}=VALUE,VALUE.")
    axes: dict[str, str] = {}
    for group in (EXPERIMENT, SWEEP):
        names = [str(name) for name in options_of(given[group])] if group in given else []
        found = [_axes(group, name, folders) for name in names]
        if any(found) and len(names) > 1:
            raise SettingError(f"{given[group].input_line}: a study is a sweep of its own; name one at a time.")
        axes |= found[0] if found else {}
    added = [f"{key}={values}" for key, values in axes.items() if key not in given]
    check_words(added, f"{SWEEP}.axes")
    for word in added:
        if override_key(word) in PLACES:
            raise SettingError(f"{SWEEP}.axes: it holds {word}. A file may not; add {word} to the command line.")
    words = [word for word in arguments if word not in ("-m", "--multirun")]
    if axes and any(is_swept(word) for word in [*words, *added]):
        return ["-m", *words, *added]
    return [*arguments, *added]


def _axes(group: str, name: str, folders: Sequence[Path]) -> dict[str, str]:
    """The axes of an option of the group, in its file or that of the sweep it chooses, as the grammar writes them."""
    file = next((path for folder in folders if os.path.isfile(path := folder / group / f"{name}.yaml")), None)
    if file is None:
        return {}  # told when Hydra composes
    axes = OmegaConf.select(OmegaConf.load(file), "axes" if group == SWEEP else f"{SWEEP}.axes") or {}
    wrong = {"": axes}
    if isinstance(axes, Mapping | DictConfig):
        wrong = {f".{key}": values for key, values in axes.items() if parsed(f"{key}={values}") is None}
    for key, values in wrong.items():
        form = 'write values as -m takes them, as in {norm: "agc,none"}'
        raise SettingError(f"{file}: {SWEEP}.axes{key}={to_override(values)}: {form}.")
    if group == EXPERIMENT:
        for sweep in chosen_options([f"{EXPERIMENT}={name}"], folders).get(SWEEP, ()):
            axes = {**_axes(SWEEP, sweep, folders), **axes}
    return {str(key): str(values) for key, values in axes.items()}


def study_of(node: DictConfig, jobs: Sequence[Sequence[str]], probes: Collection[str] = ()) -> dict[str, Any]:
    """What a sweep's node says of the sweep of these jobs, which have these `probes`, with its claims about them.

    The two sizes of a study share their claims, but not every value of their axes. So a claim may say `largest` or
    `smallest` for a number of an axis, and list values of which the jobs have but some.

    Raises a SettingError for claims and measures that can never be borne out.
    """
    from runner.claims.claim import check_claims, parse_claim
    from runner.results.measures import check_measure

    study = {key: value for key, value in OmegaConf.to_container(node).items() if key not in NOT_OF_A_STUDY}
    values = _values(jobs)
    axes = dict(values)
    for key, swept in study.pop("axes").items():  # an axis that the command line cut short may still be spoken of
        [override] = all_parsed([f"{key}={swept}"])
        axes[key] = list(dict.fromkeys([*axes.get(key, ()), *map(to_override, _each(override))]))
    for number, claim in enumerate(study["claims"], start=1):
        try:
            parse_claim(claim, number, probes)
        except ValueError as error:
            raise SettingError(f"sweep: {error}") from None
        for side in {"plus", "minus"} & claim.keys():
            selectors = claim[side]
            claim[side] = (
                [_selected(selector, values, axes) for selector in selectors]
                if isinstance(selectors, list)
                else _selected(selectors, values, axes)
            )
    try:
        for name in study["measures"]:
            check_measure(name, probes)
        check_claims(study["claims"], axes, probes)
    except ValueError as error:
        raise SettingError(f"sweep: {error}") from None
    return {**study, "axes": {key: column for key, column in values.items() if len(column) > 1}}


def as_recorded(overrides: Sequence[str]) -> list[str]:
    """The overrides of a job as sweep.yaml has them."""
    return [word for word in overrides if not word.startswith(NOT_OF_A_JOB)]


def read_jobs(folder: Path) -> dict[str, list[str]]:
    """The jobs that `write_sweep` has recorded in a sweep's folder: their overrides by name; none without a record."""
    try:
        return _record(folder).get("jobs") or {}
    except Unreadable:  # told when the sweep writes its own
        return {}


def write_sweep(
    folder: Path,
    node: DictConfig,
    jobs: Mapping[str, Sequence[str]],
    command: Sequence[str],
    probes: Collection[str] = (),
) -> None:
    """`sweep.yaml`, for reports: what was typed, the jobs, what varies between them, what the study says of itself.

    `jobs` are overrides by name; jobs that were recorded before stay, and so does the command where this one does
    not cover them.
    """
    record = _put_aside(folder)
    before, earlier = record.get("jobs") or {}, record.get("command")
    jobs = {name: as_recorded(words) for name, words in jobs.items()}
    typed = f"python -m runner {shlex.join(command)}"
    if earlier and jobs.keys() < before.keys():
        typed = earlier
    elif earlier and before.keys() - jobs.keys() and typed not in earlier.split(AND):
        typed = f"{earlier}{AND}{typed}"
    jobs = {**before, **jobs}
    study = study_of(node, list(jobs.values()), probes)
    study["decide"] = bool(study.get("decide") or record.get("decide"))  # looks that were taken stay taken
    if before:
        study["axes"] = {key: _in_order(values) for key, values in study["axes"].items()}
    write_atomically(
        folder / FILE, yaml.safe_dump({"command": typed, **study, "jobs": jobs}, sort_keys=False, width=100)
    )


def _record(folder: Path) -> dict[str, Any]:
    """What sweep.yaml says; raises Unreadable if it is not what a sweep writes."""
    file = folder / FILE
    record = read_yaml_mapping(file) if is_there(file) else {}
    jobs, command = record.get("jobs") or {}, record.get("command")
    lists = jobs.values() if isinstance(jobs, dict) else [None]
    if not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in lists):
        raise Unreadable(file, "its jobs are not lists of overrides")
    if not isinstance(command, str | None):
        raise Unreadable(file, "its command is no text")
    return record


def _put_aside(folder: Path) -> dict[str, Any]:
    """The record of a sweep; one that cannot be used is kept under another name, and told, and a new one begun."""
    try:
        return _record(folder)
    except Unreadable as error:
        aside = folder / f"{Path(FILE).stem}.damaged.yaml"
        os.replace(folder / FILE, aside)
        print(f"{error}. It is now {aside.name}; the sweep writes a new one.", file=sys.stderr, flush=True)
        return {}


def _in_order(values: list[str]) -> list[str]:
    """Numbers by size; anything else as it is."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return values


def _selected(selector: Mapping[str, Any], *axes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A claim's selector with `largest` and `smallest` as numbers, and of listed values those that there are.

    That is on the first of the axes, the jobs'; where these have none of them, on the next.
    """
    found = dict(selector)
    for key, wanted in selector.items():
        swept = axes[0].get(key, ())
        if isinstance(wanted, str) and wanted in EXTREMES and swept:
            try:
                found[key] = EXTREMES[wanted](swept, key=float)
            except ValueError:
                raise SettingError(f"sweep.claims: {key}={wanted}: not all its values are numbers; name one.") from None
        elif isinstance(wanted, list):
            kept = ([value for value in wanted if _is_among(value, values.get(key, ()))] for values in axes)
            found[key] = next(filter(None, kept), wanted)
    return found


def _is_among(value: object, values: Sequence[str]) -> bool:
    return any(same_value(to_override(value), each) for each in values)


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
