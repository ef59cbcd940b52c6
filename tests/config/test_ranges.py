"""How ranges are written."""

import re

import pytest
import yaml

from runner.config.options import CONF, RANGES
from runner.config.ranges import parse_range


@pytest.mark.parametrize(
    ("written", "inside", "outside", "text"),
    [
        ("> 0", [1e-9, 10**9], [0, -1, 10**9 + 1], "it must lie in (0, 10^9]"),
        (">= 1 int", [1, 10**9], [0, 1.5, True], "it must be a whole number in [1, 10^9]"),
        ("[0, 1)", [0, 0.5], [1, -0.1], "it must lie in [0, 1)"),
        ("(-2.5,1e-3]", [-2.4, 0.001], [-2.5, 0.002], "it must lie in (-2.5, 0.001]"),
        ("[2, 5] int or auto or null", [2, "auto", None], [1, 2.5, "none"], "in [2, 5], or be auto"),
        (["unit", "layer"], ["unit"], ["units", None], "it must be one of unit, layer"),
        ("each [0, 1] or null", [[0, 1], [], None], [[0, 2]], "each entry must lie in [0, 1]"),
        ("rising (0, 1)", [[0.1, 0.5, 0.9]], [[0.5, 0.1], [0.5, 1]], "they must rise; each must lie in (0, 1)"),
        ("interval [-3, 3]", [[-3, 2.5]], [[1], [2, 1], [0, 4]], "two numbers, the smaller one first"),
        ("text", ["a" * 200], ["a" * 201, ""], "it must have 1 to 200 characters"),
        ("path", ["a/b"], ["", "a" * 300], "it must be a path"),
        ("bool or null", [True, None], [1], "it must be true or false"),
        ("each layer", [[0.5, 3, "conv1"]], [[True]], "each entry must be a depth"),
        ("arguments", [{"a": None, "b": [True, "x"]}, {}], [{"a": {"b": 1}}, {"a": [[1]]}], "keyword arguments"),
        ("time", ["2h30min"], ["90"], "it must be a time with its unit"),
    ],
)
def test_a_range_is_what_it_is_written_as(written, inside, outside, text):
    limit = parse_range(written)
    assert all(value in limit for value in inside)
    assert not any(value in limit for value in outside)
    assert text in str(limit)


WRONG = ("", "0", ">", "> x", "< 0", "[0, 1", "[0 1]", "[1, 0]", "(1, 1)", "int", "[0, inf]", "words", "all [0, 1]")


@pytest.mark.parametrize("written", [*WRONG, 5, None, [], [0, 1], ["a", 1], {"a": 1}, "[0, 1] or", "> 0 or a b"])
def test_what_is_no_range_is_refused_with_what_there_is(written):
    with pytest.raises(ValueError, match=r"it must be an interval in quotes, as in .* or one of text, path, layer"):
        parse_range(written)


def test_the_ranges_of_the_readme_can_be_read():
    [block] = re.findall(r"```yaml\n(_ranges_:.*?)```", (CONF / "README.md").read_text(), re.DOTALL)
    ranges = {key: parse_range(written) for key, written in yaml.safe_load(block)[RANGES].items()}
    assert 64 in ranges["num_groups"]
    assert None in ranges["test_size"]
