"""The verdicts of studies, from their sweeps into conf/sweep/README.md: `python scripts/study_table.py [FOLDER]`.

FOLDER, outputs/sweeps by default, has the folders of sweeps. A row is one study that was run to its end as its file has
it; of several such sweeps the last counts, and rows of studies that FOLDER lacks stay. A verdict is the report's.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the runner beside this script, installed or not

from runner.claims.verdict import HOLDS, HOLDS_NOT, UNDECIDABLE, Verdict
from runner.files.atomic import write_atomically
from runner.report.markdown import escaped
from runner.report.overview import overview, status_counts
from runner.report.report import Report, read_report
from runner.report.verdict_table import SIGNS_AND_KINDS
from runner.results.run_state import RESULTS
from runner.sweeps.study import AND, NOT_OF_A_JOB

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "conf/sweep/README.md"
BEGIN, END = "<!-- study_table.py: begin -->\n", "<!-- study_table.py: end -->\n"
COLUMNS = "| `experiment=` | verdicts | claims, and what was measured here | seeds | run |\n|---|---|---|---|---|\n"
COUNTED = {HOLDS: ("holds", "hold"), HOLDS_NOT: ("does not", "do not"), UNDECIDABLE: ("undecidable", "undecidable")}


def main(words: Sequence[str] | None = None) -> None:
    """Read the sweeps, write the table; says which sweeps are left out, and why."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs/sweeps"), metavar="FOLDER")
    parser.add_argument("--readme", type=Path, default=README)
    arguments = parser.parse_args(words)
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder}: there is no such folder; run a study first, or name its folder's parent")
    before, begin, rest = arguments.readme.read_text().partition(BEGIN)
    table, end, after = rest.partition(END)
    if not (begin and end):
        parser.error(f"{arguments.readme}: it lacks the line {BEGIN.strip()} or {END.strip()}")
    rows = {_name_in(line): line for line in table.splitlines() if line.startswith("| [")}
    rows |= {name: _row(name, report) for name, report in sorted(_studies(arguments.folder), key=_started)}
    lines = "".join(f"{rows[name]}\n" for name in sorted(rows))
    write_atomically(arguments.readme, f"{before}{BEGIN}\n{COLUMNS}{lines}\n{END}{after}")
    print(f"{len(rows)} studies: {arguments.readme}")


def _studies(folder: Path) -> Iterator[tuple[str, Report]]:
    """The studies in the folder by name that were run to their end as they are written."""
    for sweep in sorted(path.parent for path in folder.glob("*/sweep.yaml")):
        try:
            report = read_report(sweep, into=sweep)
            name = study_name(report.sweep.command or "")
        except ValueError as error:
            print(f"Left out: {sweep.name}: {error}")
            continue
        wrong = [run.folder.name for run in report.runs if run.status not in RESULTS]
        if wrong := [*report.sweep.without_run(sweep), *wrong]:
            print(f"Left out: {sweep.name}: {len(wrong)} jobs have no result, as {wrong[0]}")
        elif report.verdicts:
            yield name, report


def study_name(command: str) -> str:
    """The study of a sweep's command. Raises ValueError if it changes what the study's file says."""
    words = [word for part in command.split(AND) for word in shlex.split(part)[3:]]  # behind python -m runner
    words = [word for word in dict.fromkeys(words) if word != "-m" and not word.startswith(NOT_OF_A_JOB)]
    if len(words) != 1 or not words[0].startswith("experiment="):
        raise ValueError(f"it is no study as its file has it: {command}")
    return words[0].removeprefix("experiment=")


def _started(study: tuple[str, Report]) -> str:
    """When its last run was started, in ISO format."""
    return max(str(run.section("provenance").get("time")) for run in study[1].runs)


def _row(name: str, report: Report) -> str:
    facts = dict(overview(report.runs, None).rows)
    arms = [len({run.seed for run in arm.runs}) for arm in report.arms]
    seeds = f"{min(arms)}" if min(arms) == max(arms) else f"{min(arms)} to {max(arms)}"
    run = [status_counts(report.runs), *(facts.get(key, "") for key in ("Time", "Hardware", "Code"))]
    cells = (
        f"[{name}](../experiment/{name}.yaml)",
        _counts(report.verdicts),
        "<br>".join(_sentence(verdict) for verdict in report.verdicts),
        seeds,
        "<br>".join(escaped(fact) for fact in run if fact),
    )
    return f"| {' | '.join(cells)} |"


def _counts(verdicts: Sequence[Verdict]) -> str:
    """`3 hold, 1 does not, 2 undecidable`."""
    numbers = {word: sum(verdict.verdict == word for verdict in verdicts) for word in COUNTED}
    return ", ".join(f"{number} {COUNTED[word][number > 1]}" for word, number in numbers.items() if number)


def _sentence(verdict: Verdict) -> str:
    """The claim with its verdict's sign, and what was measured, or the reason why nothing was."""
    sign, _ = SIGNS_AND_KINDS[verdict.verdict]
    together = "" if verdict.after_holm == verdict.verdict else f"; over all claims together {verdict.after_holm}"
    return f"**{sign}** {escaped(verdict.claim)} {escaped((verdict.measured or verdict.why) + together)}"


def _name_in(line: str) -> str:
    return re.match(r"\| \[([^\]]*)\]", line)[1]


if __name__ == "__main__":
    main()
