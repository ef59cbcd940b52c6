"""Settings one by one: given a type, or refused in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, ConfigTypeError, OmegaConfBaseException, ValidationError

from runner.config.settings import Settings
from runner.config.text import SettingError, did_you_mean, first_line, to_override

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
A_LIST, A_MAPPING = "a list, as in [a,b]", "a mapping, as in {layer4: 0.02}"


def resolved(config: DictConfig) -> dict[str, Any]:
    """The settings as plain data, interpolations followed, without Hydra's own.

    Raises a SettingError for the first that leads nowhere.
    """
    keys = [key for key in config if key != "hydra"]
    try:
        settings = {str(key): _plain(config[key]) for key in keys}
    except (OmegaConfBaseException, RecursionError) as error:
        place, value, reason = _first_without_value(OmegaConf.masked_copy(config, keys), "") or (
            "the settings",
            "",
            error,
        )
        if value == "???":
            raise SettingError(f"{place}=???: this setting needs a value.") from None
        reason = first_line(reason)
        raise SettingError(no_value(f"{place}={value}", reason)) from None
    check_printable(settings)
    return settings


def _plain(value: Any) -> Any:
    if not isinstance(value, (DictConfig, ListConfig)):
        return value
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)


def no_value(word: str, reason: str) -> str:
    """That the override `word` has an interpolation that cannot be resolved."""
    return f"{word}: this leads to no value ({reason}). Give a value, or a setting by its full name: ${{train.epochs}}."


def _first_without_value(node: DictConfig | ListConfig, place: str) -> tuple[str, str, Exception | None] | None:
    """The key of the first value below `node` that is missing or cannot be resolved, the value, and why."""
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        where, raw = f"{place}.{key}".lstrip("."), node._get_node(key)
        if OmegaConf.is_missing(node, key):
            return where, "???", None
        try:
            value = node[key]
        except (OmegaConfBaseException, RecursionError) as error:
            return where, str(raw._value()), error
        is_nested = isinstance(value, (DictConfig, ListConfig)) and not OmegaConf.is_interpolation(node, key)
        if is_nested and (found := _first_without_value(value, where)):
            return found
    return None


def check_printable(settings: object, place: str = "") -> None:
    """Raise a SettingError for a text with control characters, which would command the terminal that shows it.

    Texts of a study may have several lines.
    """
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            check_printable(str(key), f"{place}.{key}".lstrip("."))
            check_printable(value, f"{place}.{key}".lstrip("."))
    elif isinstance(settings, list):
        for value in settings:
            check_printable(value, place)
    elif isinstance(settings, str):
        found = CONTROL_CHARACTERS.findall(settings)
        if {*found} - {*("\n\t" if place.startswith("sweep.") else "")}:
            raise SettingError(f"{place}={settings}: it has characters that control a terminal; take them out.")


def check_study(study: Mapping[str, Any]) -> None:
    """Raise a SettingError for a part of a study, plain data, that has another form than its report reads."""

    def refuse(key: str, value: object, form: str) -> None:
        raise SettingError(f"sweep.{key}={to_override(value)}: it must be {form}.")

    if not isinstance(study["axes"], Mapping):
        refuse("axes", study["axes"], 'a mapping of keys to values as -m takes them, as in {norm: "agc,none"}')
    names = study["names"]
    if not isinstance(names, Mapping) or not all(isinstance(called, Mapping) for called in names.values()):
        refuse("names", names, 'a mapping of axes to names of their values, as in {norm: {"[none]": no batch norm}}')
    claims = study["claims"]
    if not isinstance(claims, list) or not all(isinstance(claim, Mapping) for claim in claims):
        refuse("claims", claims, "a list of mappings, each with claim, measure, plus and holds")


def typed_node(prefix: str, kind: type, node: Any) -> Settings:
    """The settings of `node`, plain data, with the types of the dataclass `kind`; `prefix` is its place."""
    if not isinstance(node, dict):
        raise SettingError(f"{prefix}={node}: this is a group of settings, not a value; set {prefix}.KEY=VALUE.")
    known = [field.name for field in fields(kind)]
    for key in node:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"Settings: {', '.join(known)}."
            raise SettingError(f"{prefix}.{key}={node[key]}: there is no such setting. {hint}")
    typed, kinds = OmegaConf.structured(kind), get_type_hints(kind)
    for key in known:
        place = f"{prefix}.{key}".lstrip(".")
        if key not in node:
            raise SettingError(f"{place}: this setting is missing; it needs a value.")
        _assign(typed, key, node[key], kinds[key], place)
    return Settings(OmegaConf.to_container(typed))


def _assign(typed: DictConfig, key: str, value: Any, kind: Any, place: str) -> None:
    """Set a value of a typed node, or raise a SettingError that says which type it must have."""
    try:
        if bool in (kind, *get_args(kind)) and not isinstance(value, (bool, type(None))):
            raise ValidationError  # OmegaConf would take 3 for true
        if get_origin(kind) is Union and float in get_args(kind) and type(value) is int:
            value = float(value)  # in a union OmegaConf converts nothing
        if get_origin(kind) is list:
            _check_list(value, *get_args(kind))
        typed[key] = value
    except (ValidationError, ConfigTypeError, ConfigKeyError, OverflowError):
        raise SettingError(f"{place}={to_override(value)}: it must be {_type_name(kind)}.") from None


def _check_list(value: Any, kind: type) -> None:
    """Raise a ValidationError if an entry of a list is of another kind, which OmegaConf lets pass if it is nested."""
    entries = value if isinstance(value, list) else ()
    if any(isinstance(entry, (dict, list, bool)) and kind is not Any for entry in entries):
        raise ValidationError


def check_entries(key: str, value: Any, default: Any) -> None:
    """Raise a SettingError if an entry of a list or a mapping is not of the kind of the default's entries.

    Where the default is empty, a list is one of names, and a mapping gives each name one number, word or truth value.
    Entries of a default with several kinds are not checked.
    """
    if not isinstance(default, (list, dict)) or value == default:
        return
    values, models = (list(each.values()) if isinstance(each, dict) else each for each in (value, default))
    kinds = {type(entry) for entry in models} or ({str} if isinstance(default, list) else {str, bool, int, float})
    if models and len(kinds) > 1 and kinds != {int, float}:
        return
    kinds |= {int} if float in kinds else set()
    if isinstance(value, dict):
        fits = all(isinstance(name, str) and type(entry) in kinds for name, entry in value.items())
        kind = "a mapping that gives each name one value, as in {layer4: 0.02, layer3.0.conv1: 0.01}"
    else:
        fits = all(type(entry) in kinds for entry in values)
        kind = "a list of names, as in [a,b]; quote a name of digits: ['1']"
        if str not in kinds:
            kind = "a list of the kind of its default, " + to_override(default)
    if not fits:
        raise SettingError(f"{key}={to_override(value)}: it must be {kind}.")


def _type_name(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    options = [option for option in get_args(kind) if option is not type(None)]
    if get_origin(kind) is list and get_args(kind)[0] in (int, float):
        return "a list of whole numbers, as in [0,100]" if get_args(kind)[0] is int else "a list of numbers"
    if get_origin(kind) is list or kind is list:
        return A_LIST
    if kind is dict:
        return A_MAPPING
    if get_origin(kind) is Union:
        null = ", or null" if type(None) in get_args(kind) else ""
        return " or ".join(_type_name(option) for option in options) + null
    return names[kind]
