"""The differences between runs in settings, code, results and learning curves."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from runner.config.schema import TOP_LEVEL
from runner.config.text import to_override
from runner.files.readers import is_there
from runner.results.metrics import METRICS, SCORES, read_rows
from runner.results.number_text import format_value
from runner.results.runs import Run, read_run

ABSENT = "-"
NOT_COMPARED = ("name", "resume", "sweep", "wandb", "paths.outputs")  # where a run lies and how it is watched
PROVENANCE = ("git", "versions", "hardware")  # the compared parts; command and time always differ
NUMBERS = {  # kind and name of each number, by its title
    "best epoch": ("text", "validation/epoch"),
    "best validation loss": ("loss", "validation/loss"),
    "test loss (of best.pt)": ("loss", "test/loss"),
    "test loss (last weights)": ("loss", "last/loss"),
    "parameters": ("count", "model/num_params"),
    "multiply-adds": ("count", "model/multiply_adds"),
    "training images/s": ("speed", "throughput/images_per_second"),
    "training time": ("seconds", "throughput/train_seconds"),
    "peak GPU memory (GiB)": ("memory", "throughput/peak_memory_gib"),
}
TIMINGS = ("images_per_second", "seconds")  # metrics that are never the same twice

Values = tuple[object, ...]
"""One value for each run, None if unknown."""


@dataclass(frozen=True)
class Measured:
    """A result of each run; `kind` is its format: share, loss, count, speed, seconds, memory or text."""

    name: str
    kind: str
    values: Values

    @property
    def differs(self) -> bool:
        """Whether the values differ, if only in the last bit."""
        return len(set(self.values)) > 1


@dataclass(frozen=True)
class Comparison:
    """The differences between two or more runs, which are called A, B, C, ... in order.

    `settings` and `code` have only what differs, with a text for each run, `ABSENT` if it lacks the key; `results` has
    all results. `scores`, `curves` and `notes` are sentences: each test score against A's, the first epoch in which
    the curves leave A's, and what the folders do not say.
    """

    runs: tuple[Run, ...]
    settings: dict[str, tuple[str, ...]]
    code: dict[str, tuple[str, ...]]
    results: tuple[Measured, ...]
    scores: tuple[str, ...]
    curves: dict[str, str | None]
    notes: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether settings, code, results and curves are the same, speed, time and memory aside."""
        differs = any(row.differs for row in self.results if row.kind not in ("speed", "seconds", "memory"))
        readable = all(run.summary for run in self.runs)
        return readable and not (self.settings or self.code or differs or any(self.curves.values()))


def compare(folders: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Compare the runs in `folders` with the first of them.

    Raises ValueError for a folder without a run, for fewer than two runs or more than 26, and for a damaged file.
    """
    if not 2 <= len(folders) <= len(ascii_uppercase):
        raise ValueError(f"2 to {len(ascii_uppercase)} runs can be compared, not {len(folders)}. Name so many folders.")
    runs = tuple(_run(Path(folder)) for folder in folders)
    settings = _differing([_settings(run.resolved) for run in runs])
    code = _differing([_code(run) for run in runs])
    curves = [_curve(run.folder) for run in runs]
    others = list(zip(ascii_uppercase[1:], runs[1:], curves[1:], strict=False))
    return Comparison(
        runs=runs,
        settings=settings,
        code=code,
        results=_results(runs),
        scores=tuple(sentence for letter, run, _ in others if (sentence := _score_sentence(runs[0], letter, run))),
        curves={letter: _first_difference(letter, curves[0], curve) for letter, _, curve in others},
        notes=tuple(_notes(runs)),
    )


def score_error(a: Run, b: Run) -> float:
    """The standard error of the difference of two test accuracies, as shares of 1; NaN if unknown.

        sqrt(p_a (1 - p_a) / n_a + p_b (1 - p_b) / n_b)

    for accuracies p on n images. This treats the test sets as independent; on the same images the errors of two runs
    are correlated, so the true error is smaller. A mean IoU has no such error.
    """
    shares, sizes = ([run.number(name) for run in (a, b)] for name in ("test/accuracy", "data/test"))
    if None in (*shares, *sizes) or 0 in sizes:
        return math.nan
    return math.sqrt(sum(share * (1 - share) / size for share, size in zip(shares, sizes, strict=True)))


def _run(folder: Path) -> Run:
    if not any(is_there(folder / name) for name in ("config.yaml", "record.json")):
        raise ValueError(f"{folder}: no run lies there (config.yaml is missing). Name a run's folder.")
    run = read_run(folder)
    if not run.resolved:
        reason = run.notes[-1] if run.notes else f"{folder / 'config.yaml'}: it is empty"
        raise ValueError(f"{reason}; the file was changed. Name another run.")
    return run


def _settings(config: dict) -> dict[str, str]:
    """The configuration by dotted keys, without `NOT_COMPARED`."""
    nodes = {name: node for name, node in config.items() if name not in TOP_LEVEL and isinstance(node, dict)}
    methods = [name for name, node in nodes.items() if "_target_" in node]
    settings = {"methods": " + ".join(methods) or ABSENT, **_by_dotted_key(config)}
    return {key: text for key, text in settings.items() if not {key, key.partition(".")[0]} & {*NOT_COMPARED}}


def _code(run: Run) -> dict[str, str]:
    """Commit, versions and hardware by dotted keys."""
    return _by_dotted_key({name: part for name in PROVENANCE if (part := run.section("provenance", name))})


def _by_dotted_key(values: Mapping, prefix: str = "") -> dict[str, str]:
    """Nested values as texts by dotted keys; an empty mapping is a value."""
    texts = {}
    for key, value in values.items():
        is_node = isinstance(value, dict) and value
        texts |= _by_dotted_key(value, f"{prefix}{key}.") if is_node else {f"{prefix}{key}": to_override(value)}
    return texts


def _differing(tables: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The keys that differ, in order of occurrence, with the text of each run.

    The class of a method that a run lacks is left out, since `methods` shows it already.
    """
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = {key: tuple(table.get(key, ABSENT) for table in tables) for key in keys}
    return {
        key: row
        for key, row in rows.items()
        if len({table.get(key) for table in tables}) > 1 and not (key.endswith("._target_") and ABSENT in row)
    }


def _results(runs: Sequence[Run]) -> tuple[Measured, ...]:
    """Status, scores, losses, speed and size; a row without any value is left out."""
    rows = [Measured("status", "text", tuple(run.status for run in runs))]
    titles = {}
    for score in [name for name in SCORES if any(run.score == name for run in runs)]:
        titles |= {
            f"best validation {SCORES[score]}": ("share", f"validation/{score}"),
            f"test {SCORES[score]} (of best.pt)": ("share", f"test/{score}"),
            f"test {SCORES[score]} (last weights)": ("share", f"last/{score}"),
        }
    titles |= NUMBERS
    titles |= {f"changed by {name}": ("count", f"methods/{name}") for run in runs for name in run.section("methods")}
    rows += [Measured(title, kind, tuple(run.number(name) for run in runs)) for title, (kind, name) in titles.items()]
    return tuple(row for row in rows if any(value is not None for value in row.values))


def _score_sentence(a: Run, letter: str, b: Run) -> str | None:
    """The difference of B's test score to A's, in standard errors of the test images."""
    shares = [run.number("test/score") for run in (a, b)]
    if None in shares:
        return None
    data = [run.section("data") for run in (a, b)]
    if a.score != b.score or data[0].get("name") != data[1].get("name"):
        return f"{letter} - A: no difference of test scores, which are of different kinds or data sets."
    difference, error = shares[1] - shares[0], score_error(a, b)
    begin = f"{letter} - A: test {SCORES[a.score]} {100 * difference:+.2f} percentage points"
    if math.isnan(error):
        return f"{begin}; how much of it is chance is not known."
    sizes = " and ".join(dict.fromkeys(f"{part['test']:,}" for part in data))
    of_images = f"{100 * error:.2f} ({sizes} test images)"
    if abs(difference) <= error:
        return f"{begin}, within the standard error of {of_images}: they do not tell the two apart."
    times = f"{abs(difference) / error:.1f} standard errors" if error else "beyond the standard error"
    return f"{begin}, {times} of {of_images}."


def _curve(folder: Path) -> dict[tuple[float, str], dict]:
    """The rows of the training and the validation split, by epoch and split."""
    rows = read_rows(folder) if is_there(folder / METRICS) else []
    return {(row["epoch"], row["split"]): row for row in rows if row["split"] in ("train", "validation")}


def _first_difference(letter: str, a: Mapping, b: Mapping) -> str | None:
    """The first epoch in which B's curves leave A's; None if they are the same."""
    for epoch, split in sorted({*a, *b}):  # "train" comes before "validation"
        of_a, of_b = a.get((epoch, split)), b.get((epoch, split))
        if of_a is None or of_b is None:
            longer, shorter = ("A", letter) if of_b is None else (letter, "A")
            return f"{letter}: as A's to its end; {longer} has an epoch {epoch:g}, {shorter} has none."
        keys = [key for key in dict.fromkeys([*of_a, *of_b]) if key not in TIMINGS]
        for key in sorted(keys, key=lambda key: key in ("step", "lr")):  # scores first: they say more
            if of_a.get(key) != of_b.get(key):
                values = [format_value(row.get(key), 6, ABSENT) for row in (of_a, of_b)]
                return f"{letter}: from epoch {epoch:g} on; {split} {key}: A {values[0]}, {letter} {values[1]}."
    return None


def _notes(runs: Sequence[Run]) -> list[str]:
    """Sentences on what the folders do not say."""
    lettered = list(zip(ascii_uppercase, runs, strict=False))
    notes = [f"{letter} is {run.status}: {run.error}" for letter, run in lettered if run.error]
    notes += [f"{letter}: {note}" for letter, run in lettered for note in run.notes]
    git = {letter: run.section("provenance", "git") for letter, run in lettered}
    if dirty := [letter for letter in git if git[letter].get("dirty")]:
        notes.append(f"{', '.join(dirty)}: uncommitted changes, so the commit does not say all of what ran.")
    if unknown := [letter for letter, run in lettered if run.summary and not git[letter]]:
        notes.append(f"{', '.join(unknown)}: not run from a git checkout; the code is not known.")
    if on_test := [letter for letter, run in lettered if run.on_test]:
        notes.append(f"{', '.join(on_test)}: the test split stood in for validation; `best` was chosen on it.")
    return notes
