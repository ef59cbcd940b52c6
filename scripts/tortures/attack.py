"""One attack: what it draws from its seed, the folder it plays in, what it ran, and what did not survive."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from random import Random
from typing import TypeVar

from tortures import survival
from tortures.file_calls import Act, number_of_calls, watched
from tortures.processes import Ended, Running, as_typed, fork, runner_command, script_command, spawn

T = TypeVar("T")
DONE = {0: "it is done"}
REFUSED = {**DONE, 2: "it is refused"}
RUN, SWEEP = "outputs/runs/run", "outputs/sweeps/sweep"
TINY = ("dataset=random", "dataset.num_images=16", "dataset.image_size=8", "train.global_batch_size=8")
TINY += ("model=resnet20", "train.device=cpu", "wandb.mode=disabled")


class CannotBegin(RuntimeError):
    """A template could not be made: its command fails without an attack."""


@dataclass(frozen=True)
class Whole:
    """A command that was left alone: its working directory, how many calls changed files, and its seconds."""

    folder: Path
    calls: int
    seconds: float

    @cached_property
    def result(self) -> dict:
        """The result of the run `RUN`."""
        return survival.result(self.folder / RUN)


@dataclass
class Attack:
    """Number `number` of a kind under a seed: the same three, the same attack.

    `folder` is the working directory of its commands. `templates` is what all attacks share: results to compare with
    and folders to copy. `title` says in a few words what is done; `reasons` why it did not survive, if it did not.
    """

    kind: str
    seed: int
    number: int
    folder: Path
    templates: Templates
    deadline: float
    title: str = ""
    reasons: list[str] = field(default_factory=list)
    transcript: list[Ended] = field(default_factory=list)
    trace: str = ""  # of an error in this script
    draw: Random = field(init=False)
    started: list[Running] = field(default_factory=list, repr=False)
    _numbers: Iterator[int] = field(default_factory=count, repr=False)

    def __post_init__(self) -> None:
        self.draw = Random(f"{self.seed}/{self.kind}/{self.number}")
        self.folder.mkdir(parents=True)

    @property
    def again(self) -> str:
        """The command that runs it again, alone."""
        return f"python scripts/torture.py {self.kind} --seed {self.seed} --only {self.number}"

    def new_records(self) -> Path:
        """A new folder beside `folder` for what is written down of a command."""
        path = self.folder.with_name(f"{self.folder.name}.{next(self._numbers)}")
        path.mkdir()
        return path

    def start(self, *arguments: str, act: Act | None = None, spawned: bool = False) -> Running:
        """Start `python -m runner ARGUMENTS`; `act` decides on its changes of files."""
        if spawned:
            return self.noted(spawn(arguments, self.folder, self.new_records(), dict([survival.SECRET])))
        return self.forked(runner_command(arguments), as_typed(arguments), act)

    def end(
        self,
        running: Running,
        allowed: Mapping[int, str] = DONE,
        *,
        is_quiet: bool = False,
        seconds: float | None = None,
    ) -> Ended:
        """Wait for a command's end, at most so many seconds, and judge it."""
        ended = running.end(seconds or self.deadline)
        self.transcript.append(ended)
        self.reasons += survival.faults(ended, allowed, is_quiet=is_quiet)
        return ended

    def run(self, *arguments: str, allowed: Mapping[int, str] = DONE, act: Act | None = None) -> Ended:
        """`python -m runner ARGUMENTS` to its end; after a refusal nothing may have changed."""
        return self.ended_or_unchanged(lambda: self.end(self.start(*arguments, act=act), allowed, is_quiet=True))

    def script(self, name: str, *arguments: str, allowed: Mapping[int, str] = DONE, act: Act | None = None) -> Ended:
        """`python scripts/NAME.py ARGUMENTS` to its end; after a refusal nothing may have changed."""
        command = shlex.join(["python", f"scripts/{name}.py", *arguments])
        return self.call(script_command(name, arguments), command, allowed=allowed, act=act)

    def call(
        self, call: Callable[[], object], command: str, *, allowed: Mapping[int, str] = DONE, act: Act | None = None
    ) -> Ended:
        """Something else in a forked child, to its end; after a refusal nothing may have changed."""
        return self.ended_or_unchanged(lambda: self.end(self.forked(call, command, act), allowed, is_quiet=True))

    def forked(self, call: Callable[[], object], command: str, act: Act | None = None) -> Running:
        """Start `call` in a forked child; `act` decides on its changes of files."""
        records = self.new_records()
        call = watched(call, self.folder, records / "calls", act) if act else call
        return self.noted(fork(call, command, self.folder, records, dict([survival.SECRET])))

    def kill_all(self) -> None:
        """End what it started and has not waited for, as after Ctrl-C or an error."""
        for running in self.started:
            running.kill_all()

    def noted(self, running: Running) -> Running:
        """Something else that it started."""
        self.started.append(running)
        return running

    def fail(self, *reasons: str) -> None:
        """It did not survive."""
        self.reasons += reasons

    def compare(self, expected: Mapping[str, object], folder: Path, what: str = "the run") -> None:
        """It fails if a run's result is another than the one expected."""
        try:
            different = survival.differences(expected, survival.result(folder))
        except (OSError, ValueError) as error:
            different = [f"{type(error).__name__}: {error}"]
        if different:
            self.fail(f"{what} differs from one that was left alone: {', '.join(different)}")

    def expect_no_more_files(self, whole: Whole) -> None:
        """It fails if the run `RUN` has files that a run left alone has not."""
        if more := sorted(survival.tree(self.folder / RUN).keys() - survival.tree(whole.folder / RUN).keys()):
            self.fail(f"files that a whole run does not leave: {', '.join(more[:3])}")

    def ended_or_unchanged(self, end: Callable[[], Ended], *, but_folders: bool = False) -> Ended:
        """`end()`; after a refusal nothing may have changed, `but_folders` but for new folders."""
        before = survival.tree(self.folder)
        ended = end()
        after = survival.tree(self.folder)
        if but_folders:
            after = {path: content for path, content in after.items() if content != "folder" or path in before}
        if ended.code == 2 and (changed := survival.changes(before, after)):
            self.fail(f"written on a refusal: {', '.join(changed)}")
        return ended


@dataclass
class Templates:
    """Folders that many attacks begin from, and results they compare with: each is made once, by whoever needs it."""

    root: Path
    deadline: float
    results: dict[str, object] = field(default_factory=dict)

    def made(
        self, name: str, make: Callable[[Attack], object], read: Callable[[Attack], T] = lambda maker: maker.folder
    ) -> T:
        """What `read` finds in the working directory `name` after `make`; both run once, whoever asks first."""
        if name not in self.results:
            maker = Attack("template", 0, 0, self.root / name, self, self.deadline)
            make(maker)
            if maker.reasons:
                shutil.rmtree(maker.folder)
                raise CannotBegin(f"{name}: {'; '.join(maker.reasons)}\n{said(maker.transcript)}")
            self.results[name] = read(maker)
        return self.results[name]

    def copy(self, name: str, make: Callable[[Attack], object], into: Attack) -> None:
        """Begin an attack from a copy of that working directory."""
        shutil.copytree(self.made(name, make), into.folder, symlinks=True, dirs_exist_ok=True)

    def whole(self, name: str, *command: str, spawned: bool = False, seconds: float | None = None) -> Whole:
        """A command of the runner that was left alone."""

        def make(maker: Attack) -> None:
            act = None if spawned else lambda *_: None
            maker.end(maker.start(*command, act=act, spawned=spawned), seconds=seconds)

        def read(maker: Attack) -> Whole:
            [running], [ended] = maker.started, maker.transcript
            return Whole(maker.folder, number_of_calls(running.records / "calls"), ended.seconds)

        return self.made(name, make, read)


def said(transcript: Sequence[Ended]) -> str:
    """Every command of an attack, with what it printed."""
    parts = []
    for ended in transcript:
        parts.append(f"$ {ended.command[:2000]}")
        parts += [text.rstrip()[-6000:] for text in (ended.out, ended.err) if text.strip()]
        parts.append(f"(exit code {ended.code}, {ended.seconds:.1f} s)")
    return "\n".join(parts).encode(errors="backslashreplace").decode()
