"""Attacks of several kinds in turn, until the time is over: what was tried, what survived, and how to see a failure."""

from __future__ import annotations

import importlib
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tortures.attack import Attack, CannotBegin, Templates, said
from tortures.survival import leaks

KINDS = {
    "kill": "SIGKILL at any moment and at any change of a file, then resume",
    "damage": "files of runs and sweeps cut, changed, swapped, forged; then resume, evaluate, report, compare",
    "fuzz": "command lines that nobody meant",
    "sweep": "odd axes and names, sweeps stopped, damaged, without room, two at once",
    "disk": "disks full, read-only, forbidden or broken; then there is room",
    "data": "folders with junk, links, turned photos, odd masks, copies, broken files",
    "ranks": "signals to ranks and to launchers",
}

LONGEST_TEXT = 300
CANNOT_BEGIN = "what the attacks begin from cannot be made"


@dataclass(frozen=True)
class Failure:
    """An attack that did not survive."""

    kind: str
    number: int
    title: str
    reasons: tuple[str, ...]
    again: str
    transcript: str = field(repr=False, default="")


@dataclass
class Tally:
    """What became of the attacks of a kind."""

    tried: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    @property
    def survived(self) -> int:
        """The attacks without a failure."""
        return self.tried - len(self.failures)


def run_one(kind: str, seed: int, number: int, templates: Templates, *, keep: bool = False) -> Attack:
    """Attack `number` of a kind; its folder is removed again unless it is to be kept."""
    folder = templates.root / f"{kind}-{number}"
    attack = Attack(kind, seed, number, folder, templates, templates.deadline)
    try:
        importlib.import_module(f"tortures.{kind}").attack(attack)
        attack.reasons += [] if attack.reasons else leaks(attack.folder)
    except CannotBegin as error:
        attack.fail(f"{CANNOT_BEGIN}: {error}")
    except Exception as error:  # a fault of this script, or a file that the product left in no readable form
        attack.fail(f"the attack itself ended in {type(error).__name__}: {error}")
        attack.trace = traceback.format_exc()
    finally:
        attack.kill_all()
        if not keep:
            for path in (folder, *templates.root.glob(f"{folder.name}.*")):
                shutil.rmtree(path, ignore_errors=True)
    return attack


def campaign(
    kinds: Sequence[str],
    seed: int,
    seconds: float,
    templates: Templates,
    *,
    report: Callable[[Attack, dict[str, Tally]], object],
    until_one_fails: bool = False,
) -> dict[str, Tally]:
    """Run attacks until the seconds are over, each kind for its share of them; Ctrl-C ends it with what there is.

    `report` is told each attack as it ends, with the tallies so far. `until_one_fails` ends it with the first failure.
    """
    tallies = {kind: Tally() for kind in kinds}
    end = time.monotonic() + seconds
    try:
        while kinds and time.monotonic() < end:
            kind = min(kinds, key=lambda name: tallies[name].seconds)  # the one with the least time so far
            tally, started = tallies[kind], time.monotonic()
            attack = run_one(kind, seed, tally.tried, templates)
            tally.tried += 1
            tally.seconds += time.monotonic() - started
            if attack.reasons:
                tally.failures.append(failure_of(attack))
            report(attack, tallies)
            if attack.reasons and until_one_fails:
                break
            if any(reason.startswith(CANNOT_BEGIN) for reason in attack.reasons):
                kinds = [name for name in kinds if name != kind]
    except KeyboardInterrupt:
        pass
    return tallies


def failure_of(attack: Attack) -> Failure:
    """What is kept of an attack that did not survive."""
    reasons = tuple(printable(reason) for reason in attack.reasons)
    return Failure(attack.kind, attack.number, printable(attack.title), reasons, attack.again, said(attack.transcript))


def printable(text: str) -> str:
    """One line of characters that a terminal can show."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)[:LONGEST_TEXT]
