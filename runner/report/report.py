"""The report of a sweep or of any set of runs: report.html, report.md, results.csv, arms.csv and figures/*.png."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from runner.claims.claim import parse_claim
from runner.claims.verdict import Verdict, judge
from runner.figures.drawing import COLOURS
from runner.files.atomic import CannotWrite, write_atomically
from runner.files.readers import Unreadable, is_there, read_png, read_text
from runner.report.arm_table import BEST_SIGN, arm_table, measures_of
from runner.report.class_table import class_table, what_is_measured
from runner.report.document import Block, Document, Gallery, Heading, Listing, Paragraph, Picture, Table
from runner.report.html import as_html
from runner.report.latex import as_latex
from runner.report.markdown import as_markdown
from runner.report.overview import overview
from runner.report.path_figure import PATHS, path_figure
from runner.report.probe_figures import curves_figure, own_pictures, probe_figure, probe_names, unreadable_probes
from runner.report.results_csv import arms_csv, write_results_csv
from runner.report.run_table import reason_table, run_link, run_table
from runner.report.sweep_figure import figure_caption, sweep_figure
from runner.report.verdict_table import SIGNS_AND_KINDS, verdict_table
from runner.results.arms import Arm, Axis, arms_of, best_arms
from runner.results.measures import check_measure, label, measured_probes
from runner.results.runs import UNREADABLE, Run, SweepRecord, read_runs, read_sweep, score_title
from runner.results.strays import strays

FILES = ("report.html", "report.md", "results.csv", "arms.csv")
DOTS_PER_INCH = 130
WRITTEN = ".written"  # the list of the figures in its folder, by which the next report removes what it does not write
MOST_ARMS = len(COLOURS)  # in one figure of curves
MOST_PICTURES = 24  # of one probe, side by side
MOST_JOB_NAMES = 20  # in a note


def read_report(
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, into: str | os.PathLike[str]
) -> Report:
    """The report of the runs in `folder`, one or several folders of runs or sweeps.

    A damaged sweep.yaml becomes a note in the report. Raises ValueError for a folder that does not exist, and if there
    is no run.
    """
    folders = [Path(folder)] if isinstance(folder, str | os.PathLike) else [Path(each) for each in folder]
    runs, sweep, notes = read_runs(folders), SweepRecord(), ()
    if len(folders) == 1:
        try:
            sweep = _checked(read_sweep(folders[0]), runs)
        except ValueError as error:
            notes = (str(error),)
        if lost := sweep.without_run(folders[0]):
            more = f" and {len(lost) - MOST_JOB_NAMES:,} more" if len(lost) > MOST_JOB_NAMES else ""
            notes = (f"No run in the folders of these jobs: {'; '.join(lost[:MOST_JOB_NAMES])}{more}.",)
    if not runs:
        raise ValueError(f"{', '.join(map(str, folders))}: there is no run. Name the folder of a run or of a sweep.")
    if sweep.jobs and (alien := strays(runs, runs)):
        names = "; ".join(run.folder.name for run in alien[:MOST_JOB_NAMES])
        notes = (*notes, f"Not compared, since they share no setting with the others: {names}.")
    title = sweep.title or " and ".join(folder.resolve().name for folder in folders[:3])
    title += " and more" if len(folders) > 3 and not sweep.title else ""
    return Report(title, runs, sweep, *arms_of(runs, sweep), Path(into), notes)


def _checked(sweep: SweepRecord, runs: list[Run]) -> SweepRecord:
    """The record of a sweep. Raises ValueError for wrong measures or claims."""
    probes = measured_probes(runs)
    for name in sweep.measures:
        check_measure(name, probes)
    for number, claim in enumerate(sweep.claims, start=1):
        parse_claim(claim, number, probes)
    return sweep


def _listed_figures(figures: Path) -> set[str]:
    """The figures that the last report wrote, of those that are still there."""
    try:
        names = read_text(figures / WRITTEN).splitlines()
    except Unreadable:
        return set()
    return {name for name in names if name.endswith(".png")}.intersection(os.listdir(figures))


def _put_aside(into: Path) -> list[str]:
    """Rename folders that have the name of a file of the report, and anything but a folder called figures.

    Returns a sentence for each. A file, a link or a FIFO with the name of a file is overwritten.
    """
    figures, notes = into / "figures", []
    files = [*(into / name for name in FILES), figures / WRITTEN, *(figures.glob("*.png") if figures.is_dir() else ())]
    in_the_way = [path for path in files if path.is_dir() and not path.is_symlink()]
    if is_there(figures) and (figures.is_symlink() or not figures.is_dir()):
        in_the_way.append(figures)
    for path in in_the_way:
        aside, number = path.with_name(f"{path.name}.aside"), 1
        while is_there(aside):
            number += 1
            aside = path.with_name(f"{path.name}.aside-{number}")
        path.rename(aside)
        notes.append(f"{path} was in the way of the report; it is now {aside.name}.")
    return notes


@dataclass(frozen=True)
class Report:
    """The content of a report; its methods yield its parts in order."""

    title: str
    runs: list[Run]
    sweep: SweepRecord
    axes: list[Axis]
    arms: list[Arm]
    into: Path
    notes: tuple[str, ...] = ()

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The verdicts on the study's claims."""
        return judge(self.sweep.claims, self.runs, source=self.sweep.source, sequential=self.sweep.decide)

    def write(self) -> Path:
        """Write report.html, whose path is returned, report.md, results.csv, arms.csv and the figures.

        The same runs give the same bytes. Figures of the last report that this one does not have are removed.
        """
        html, markdown, table, arms = (self.into / name for name in FILES)
        figures = self.into / "figures"
        try:
            aside = [Paragraph(note, is_note=True) for note in _put_aside(self.into)]
            figures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite.from_os_error(figures, error) from None
        document = Document(self.title, (*aside, *self.blocks()))
        write_results_csv(self.runs, table, self.sweep.measures)
        names = measures_of(self.arms, self.sweep.measures, self.score)
        write_atomically(arms, arms_csv(self.axes, self.arms, names))
        write_atomically(markdown, as_markdown(document))
        write_atomically(html, as_html(document))
        written = [block.path.removeprefix("figures/") for block in document.blocks if isinstance(block, Picture)]
        for name in _listed_figures(figures) - {*written}:
            (figures / name).unlink(missing_ok=True)
        write_atomically(figures / WRITTEN, "".join(f"{name}\n" for name in written))
        return html

    def blocks(self) -> Iterator[Block]:
        yield from (Paragraph(note, is_note=True) for note in self.notes)
        if self.sweep.source:
            yield Paragraph(f"Source: {self.sweep.source}")
        if self.sweep.about:
            yield Paragraph(self.sweep.about)
        yield overview(self.runs, self.sweep.command)
        if self.verdicts:
            yield from self.judged()
        if self.arms:
            yield from self.results()
            yield from self.classes()
            yield from self.curves()
            yield from self.probes()
        yield from self.damaged_files()
        yield Heading("Every run")
        yield run_table(self.runs, self.into, self.score)
        yield from self.without_result()

    @property
    def score(self) -> str:
        """The title of the runs' score."""
        return score_title(self.runs)

    def judged(self) -> Iterator[Block]:
        counts = [(sum(each.verdict == word for each in self.verdicts), word) for word in SIGNS_AND_KINDS]
        yield Heading("Verdict")
        yield Paragraph(", ".join(f"{count} x {word}" for count, word in counts if count).capitalize() + ".")
        yield verdict_table(self.verdicts)
        if figure := path_figure(self.verdicts, self.sweep.claims):
            yield self.picture(figure, "verdict_paths", "Each claim's estimate and interval as seeds came in", PATHS)

    def results(self) -> Iterator[Block]:
        yield Heading("Results")
        scored = any(arm.spread("test/score").values for arm in self.arms)
        for name in self.sweep.measures or ["test/score" if scored else "validation/score"]:
            title = label(name, self.score)
            if not any(arm.spread(name).values for arm in self.arms):
                yield Paragraph(f"No run has a value of {title}.", is_note=True)
            elif len(self.arms) > 1:
                figure = sweep_figure(self.axes, self.arms, name, title, in_order=bool(self.sweep.title))
                yield self.picture(
                    figure,
                    re.sub(r"[^A-Za-z0-9.=-]+", "_", name),
                    f"{title} by {', '.join(axis.key for axis in self.axes)}",
                    figure_caption(self.axes, self.arms, name),
                )
        table = arm_table(self.axes, self.arms, self.sweep.measures, self.score)
        yield table
        yield Listing("as LaTeX", as_latex(table, best=BEST_SIGN))
        yield Listing("as CSV", arms_csv(self.axes, self.arms, measures_of(self.arms, self.sweep.measures, self.score)))

    def classes(self) -> Iterator[Block]:
        if table := class_table(self.drawn_arms):
            yield Heading(f"Test {what_is_measured(self.drawn_arms)} by class")
            if self.drawn_arms_note:
                yield Paragraph(self.drawn_arms_note, is_note=True)
            yield table

    def curves(self) -> Iterator[Block]:
        if figure := curves_figure(self.drawn_arms):
            yield Heading("Learning curves")
            yield self.picture(figure, "learning_curves", "Loss and score by epoch", self.drawn_arms_note)

    def probes(self) -> Iterator[Block]:
        for name in probe_names(self.drawn_arms):
            title = name.replace("_", " ").capitalize()
            yield Heading(title)
            figure, notes = probe_figure(name, self.drawn_arms)
            yield from (Paragraph(note, is_note=True) for note in notes)
            if figure:
                yield self.picture(figure, f"probe_{name}", f"{title}, the arms over one another", self.drawn_arms_note)
            by_arm = [(arm, own_pictures(name, arm)) for arm in self.drawn_arms]
            if sum(len(paths) for _, paths in by_arm) > MOST_PICTURES:
                by_arm = [(arm, paths[-1:]) for arm, paths in by_arm]
            shown = [self.own_picture(path, arm) for arm, paths in by_arm for path in paths]
            pictures = [picture for picture in shown if picture is not None]
            if pictures and (len(self.runs) > 1 or figure is None):
                yield Paragraph("Each arm's first seed:", is_note=True)
                yield Gallery(tuple(pictures))

    def damaged_files(self) -> Iterator[Block]:
        """The files that are damaged or not as the run wrote them."""
        notes = [(run, note) for run in self.runs for note in (*run.notes, *unreadable_probes(run.folder))]
        rows = [(run_link(run, self.into), note) for run, note in notes]
        if rows:
            yield Heading("Files that are odd")
            yield Table(("run", "what"), tuple(rows))

    def without_result(self) -> Iterator[Block]:
        for heading, runs in (
            ("Runs that could not be read", [run for run in self.runs if run.status == UNREADABLE]),
            ("Runs that did not complete", [run for run in self.runs if run.status not in ("completed", UNREADABLE)]),
        ):
            if runs:
                yield Heading(heading)
                yield reason_table(runs, self.into)

    @cached_property
    def drawn_arms(self) -> list[Arm]:
        """The arms in figures with many lines."""
        return best_arms(self.arms, "validation/score", MOST_ARMS)

    @property
    def drawn_arms_note(self) -> str:
        total = len(self.arms)
        return f"The {MOST_ARMS} best of {total} arms by their validation score." if total > MOST_ARMS else ""

    def picture(self, figure: Figure, name: str, alt: str, caption: str) -> Picture:
        """The figure as a PNG, also written into figures/."""
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DOTS_PER_INCH, facecolor="white")
        write_atomically(self.into / "figures" / f"{name}.png", lambda file: file.write(png.getvalue()))
        return Picture(f"figures/{name}.png", png.getvalue(), alt, caption)

    def own_picture(self, path: Path, arm: Arm) -> Picture | None:
        """A picture that a run drew, in its place; None if it cannot be read."""
        try:
            content = read_png(path)
        except Unreadable:
            return None
        caption = f"{arm.label}: {path.stem}"
        return Picture(os.path.relpath(path, self.into), content, caption, caption)
