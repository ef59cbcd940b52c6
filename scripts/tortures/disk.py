"""A disk that is full, read-only, forbidden or broken, from any call on; then there is room, and the run goes on."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable

from tortures import survival
from tortures.attack import DONE, RUN, SWEEP, TINY, Attack
from tortures.damage import make_runs
from tortures.file_calls import Refuse
from tortures.kill import RECIPES, STEPS, whole_run
from tortures.processes import as_typed, runner_command

ERRORS = (errno.ENOSPC, errno.ENOSPC, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)
FULL = {1: "something could not be written", **DONE}
NO_FOLDER = {2: "no folder can be made there"}
NEW_MOUNTS = 0x00020000  # CLONE_NEWNS of Linux: mounts that this process alone sees
OUTPUTS = "outputs"


def attack(a: Attack) -> None:
    """Refuse a run what it writes, in one of these ways; then let it go on."""
    way = a.draw.choices((_refused, _file_too_large, _small_disk, _report), (6, 1, 2, 1))[0]
    way(a)


def _refused(a: Attack) -> None:
    recipe = a.draw.choice(list(RECIPES))
    whole = whole_run(a, recipe)
    act = Refuse(a.draw.randint(1, whole.calls), a.draw.choice(ERRORS), lasts=a.draw.random() < 0.7)
    a.title = f"a run ({recipe}) whose disk says {act}"
    command = (*TINY, *RECIPES[recipe], *STEPS)
    allowed = {**FULL, **(NO_FOLDER if act.code in (errno.EACCES, errno.EROFS) else {})}
    # if it lasts, an empty folder made before the disk refused is one that it will not let go of either
    ended = a.ended_or_unchanged(lambda: a.end(a.start(*command, act=act), allowed), but_folders=act.lasts)
    if ended.code in (1, 2) and os.strerror(act.code) not in ended.text:
        a.fail(f"no word of {os.strerror(act.code)!r}")
    _goes_on(a, recipe)


def _file_too_large(a: Attack) -> None:
    """No file may grow beyond a few bytes: this the kernel refuses, also to libraries in C."""
    recipe = a.draw.choice(list(RECIPES))
    most = int(10 ** a.draw.uniform(3.6, 6.5))  # the output is caught in a file, which must have room
    a.title = f"a run ({recipe}) whose files may have {most:,} bytes"

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        runner_command((*TINY, *RECIPES[recipe], *STEPS))()

    _end(a, limited, recipe)
    _goes_on(a, recipe)


def _small_disk(a: Attack) -> None:
    """A real disk of a few kilobytes at outputs/, where this process may mount one."""
    recipe = a.draw.choice(list(RECIPES))
    kilobytes = int(10 ** a.draw.uniform(1, 4.2))
    a.title = f"a run ({recipe}) on a disk of {kilobytes:,} kB"

    def on_small_disk() -> None:
        _mount(OUTPUTS, kilobytes)
        try:
            runner_command((*TINY, *RECIPES[recipe], *STEPS))()
        finally:
            shutil.copytree(OUTPUTS, "saved")  # the disk is gone with this process

    (a.folder / OUTPUTS).mkdir()
    if not _may_mount(a):
        (a.folder / OUTPUTS).rmdir()
        _refused(a)
        return
    _end(a, on_small_disk, recipe)
    (a.folder / OUTPUTS).rmdir()
    (a.folder / "saved").rename(a.folder / OUTPUTS)
    _goes_on(a, recipe)


def _report(a: Attack) -> None:
    """The report of a sweep: what lies there is not lost, and a later report is whole."""
    a.templates.copy("runs", make_runs, a)
    act = Refuse(a.draw.randint(1, 60), a.draw.choice(ERRORS))
    a.title = f"the report of a sweep whose disk says {act}"
    before = survival.tree(a.folder)
    a.script("report", SWEEP, allowed={**FULL, 2: "no report can be written"}, act=act)
    kept = [path for path in before if "report" not in path and "results" not in path and "figures" not in path]
    if lost := survival.changes(before, survival.tree(a.folder), kept):
        a.fail(f"lost: {', '.join(lost)}")
    a.script("report", SWEEP)


def _end(a: Attack, call: Callable[[], object], recipe: str) -> None:
    command = as_typed((*TINY, *RECIPES[recipe], *STEPS))
    ended = a.end(a.forked(call, command), FULL)
    if ended.code == 1 and "cannot be" not in ended.text:
        a.fail("no word of what cannot be written")


def _goes_on(a: Attack, recipe: str) -> None:
    """With room, the same command ends as a run that always had room."""
    whole = whole_run(a, recipe)
    a.run(*TINY, *RECIPES[recipe], *STEPS)
    a.compare(whole.result, a.folder / RUN)
    a.expect_no_more_files(whole)


def _mount(where: str, kilobytes: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    libc.mount(b"none", b"/", None, ctypes.c_ulong(0x4000 | 0x40000), None)  # MS_REC | MS_PRIVATE: nobody else sees it
    if libc.mount(b"torture", where.encode(), b"tmpfs", ctypes.c_ulong(0), f"size={kilobytes}k".encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def _may_mount(a: Attack) -> bool:
    def try_it(maker: Attack) -> bool:
        return maker.forked(lambda: _mount("mount", 64), "mount").end(a.deadline).code == 0

    return a.templates.made("mount-trial", lambda maker: (maker.folder / "mount").mkdir(), try_it)
