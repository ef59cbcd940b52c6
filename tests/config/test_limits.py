"""The ranges of settings."""

import importlib
import inspect
import math
import re

import pytest
import yaml

from runner import methods
from runner.config.limits import LIMITS, check, own_ranges
from runner.config.options import CONF, METHOD_GROUPS, NOT_SETTINGS
from runner.config.ranges import Each, OneOf, Range, Rising
from runner.config.text import did_you_mean


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        (Range(at_least=0, below=1), [0, 0.0, 0.999], [-1e-9, 1, 1.0, math.nan, "0.5", True, None]),
        (Range(above=0, at_most=1), [1e-9, 1], [0, 1.1, -1]),
        (Range(above=0), [1e9, 1], [0, -1, math.inf * 0]),
        (Range(), [-1e9, 0, 1e9], [math.nan, "a"]),
    ],
)
def test_an_interval_holds_what_it_says(interval, inside, outside):
    assert all(value in interval for value in inside)
    assert not any(value in interval for value in outside)


@pytest.mark.parametrize("value", [16.5, 0, -3, True])
def test_a_count_is_a_whole_number_from_one(value):
    assert value not in LIMITS["train"]["epochs"]
    with pytest.raises(ValueError, match=r"^ghost_batch_size"):
        check("ghost_batchnorm", ghost_batch_size=value)


def numbers(node, values):
    """Every number among the defaults of a node, in lists too, by (node, key)."""
    for key, value in values.items():
        entries = value if isinstance(value, list) and value else [value]
        if all(isinstance(entry, (int, float)) and not isinstance(entry, bool) for entry in entries):
            yield node, key


def numeric_settings():
    """Every setting of conf/ whose default is a number, as (node, key)."""
    main = yaml.safe_load((CONF / "config.yaml").read_text())
    tree = {
        node: values for node, values in main.items() if isinstance(values, dict) and node not in ("hydra", "sweep")
    }
    tree[""] = {key: value for key, value in main.items() if not isinstance(value, dict)}
    found = {each for node, values in tree.items() for each in numbers(node, values)}
    for group in ("model", "optimizer", "schedule", "dataset"):
        for path in (CONF / group).glob("*.yaml"):
            found |= set(numbers(f"{group}.{path.stem}", yaml.safe_load(path.read_text())))
    for path in (CONF / "probe").glob("*.yaml"):
        for name, values in (yaml.safe_load(path.read_text()) or {}).items():
            found |= set(numbers(f"probe.{name}", values or {}))
    return found | {each for name, values in SETTINGS.items() for each in numbers(name, values)}


NOT_NUMBERS = {("paths", "allowed_packages"), ("probe.gradient_histogram", "layer"), ("probe.gradient_terms", "layers")}


def ranges_in(node):
    """The ranges of a node, of a method or of an option as in `dataset.random`."""
    group, _, option = node.partition(".")
    return own_ranges(option, group) if option else LIMITS.get(node) or own_ranges(node)


def test_every_number_of_the_command_line_has_a_largest_value():
    settings = numeric_settings()
    assert len(settings) > 60
    for node, key in sorted(settings - NOT_NUMBERS):
        limit = ranges_in(node).get(key)
        assert limit is not None, f"{node}.{key} has no range"
        for value in (10**400, math.inf, math.nan, -math.inf, 10**30):
            value = [value] if isinstance(limit, (Each, Rising)) else value
            assert value not in limit, f"{node}.{key}={value}"


@pytest.mark.parametrize(
    ("node", "key", "inside", "outside"),
    [
        ("", "probe_at", [0, 5], [0, -1]),
        ("probe.loss_landscape", "exponents", [-5.5, 0.5], [400.0]),
        ("dataset", "std", [0.2, 0.3], [0.2, 0.0]),
        ("wandb", "tags", ["a"], ["a" * 65]),
        ("wandb", "project", "größe", "a/b"),
        ("train", "max_time", "11h", "9" * 400 + "h"),
    ],
)
def test_entries_and_texts_have_limits(node, key, inside, outside):
    check(node, ranges_in(node), **{key: inside})
    with pytest.raises(ValueError, match=re.escape(f"{node}.{key}".lstrip("."))):
        check(node, ranges_in(node), **{key: outside})


def test_the_message_names_key_value_and_remedy():
    with pytest.raises(ValueError, match=r"^train\.precision=bf61: it must be one of .*\. Did you mean bf16\?$"):
        check("train", LIMITS["train"], precision="bf61")


def test_without_ranges_the_message_names_an_argument():
    with pytest.raises(ValueError, match=r"^drop_rate=1\.5: it must lie in \[0, 1\)\.$"):
        check("stochastic_depth", drop_rate=1.5)
    with pytest.raises(ValueError, match=r"^precision=bf61: .* Did you mean bf16\?$"):
        check("train", precision="bf61")


def test_unset_and_unlisted_settings_pass():
    check("train", max_steps=None, no_such_setting=-1)
    check("no_such_node", anything=1)


# the functions and layers of the library, by the option whose settings they take
FUNCTIONS = {
    "agc": [methods.adaptive_clip_grad_],
    "batch_channel_norm": [methods.apply_batch_channel_norm, methods.BatchChannelNorm2d],
    "dropout": [methods.apply_dropout],
    "ghost_batchnorm": [methods.apply_ghost_batchnorm, methods.GhostBatchNorm2d],
    "groupnorm": [methods.apply_group_norm],
    "none": [methods.remove_batchnorm],
    "stochastic_depth": [methods.apply_stochastic_depth],
    "weight_standardization": [methods.apply_weight_standardization, methods.StdConv2d],
}
OPTIONS = {path.stem: path for group in METHOD_GROUPS for path in sorted((CONF / group).glob("*.yaml"))}
SETTINGS = {name: yaml.safe_load(path.read_text())[name] for name, path in OPTIONS.items()}
for settings in SETTINGS.values():
    for key in NOT_SETTINGS:
        settings.pop(key, None)


def defaults(function):
    parameters = inspect.signature(function).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}


def comparable(settings):
    """An empty list, tuple or mapping as None: they say the same."""
    return {key: value if value or isinstance(value, (bool, int, float)) else None for key, value in settings.items()}


@pytest.mark.parametrize("node", SETTINGS)
def test_the_defaults_of_yaml_and_of_the_class_agree_and_lie_in_their_ranges(node):
    settings = dict(SETTINGS[node])
    module, _, name = settings.pop("_target_").rpartition(".")
    own = defaults(getattr(importlib.import_module(module), name))
    assert comparable(own) == comparable(settings)
    check(node, **settings)
    check(node, **own)


@pytest.mark.parametrize("node", SETTINGS)
def test_every_number_and_word_of_a_method_has_a_range_and_every_range_a_setting(node):
    limited = own_ranges(node).keys()
    kinds = {key: type(value) for key, value in SETTINGS[node].items() if key != "_target_"}
    assert limited == {key for key, kind in kinds.items() if kind in (int, float, str, type(None))}


@pytest.mark.parametrize(("node", "function"), [(node, f) for node, many in FUNCTIONS.items() for f in many])
def test_the_defaults_of_functions_and_layers_are_those_of_yaml(node, function):
    own = {key: value for key, value in defaults(function).items() if key in SETTINGS[node]}
    assert own, f"no setting of {node} is a parameter of {function.__name__}"
    assert comparable(own) == comparable({key: SETTINGS[node][key] for key in own})
    check(node, **own)


def test_no_function_with_settings_is_missing_above():
    functions = [getattr(methods, name) for name in methods.__all__ if inspect.isfunction(getattr(methods, name))]
    with_defaults = {function.__name__ for function in functions if defaults(function)}
    assert with_defaults == {f.__name__ for many in FUNCTIONS.values() for f in many if inspect.isfunction(f)}


def test_did_you_mean():
    assert did_you_mean("drop_rat", ["drop_rate", "rescale"]) == "Did you mean drop_rate?"
    assert did_you_mean("zzz", ["drop_rate"]) == ""
    assert "x" in OneOf(("x",))
