"""Files of a run or a sweep that are cut, changed, swapped for others or forged, and whoever reads them afterwards."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path

import torch

from tortures import survival
from tortures.attack import DONE, REFUSED, RUN, SWEEP, TINY, Attack
from tortures.file_calls import Decision
from tortures.wounds import wound

SETTINGS = (*TINY, "train.epochs=3", "train.checkpoint_every_steps=1", "train.log_every_steps=1")
SETTINGS += ("probe=[gradient_histogram]", "probe_at=[0]")
OTHER = "outputs/runs/other"
RESUME = (f"resume={RUN}", "train.device=cpu", "wandb.mode=disabled")


def attack(a: Attack) -> None:
    """Damage one file or folder, then resume, evaluate, load, report or compare."""
    a.templates.copy("runs", make_runs, a)
    act = a.draw.choices((_resume, _evaluate, _load, _compare, _report, _report_of_sweep), (6, 2, 2, 1, 2, 3))[0]
    inside = a.folder / (SWEEP if act is _report_of_sweep else RUN)
    victims = [path for path in sorted(inside.rglob("*")) if path.name != "figures"]
    victim = a.draw.choice(victims)
    before = survival.tree(a.folder)
    what = wound(a.draw, victim, a.folder / OTHER / victim.relative_to(inside))
    a.title = f"{victim.relative_to(a.folder)} {what.text}; {act.__doc__}"
    harmed = survival.tree(a.folder)
    act(a, victim, is_forged=what.is_forged)
    after = survival.tree(a.folder)
    written = {path for path in before | harmed | after if not path.startswith(_written_by(act))}
    if lost := survival.changes(harmed, after, sorted(written)):
        a.fail(f"lost or changed beside the run: {', '.join(lost)}")


def _written_by(act: Callable) -> tuple[str, ...]:
    """Where an act may write."""
    reports = (f"{SWEEP}/report", f"{SWEEP}/results", f"{SWEEP}/figures", "outputs/reports")
    return {_resume: (RUN,), _report: reports, _report_of_sweep: reports}.get(act, ("nowhere",))


def _resume(a: Attack, victim: Path, *, is_forged: bool) -> None:
    """resume"""
    expected = _expected(a, "resumed", lambda b: b.run(*RESUME), lambda b: survival.result(b.folder / RUN))
    ended = a.run(*RESUME, allowed=REFUSED)
    if ended.code == 0 and not is_forged and not _is_told(ended.text, victim):
        a.compare(expected, a.folder / RUN)


def _evaluate(a: Attack, victim: Path, *, is_forged: bool) -> None:
    """evaluate"""
    _same_words(a, victim, is_forged, "result", "evaluate", RUN, "--checkpoint", "best")


def _compare(a: Attack, victim: Path, *, is_forged: bool) -> None:
    """compare"""
    _same_words(a, victim, is_forged, "comparison", "compare", OTHER, RUN)


def _same_words(a: Attack, victim: Path, is_forged: bool, what: str, *script: str) -> None:
    """A script prints what it prints where nothing is damaged, or names the damage."""
    expected = _expected(a, script[0], lambda b: b.script(*script), lambda b: b.transcript[-1].out)
    ended = a.script(*script, allowed=REFUSED)
    if ended.code == 0 and not is_forged and ended.out != expected and not _is_told(ended.text, victim):
        a.fail(f"another {what}, silently: {ended.out.strip()[:200]}, not {expected.strip()[:200]}")


def _load(a: Attack, victim: Path, *, is_forged: bool) -> None:
    """load_run"""
    expected = _expected(a, "loaded", lambda b: b.call(_load_run, "load_run"), lambda b: b.transcript[-1].out)
    ended = a.call(_load_run, f'load_run("{RUN}")', allowed=REFUSED)
    if ended.code == 0 and not is_forged and ended.out != expected:
        a.fail("another model or other settings, silently")


def _load_run() -> None:
    from runner import load_run

    try:
        model, config = load_run(RUN)
    except ValueError as error:
        print(error)
        raise SystemExit(2) from None
    digest = hashlib.sha256(json.dumps([config.seed, config.optimizer.lr, config.model.name]).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.reshape(-1).view(torch.uint8).numpy().tobytes())
    print(digest.hexdigest())


def _report(a: Attack, victim: Path, *, is_forged: bool) -> None:
    """report of two runs"""
    _make_report(a, (RUN, OTHER, "--into", "outputs/reports/both"), "outputs/reports/both", victim, is_forged)


def _report_of_sweep(a: Attack, victim: Path, *, is_forged: bool) -> None:
    """report of the sweep"""
    _make_report(a, (SWEEP,), SWEEP, victim, is_forged)


def _make_report(a: Attack, words: tuple[str, ...], into: str, victim: Path, is_forged: bool) -> None:
    def read(b: Attack) -> str:
        return (b.folder / into / "results.csv").read_text()

    expected = _expected(a, f"report of {into}", lambda b: b.script("report", *words), read)
    # without the record of the sweep there is nothing to report; a run is one of several
    ended = a.script("report", *words, allowed=REFUSED if victim.name == "sweep.yaml" else DONE)
    if ended.code != 0 or is_forged:
        return
    text = ended.text + "".join(
        path.read_text(errors="replace") for path in [a.folder / into / "report.md"] if path.is_file()
    )
    if not (a.folder / into / "results.csv").is_file():
        a.fail("exit code 0 and no results.csv")
    elif read(a) != expected and not _is_told(text, victim):
        a.fail("another table, silently")


def _is_told(text: str, victim: Path) -> bool:
    """Whether the damage is told: by the name of the file or folder, or of the probe whose file it is."""
    text = text.replace("\\", "")  # Markdown escapes what it would read as its own
    return victim.name in text or (victim.parent.name == "probes" and victim.stem in text)


def _expected(a: Attack, name: str, act: Callable[[Attack], object], read: Callable[[Attack], object]) -> object:
    """What `act` comes to where nothing is damaged."""

    def make(b: Attack) -> None:
        b.templates.copy("runs", make_runs, b)
        act(b)

    return a.templates.made(f"made-{name.replace('/', '-')}", make, read)


def make_runs(a: Attack) -> None:
    """A run that was stopped in its second epoch, another with other settings, a sweep of two jobs."""
    a.end(a.start(*SETTINGS, "name=run", act=_Interrupt()), {130: "it was interrupted"})
    a.run(*SETTINGS, "name=other", "train.max_steps=3", "seed=5", "optimizer.lr=0.01")
    a.run("-m", *TINY, "train.max_steps=1", "seed=0,1", "sweep.name=sweep")


class _Interrupt:
    """Ctrl-C as the checkpoint after step 3 is written."""

    checkpoints = 0

    def __call__(self, number: int, call: str, path: str) -> Decision:
        self.checkpoints += call == "os.rename" and path.endswith("last.pt")
        if self.checkpoints == 3:
            self.checkpoints += 1
            return signal.SIGINT
        return None
