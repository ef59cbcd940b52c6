"""Two ranks on a CPU, and signals to one of them or to their launcher; then the run goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tortures import survival
from tortures.attack import DONE, RUN, TINY, Attack
from tortures.processes import Running, command_line

SETTINGS = (*TINY, "dataset.num_images=64", "train.epochs=4", "train.checkpoint_every_steps=2", "train.num_devices=2")
COMMAND = (*SETTINGS, "name=run", "train.auto_resume=true")
DEADLINE_SECONDS = 120
FAILED = {1: "a rank died"}
INTERRUPTED = {130: "it was interrupted"}


@dataclass(frozen=True)
class Blow:
    """Signals: each with who gets it (rank 0 or 1, or the launcher) and the seconds to wait after it."""

    text: str
    signals: tuple[tuple[int | str, int, float], ...]
    allowed: Mapping[int, str]
    words: tuple[str, ...] = ()


def attack(a: Attack) -> None:
    """Hit a run of two ranks at a random moment of its training; let it go on, and compare the end."""
    whole = a.templates.whole("whole-ranks", *COMMAND, spawned=True, seconds=DEADLINE_SECONDS)
    blow = a.draw.choice(_blows(a.draw.randrange(2)))
    moment = a.draw.uniform(0, 1.0)
    a.title = f"two ranks, {blow.text} {moment:.2f} s after the first checkpoint"
    running = a.start(*COMMAND, *blow.words, spawned=True)
    ranks = _once_it_trains(a, running)
    time.sleep(moment)
    for target, number, seconds in blow.signals:
        if target == "launcher":
            running.send(number)
        elif len(ranks) == 2:
            running.send(number, to=ranks[target])
        running.wait(seconds)
    a.end(running, {**DONE, **blow.allowed}, seconds=DEADLINE_SECONDS)
    if fault := survival.checkpoint_fault(a.folder / RUN):
        a.fail(fault)
    a.end(a.start(*COMMAND, spawned=True), seconds=DEADLINE_SECONDS)
    a.compare(whole.result, a.folder / RUN)


def _blows(rank: int) -> list[Blow]:
    return [
        Blow(f"SIGKILL to rank {rank}", ((rank, signal.SIGKILL, 0),), FAILED),
        Blow(f"SIGTERM to rank {rank}", ((rank, signal.SIGTERM, 0),), {**FAILED, **INTERRUPTED}),
        Blow(f"SIGINT to rank {rank}", ((rank, signal.SIGINT, 0),), {**FAILED, **INTERRUPTED}),
        Blow("SIGKILL to the launcher", (("launcher", signal.SIGKILL, 0),), {-signal.SIGKILL: "it was killed"}),
        Blow("SIGTERM to the launcher", (("launcher", signal.SIGTERM, 0),), INTERRUPTED),
        Blow(
            "SIGINT twice to the launcher",
            (("launcher", signal.SIGINT, 0.3), ("launcher", signal.SIGINT, 0)),
            INTERRUPTED,
        ),
        Blow(f"rank {rank} stands still for 2 s", ((rank, signal.SIGSTOP, 2), (rank, signal.SIGCONT, 0)), {}),
        Blow(
            f"rank {rank} stands still, SIGTERM to the launcher",
            ((rank, signal.SIGSTOP, 1), ("launcher", signal.SIGTERM, 0)),
            {**INTERRUPTED, **FAILED},
        ),
        Blow(
            f"rank {rank} stands still, Ctrl-C twice",
            ((rank, signal.SIGSTOP, 1), ("launcher", signal.SIGINT, 1), ("launcher", signal.SIGINT, 0)),
            {**INTERRUPTED, **FAILED},
        ),
        Blow(
            f"rank {rank} stands still, train.rank_timeout=5",
            ((rank, signal.SIGSTOP, 0),),
            FAILED,
            ("train.rank_timeout=5",),
        ),
    ]


def _once_it_trains(a: Attack, running: Running) -> list[int]:
    """The process ids of the ranks, as soon as a checkpoint is there."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not (a.folder / RUN / "checkpoints/last.pt").exists() and not running.wait(0.02) and time.monotonic() < end:
        pass
    return sorted(pid for pid in running.descendants() if "spawn_main" in command_line(pid))
