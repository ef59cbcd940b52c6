"""Sweeps with odd axes and names, stopped and run again, on a full disk, two at once, over damaged folders.

And with jobs at once, of which a process dies: a job's, the launcher's, or the command's own.
"""

from __future__ import annotations

import errno
import shutil
import signal
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tortures import survival
from tortures.attack import DONE, REFUSED, SWEEP, TINY, Attack, Whole
from tortures.file_calls import Refuse, Stop
from tortures.odd_words import AXES, SWEEP_NAMES, SWEEP_WORDS
from tortures.processes import POLL_SECONDS, Running, command_line
from tortures.wounds import wound

SETTINGS = (*TINY, "train.epochs=1", "train.checkpoint_every_steps=1")
COMMAND = ("-m", *SETTINGS, "seed=0,1", "sweep.name=sweep")
NOT_ALL_DONE = {**DONE, 1: "a job failed, or its report could not be written"}
STOPPED = {-signal.SIGKILL: "it was killed", 130: "it was interrupted", **DONE}
JOB, LAUNCHERS_PROCESS = "runner.sweeps.job_process", "LokyProcess"
TERMINATED = {-signal.SIGTERM: "the signal came before it was listened for"}


def attack(a: Attack) -> None:
    """One of these."""
    ways = {_odd: 6, _stopped: 4, _full: 3, _damaged: 4, _two_at_once: 1, _two_unnamed: 1, _jobs_at_once: 2}
    a.draw.choices(list(ways), list(ways.values()))[0](a)


def _odd(a: Attack) -> None:
    draw = a.draw
    words = [*SETTINGS, "train.max_steps=1", draw.choice((*AXES, "seed=0,1"))]
    if draw.random() < 0.4:
        words.append(f"sweep.name={draw.choice(SWEEP_NAMES)}")
    if draw.random() < 0.4:
        words.insert(draw.randint(0, len(words)), draw.choice(SWEEP_WORDS))
    if draw.random() < 0.3:
        words.append(draw.choice(("train.ema=0.5,0.9", "optimizer=sgd,adamw", "norm=batchnorm,groupnorm")))
    words.insert(draw.randint(0, len(words)), draw.choice(("-m", "-m", "--multirun")))
    a.title = "a sweep with " + " ".join(word for word in words if word not in SETTINGS)
    ended = a.run(*words, allowed=REFUSED)
    if ended.code != 0 or "plan" in words or "--cfg" in words:
        return
    folders = [path.parent for path in a.folder.rglob("sweep.yaml")]
    if len(folders) != 1 or not folders[0].is_relative_to(a.folder / "outputs/sweeps"):
        a.fail(
            f"exit code 0 and not one folder below outputs/sweeps: {[str(f.relative_to(a.folder)) for f in folders]}"
        )
        return
    for name in ("results.csv", "report.html"):
        if not (folders[0] / name).is_file():
            a.fail(f"exit code 0 and no {name}")
    if not _jobs(folders[0]):
        a.fail("exit code 0 and no job")
    if unlike := {path.name for path in a.folder.iterdir()} - {"outputs"}:
        a.fail(f"files beside outputs: {', '.join(sorted(unlike))}")


def _stopped(a: Attack) -> None:
    whole = _whole(a)
    running, way = _started_to_be_stopped(a, whole.calls, whole.seconds)
    a.title = f"a sweep stopped by {way} and run again"
    a.end(running, {**STOPPED, **TERMINATED})
    a.run(*COMMAND)
    _compare(a, _results(a))


def _started_to_be_stopped(a: Attack, calls: int, seconds: float):
    if a.draw.random() < 0.5:
        at = a.draw.randint(1, calls)
        return a.start(*COMMAND, act=Stop(at)), f"SIGKILL at call {at}"
    number = a.draw.choice((signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
    moment = a.draw.uniform(0.1, 1) * seconds
    running = a.start(*COMMAND)
    running.wait(moment)
    running.send(number)
    return running, f"{number.name} after {moment:.2f} s"


def _full(a: Attack) -> None:
    whole = _whole(a)
    code = a.draw.choice((errno.ENOSPC, errno.ENOSPC, errno.EDQUOT, errno.EIO))
    act = Refuse(a.draw.randint(1, whole.calls), code, lasts=a.draw.random() < 0.7)
    a.title = f"a sweep whose disk says {act}"
    ended = a.end(a.start(*COMMAND, act=act), NOT_ALL_DONE)
    if ended.code == 1 and "cannot be" not in ended.text:
        a.fail("no word of what cannot be written")
    a.run(*COMMAND)
    _compare(a, _results(a))


def _damaged(a: Attack) -> None:
    """Run a sweep again of which a file is damaged: it never ends because one file is odd."""
    shutil.copytree(_whole(a).folder, a.folder, symlinks=True, dirs_exist_ok=True)
    folder = a.folder / SWEEP
    victim = a.draw.choice([path for path in sorted(folder.rglob("*")) if path.name != "figures"])
    is_of_job = victim.parent != folder or victim.is_dir()
    twins = [path for path in sorted(folder.iterdir()) if (path / "config.yaml").is_file()]
    relative = victim.relative_to(folder)
    other = next((path for path in twins if path.name != relative.parts[0]), folder)
    what = wound(a.draw, victim, other.joinpath(*relative.parts[1:]) if is_of_job else folder / "none")
    a.title = f"{victim.relative_to(a.folder)} {what.text}; the sweep is run again"
    ended = a.run(*COMMAND, allowed=NOT_ALL_DONE if is_of_job else {**REFUSED, **NOT_ALL_DONE})
    untouched = {name: result for name, result in _results(a).items() if name != relative.parts[0]}
    _compare(a, untouched)
    is_told = victim.name in ended.text or relative.parts[0] in ended.text.partition("Sweep outputs")[0]
    if ended.code == 0 and is_of_job and not what.is_forged and not is_told:
        _compare(a, _results(a))


def _two_at_once(a: Attack) -> None:
    a.title = "the same sweep twice at once"
    _both(a, COMMAND)
    a.run(*COMMAND)
    _compare(a, _results(a))


def _two_unnamed(a: Attack) -> None:
    a.title = "two sweeps without a name at once"
    _both(a, COMMAND[:-1])
    folders = [path.parent for path in (a.folder / "outputs/sweeps").glob("*/sweep.yaml")]
    if len(folders) != 2:
        a.fail(f"{len(folders)} folders for two sweeps")
    for folder in folders:
        for job in folder.glob("*/config.yaml"):
            if not (job.parent / "summary.json").is_file():
                a.fail(f"{job.parent.name} has no summary")


def _jobs_at_once(a: Attack) -> None:
    """A process of a sweep with jobs at once is killed, or all are asked to stop; what is left is done afterwards."""
    victim = a.draw.choice(("a job", "a process of the launcher", "the command", "Ctrl-C"))
    delay = a.draw.uniform(0, 4)
    a.title = f"{victim}{'' if victim == 'Ctrl-C' else ' is killed'} {delay:.2f} s into jobs at once"
    running = a.start(*COMMAND, "sweep.jobs_at_once=2", spawned=True)
    end = time.monotonic() + a.deadline
    # a process of the launcher that had no job yet would end minutes after the command alone
    while len(_processes(running, JOB)) < 2 and not running.is_over and time.monotonic() < end:
        time.sleep(10 * POLL_SECONDS)
    running.wait(delay)
    if victim in ("the command", "Ctrl-C"):
        running.send(signal.SIGINT if victim == "Ctrl-C" else signal.SIGKILL)
    elif found := _processes(running, JOB if victim == "a job" else LAUNCHERS_PROCESS):
        running.send(signal.SIGKILL, to=a.draw.choice(found))
    allowed = {"a job": NOT_ALL_DONE, "the command": STOPPED, "Ctrl-C": STOPPED}.get(victim, DONE)
    a.end(running, allowed)
    a.run(*COMMAND)
    _compare(a, _results(a))


def _processes(running: Running, word: str) -> list[int]:
    """The processes of a command that have this word on their command line."""
    return sorted(pid for pid in running.descendants() if word in command_line(pid))


def _both(a: Attack, command: tuple[str, ...]) -> None:
    first = a.start(*command)
    first.wait(a.draw.uniform(0, 0.5))
    second = a.start(*command)
    for running in (first, second):
        running.wait(a.deadline)
    for running in (second, first):  # the later one knows of the earlier one
        a.end(running)


def _jobs(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/summary.json"))}


def _compare(a: Attack, expected: Mapping[str, dict]) -> None:
    for name, result in expected.items():
        a.compare(result, a.folder / SWEEP / name, f"job {name[-12:]}")


def _whole(a: Attack) -> Whole:
    """The sweep that was left alone."""
    return a.templates.whole("whole-sweep", *COMMAND)


def _results(a: Attack) -> dict[str, dict]:
    """The results of its jobs by name."""
    return _results_in(_whole(a).folder / SWEEP)


@cache
def _results_in(folder: Path) -> dict[str, dict]:
    return {name: survival.result(job) for name, job in _jobs(folder).items()}
