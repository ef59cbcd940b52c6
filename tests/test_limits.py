"""The ranges of settings."""

import math

import pytest

from runner import limits
from runner.limits import LIMITS, OneOf, Range, check, did_you_mean


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
    assert value not in limits.COUNT
    with pytest.raises(ValueError, match=r"ghost_batchnorm\.ghost_batch_size"):
        check("ghost_batchnorm", ghost_batch_size=value)


def test_the_message_names_key_value_and_remedy():
    with pytest.raises(ValueError, match=r"^stochastic_depth\.drop_rate=1\.5: it must lie in \[0, 1\)\.$"):
        check("stochastic_depth", drop_rate=1.5)
    with pytest.raises(ValueError, match=r"train\.precision=bf61: it must be one of .*\. Did you mean bf16\?$"):
        check("train", precision="bf61")


def test_unset_and_unlisted_settings_pass():
    check("train", max_steps=None, no_such_setting=-1)
    check("no_such_node", anything=1)


def test_every_default_of_the_functions_lies_in_its_range():
    import inspect

    from runner import methods

    functions = {
        "agc": methods.adaptive_clip_grad_,
        "ghost_batchnorm": methods.apply_ghost_batchnorm,
        "groupnorm": methods.apply_group_norm,
        "weight_standardization": methods.apply_weight_standardization,
        "stochastic_depth": methods.apply_stochastic_depth,
    }
    for node, function in functions.items():
        defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
        limited = {name: value for name, value in defaults.items() if name in LIMITS[node]}
        assert limited, f"no limit of {node} is a parameter of {function.__name__}"
        check(node, **limited)


def test_did_you_mean():
    assert did_you_mean("drop_rat", ["drop_rate", "rescale"]) == "Did you mean drop_rate?"
    assert did_you_mean("zzz", ["drop_rate"]) == ""
    assert "x" in OneOf(("x",))
