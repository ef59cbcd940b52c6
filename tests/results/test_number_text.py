from __future__ import annotations

import math

import pytest

from runner.results.number_text import (
    format_count,
    format_duration,
    format_lr,
    format_measure,
    format_number,
    format_share,
    format_value,
)


def test_formats():
    assert [format_count(n) for n in (512, 11_173_962, 141_000_000, 999_999, 2.5e9)] == [
        "512",
        "11.2 M",
        "141 M",
        "1 M",
        "2.5 G",
    ]
    numbers = (None, 0.0, 0.4123, 0.0001, 9999.0, 12345.6, float("nan"), float("inf"))
    assert [format_number(n) for n in numbers] == [
        "-",
        "0.000",
        "0.412",
        "1.0e-04",
        "9999.000",
        "1.2e+04",
        "nan",
        "inf",
    ]
    assert [format_number(n, 0) for n in (None, 812.4, 123456.7, 0.4)] == ["-", "812", "123457", "4.0e-01"]
    assert [format_lr(n) for n in (None, 0.1, 0.0512345, 5e-7)] == ["-", "0.1", "0.0512", "5e-07"]
    assert [format_share(n) for n in (None, 0.97834, 1.0)] == ["-", "97.8 %", "100.0 %"]
    seconds = (None, 7.2, 59.7, 3725, float("nan"))
    assert [format_duration(n) for n in seconds] == ["-:--", "0:07", "1:00", "1:02:05", "-:--"]


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (float("nan"), 2, "no value"),
        (float("inf"), None, "infinite"),
        (float("-inf"), 1, "minus infinite"),
        (91.256, 1, "91.3"),
        (0.00123456, None, "0.001235"),
        (123456789.0, 2, "1.235e+08"),
        (14321.0, None, "14320"),
        (1.4e-6, None, "1.4e-06"),
    ],
)
def test_numbers_as_text(value, places, text):
    assert format_measure(value, places) == text


def test_a_value_of_any_kind():
    assert [format_value(value, 6, "-") for value in (0.1 + 0.2, 12, "a", None)] == ["0.3", "12", "a", "-"]
    assert format_value(math.pi * 1e-12, 10) == "3.141592654e-12"
