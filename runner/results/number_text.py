"""Numbers as a report shows them: sensible digits, and words for what is no finite number."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from runner.results.arms import Arm
from runner.results.measures import is_test, scale
from runner.results.runs import section

MANY_IMAGES = 2000  # from here on one image is less than 0.05 %, and the second decimal of a percentage says something


def number_text(value: float, decimals: int | None = None) -> str:
    """A number with so many decimals, or in four significant figures; NaN and the infinities as words."""
    if math.isnan(value):
        return "no value"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if decimals is None:
        return significant(value, 4)
    return f"{value:.{decimals}f}" if value == 0 or abs(value) < 1e7 else f"{value:.3e}"


def significant(value: float, figures: int) -> str:
    """A number in so many significant figures; up to ten million without a power of ten: "140", not "1.4e+02"."""
    text = f"{value:.{figures}g}"
    return f"{float(text):.0f}" if "e+" in text and abs(value) < 1e7 else text


def decimals(arms: Sequence[Arm], name: str) -> int | None:
    """How many decimals the measure's values take; None for four significant figures.

    The second figure of the seeds' typical deviation is the last that says something. Percentages have one or two
    decimals, one where fewer than 2,000 images were evaluated; speeds have none.
    """
    if name == "throughput/images_per_second":
        return 0
    factor = scale(name)
    deviations = [arm.spread(name).deviation * factor for arm in arms]
    known = [deviation for deviation in deviations if deviation > 0]
    wanted = 1 - math.floor(math.log10(statistics.median(known))) if known else None
    if factor == 100:
        return min(max(2 if wanted is None else wanted, 1), 2 if _images(arms, name) >= MANY_IMAGES else 1)
    # numbers far smaller or larger than 1 are shown by their significant figures
    return wanted if wanted is not None and 0 <= wanted <= 6 else None


def _images(arms: Sequence[Arm], name: str) -> int:
    """The images of the split that the measure was taken on, of the run that has the fewest."""
    split = "test" if is_test(name) else name.partition("/")[0]
    counts = [section(run.summary, "data").get(split) for arm in arms for run in arm.runs]
    return min((count for count in counts if isinstance(count, int)), default=0)
