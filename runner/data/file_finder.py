"""Finding the image files of a data set: each once, without the leftovers of other programs."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import translate
from pathlib import Path
from typing import NamedTuple

from runner.data.dataset import Findings

# of file managers, notebooks, editors, archives and storage devices, in lower case
LEFTOVERS = (".*", "*~", "~$*", "#*#", "__macosx", "thumbs.db", "ehthumbs*.db", "desktop.ini", "icon\r", "lost+found")
LEFTOVERS += ("$recycle.bin", "system volume information", "@eadir", "@tmp", "@recycle")
LEFTOVERS += ("@recently-snapshot", "#recycle", "#snapshot", "__pycache__")
MAX_NAMES = 3  # of files and folders in a message
UNKNOWN_INODES = (0, 0xFFFFFFFF)  # from user-space file systems

Identity = tuple[int, int] | str  # (device, inode), or the path if the file system has no inodes

_is_leftover = re.compile("|".join(map(translate, LEFTOVERS))).fullmatch


class FileEntry(NamedTuple):
    """A file or folder. A broken link counts as a file, which cannot be read."""

    path: str
    kind: str  # file, folder, or pipe or device
    identity: Identity

    @property
    def ending(self) -> str:
        return os.path.splitext(self.path)[1].lower()

    def is_file(self, endings: Sequence[str]) -> bool:
        """Whether this is a file with one of the endings."""
        return self.kind == "file" and self.ending in endings


class FileFinder:
    """Finds files with given endings (lower case), and records all that it leaves out.

    Follows links, except to a folder above them. Several links, symbolic or hard, to one file have one identity.
    """

    def __init__(self) -> None:
        self.leftovers: list[str] = []  # names as in `LEFTOVERS`
        self.repeated: list[str] = []  # reached before
        self.beside: list[str] = []  # images that lie beside the folders of classes
        self.unreadable: dict[str, str] = {}  # folders, pipes and devices with the ending of an image -> what they are
        self.others: Counter[str] = Counter()  # endings that were not looked for; folders, pipes and the like
        self._first_paths: dict[Identity, str] = {}

    def folders(self, parent: str | Path, beside: Sequence[str]) -> list[str]:
        """The sorted names of the folders in a folder. Records files with an ending of `beside`."""
        above = _identities_above(parent)
        entries = self._entries(parent)
        folders = [entry for entry in entries if entry.kind == "folder"]
        self.beside += [entry.path for entry in entries if entry.is_file(beside)]
        self.repeated += [entry.path for entry in folders if entry.identity in above]
        return sorted(os.path.basename(entry.path) for entry in folders if entry.identity not in above)

    def here(self, folder: str | Path, endings: Sequence[str]) -> list[FileEntry]:
        """The files in a folder under all their names; files before links, each sorted."""
        entries = self._entries(folder)
        for entry in entries:
            if not entry.is_file(endings):
                self._leave_out(entry, endings)
        return [entry for entry in entries if entry.is_file(endings)]

    def below(self, top: str | Path, endings: Sequence[str]) -> dict[Identity, str]:
        """The files in a folder and below it, each once, sorted by folder and name."""
        files: dict[Identity, str] = {}
        reached = _identities_above(top)
        waiting = [str(top)]
        while waiting:
            folders = []
            for entry in self._entries(waiting.pop()):
                if entry.identity in reached or entry.identity in files:
                    self.repeated.append(entry.path)
                elif entry.kind == "folder" and entry.ending not in endings:
                    reached.add(entry.identity)
                    folders.append(entry.path)
                elif entry.is_file(endings):
                    files[entry.identity] = entry.path
                else:
                    self._leave_out(entry, endings)
            waiting += reversed(folders)
        return dict(sorted(files.items(), key=lambda item: os.path.split(item[1])))

    def _leave_out(self, entry: FileEntry, endings: Sequence[str]) -> None:
        if entry.ending in endings:
            self.unreadable[entry.path] = f"it is no file but a {entry.kind}"
            return
        self.others[entry.ending if entry.kind == "file" else f"{entry.kind}s"] += 1

    def _entries(self, folder: str | Path) -> list[FileEntry]:
        """The entries of a folder: files before links to them, so that a file has its own name."""
        try:
            device = os.stat(folder).st_dev
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            raise ValueError(f"dataset.root: the folder {folder} cannot be read ({error.strerror}).") from None
        kept = []
        for entry in entries:
            if _is_leftover(entry.name.lower()):
                self.leftovers.append(entry.path)
            else:
                kept.append(self._with_own_identity(_entry(entry, device)))
        return kept

    def _with_own_identity(self, entry: FileEntry) -> FileEntry:
        """Identify an entry by its path if the file system gives two files one inode number."""
        first = self._first_paths.setdefault(entry.identity, entry.path)
        if first is entry.path or _is_same_file(first, entry.path):
            return entry
        return entry._replace(identity=entry.path)

    def findings(self) -> Findings:
        """What was left out."""
        notes = []
        for paths, what in (
            (self.leftovers, "left out, which file managers, notebooks or archives leave behind"),
            (self.repeated, "reached a second time, through links, and taken once"),
            (self.beside, "left out, which lie beside the folders of the classes"),
        ):
            if paths:
                kind = "file or folder" if len(paths) == 1 else "files or folders"
                names = [os.path.join(*path.split(os.sep)[-2:]) for path in paths[: MAX_NAMES + 1]]
                notes.append(f"{len(paths):,} {kind} {what}: {first(names, len(paths))}")
        if self.others:
            counts = [f"{number:,} {ending or 'without ending'}" for ending, number in self.others.most_common()]
            notes.append(f"left out, since they end on nothing that is read: {', '.join(counts)}")
        lists = {"leftovers": self.leftovers, "repeated": self.repeated, "beside": self.beside}
        counts = {**{name: len(paths) for name, paths in lists.items()}, "others": self.others.total()}
        return Findings([("note", note) for note in notes], {"left_out": counts})


def check_disjoint(one: Mapping[Identity, str], other: Mapping[Identity, str], *, place: str, what: str) -> None:
    """Raise a ValueError, with `place` and `what`, if `one` and `other` share files through links."""
    shared = [identity for identity in one if identity in other]
    if shared:
        raise ValueError(
            f"{place}: {what}, and links lead to {len(shared):,} from both; the first is {one[shared[0]]}, which is "
            f"{other[shared[0]]} too. Remove one of the two."
        )


def _entry(entry: os.DirEntry[str], device: int) -> FileEntry:
    """Calls stat for links and folders only: a million files take seconds on a slow disk too."""
    if not (entry.is_symlink() or entry.is_dir() or entry.inode() in UNKNOWN_INODES):
        return FileEntry(entry.path, "file" if entry.is_file() else "pipe or device", (device, entry.inode()))
    try:
        status = entry.stat()
    except OSError:  # a broken or circular link
        return FileEntry(entry.path, "file", entry.path)
    kind = "folder" if stat.S_ISDIR(status.st_mode) else "file" if stat.S_ISREG(status.st_mode) else "pipe or device"
    return FileEntry(entry.path, kind, (status.st_dev, status.st_ino))


def _identities_above(folder: str | Path) -> set[Identity]:
    """The identities of a folder and its parents, with and without links resolved."""
    names = (Path(os.path.abspath(folder)), Path(os.path.realpath(folder)))
    statuses = [os.stat(path) for path in {parent for name in names for parent in (name, *name.parents)}]
    return {(status.st_dev, status.st_ino) for status in statuses}


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def first(names: Sequence[str], number: int | None = None) -> str:
    """The first names, and how many more there are of `number`, by default all of `names`."""
    more = (len(names) if number is None else number) - MAX_NAMES
    return f"{', '.join(names[:MAX_NAMES])}{f' and {more:,} more' if more > 0 else ''}"
