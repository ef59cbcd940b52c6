"""Numbers as text: the one place that decides how counts, shares, times and measures look."""

from __future__ import annotations

import math


def format_count(count: float) -> str:
    """A large number in three figures: 11.2 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(count) >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"


def format_number(number: float | None, digits: int = 3) -> str:
    """A number of changing size in at most eight characters, "-" for None."""
    if number is None:
        return "-"
    if not math.isfinite(number) or number == 0 or 10.0**-digits <= abs(number) < 1e4:
        return f"{number:.{digits}f}"
    return f"{number:.0f}" if abs(number) >= 1e4 and digits == 0 else f"{number:.1e}"


def format_lr(lr: float | None) -> str:
    return "-" if lr is None else f"{lr:.3g}"


def format_share(share: float | None, digits: int = 1) -> str:
    """A share of 1 as a percentage, "-" for None."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def format_duration(seconds: float | None) -> str:
    """Seconds as m:ss or h:mm:ss, "-:--" for None."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def format_measure(value: float, decimals: int | None = None) -> str:
    """A measure with this many decimals, or four significant figures; NaN and the infinities as words."""
    if math.isnan(value):
        return "no value"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if decimals is None:
        return format_significant(value, 4)
    return f"{value:.{decimals}f}" if value == 0 or abs(value) < 1e7 else f"{value:.3e}"


def format_significant(value: float, figures: int) -> str:
    """A number in this many significant figures, below ten million without a power of ten: "140", not "1.4e+02"."""
    text = f"{value:.{figures}g}"
    return f"{float(text):.0f}" if "e+" in text and abs(value) < 1e7 else text


def format_value(value: object, figures: int, absent: str = "None") -> str:
    """A float in at most this many significant figures, any other value as its own text, None as `absent`."""
    return absent if value is None else f"{value:.{figures}g}" if isinstance(value, float) else str(value)
