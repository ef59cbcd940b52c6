"""The table with a row for each arm: settings, measures and how its runs ended."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from runner.report.document import Table
from runner.report.overview import status_counts
from runner.results.arms import Arm, Axis, Spread
from runner.results.measures import is_test, label, scale
from runner.results.number_text import format_measure

STANDARD_MEASURES = ("validation/score", "test/score", "throughput/images_per_second")
BEST_SIGN = "★"
MISSING = "; in brackets how many have a value, where some have none"
MANY_IMAGES = 2000  # with as many, one image is less than 0.05 %, so a second decimal of a percentage has a meaning


def arm_table(axes: Sequence[Axis], arms: Sequence[Arm], measures: Sequence[str], score: str) -> Table:
    """Mean and standard deviation of each measure over the seeds, the study's `measures` first.

    A measure without any value gets no column. A star marks the arm with the best mean on the validation split, among
    those whose runs all have a value.
    """
    names = measures_of(arms, measures, score)
    best, repeated = best_arm(arms), any(len(arm.runs) > 1 for arm in arms)
    columns = ["", *(axis.name for axis in axes), *(label(name, score) for name in names), "runs", "status"]
    digits = {name: decimals(arms, name) for name in names}
    rows = [
        (
            BEST_SIGN if arm is best else "",
            *(axis.title(arm.settings[axis.key]) for axis in axes),
            *(_cell(arm, name, digits[name]) for name in names),
            str(len(arm.runs)),
            status_counts(arm.runs) if repeated else arm.runs[0].status,
        )
        for arm in arms
    ]
    numeric = {1 + index for index, axis in enumerate(axes) if axis.numbers}
    numeric |= set(range(1 + len(axes), len(columns) - 1))
    notes = []
    if any(arm.seeds > 1 for arm in arms):
        missing = any(0 < len(arm.spread(name).values) < arm.seeds for arm in arms for name in names)
        notes.append(f"Mean ± standard deviation over the seeds{MISSING if missing else ''}.")
    if best:
        where = "test split, which stands in for validation" if best.runs[0].on_test else "validation split"
        notes.append(f"{BEST_SIGN} best mean on the {where}, among the arms whose runs all have a value.")
    if any(run.on_test for arm in arms for run in arm.runs):
        notes.append("Where the test split stood in for validation, the validation score was chosen on the test split.")
    full_names = {1 + index: axis.key for index, axis in enumerate(axes)}
    return Table(tuple(columns), tuple(rows), frozenset(numeric), " ".join(notes), full_names)


def measures_of(arms: Sequence[Arm], measures: Sequence[str], score: str) -> list[str]:
    """The study's `measures` and the standard ones that some arm has a value of."""
    names = list({label(name, score): name for name in [*STANDARD_MEASURES, *measures]}.values())
    names = [name for name in names if any(arm.spread(name).values for arm in arms)]
    return sorted(names, key=lambda name: name in STANDARD_MEASURES)


def best_arm(arms: Sequence[Arm]) -> Arm | None:
    """The arm with the best mean on the validation split; of equals the one with the smaller loss, then the first.

    None for a single arm, and if the test split stands in for validation in some runs only.
    """

    def mean(arm: Arm, name: str) -> float:
        return arm.spread(f"validation/{name}").mean

    rivals = [arm for arm in arms if arm.count("completed") == len(arm.runs) and not math.isnan(mean(arm, "score"))]
    kinds = {run.on_test for arm in rivals for run in arm.runs}
    if len(arms) < 2 or len(kinds) != 1:
        return None
    losses = {id(arm): -loss for arm in rivals if not math.isnan(loss := mean(arm, "loss"))}
    return max(rivals, key=lambda arm: (mean(arm, "score"), losses.get(id(arm), -math.inf)))


def _cell(arm: Arm, name: str, digits: int | None) -> str:
    spread = arm.spread(name)
    if not spread.values:
        return "-"
    text = mean_text(spread, name, digits)
    return text if len(spread.values) == arm.seeds else f"{text} ({len(spread.values)} of {arm.seeds})"


def mean_text(spread: Spread, name: str, digits: int | None, between: str = " ") -> str:
    """The mean, and after `between` its standard deviation if there is one: "98.31 ± 0.12"."""
    mean, deviation = (value * scale(name) for value in (spread.mean, spread.deviation))
    text = format_measure(mean, digits)
    return text if math.isnan(deviation) else f"{text}{between}± {format_measure(deviation, digits)}"


def decimals(arms: Sequence[Arm], name: str) -> int | None:
    """The number of decimals that the values of a measure need; None for four significant figures.

    The last decimal is the second figure of the median standard deviation over seeds. Percentages have one or two
    decimals, one if fewer than 2,000 images were evaluated; speeds have none.
    """
    if name == "throughput/images_per_second":
        return 0
    factor = scale(name)
    deviations = [arm.spread(name).deviation * factor for arm in arms]
    known = [deviation for deviation in deviations if deviation > 0]
    wanted = 1 - math.floor(math.log10(statistics.median(known))) if known else None
    if factor == 100:
        return min(max(2 if wanted is None else wanted, 1), 2 if _images(arms, name) >= MANY_IMAGES else 1)
    # significant figures suit numbers far smaller or larger than 1
    return wanted if wanted is not None and 0 <= wanted <= 6 else None


def _images(arms: Sequence[Arm], name: str) -> float:
    """The smallest number of images of the measure's split among the runs; 0 if unknown."""
    split = "test" if is_test(name) else name.partition("/")[0]
    counts = [run.number(f"data/{split}") for arm in arms for run in arm.runs]
    return min((count for count in counts if count is not None), default=0)
