"""Options from a folder outside the repository: `paths.extensions=FOLDER paths.allowed_packages=[mynet]`.

The folder holds options of any group as `conf` does, `model/mynet.yaml` or `experiment/mine.yaml`, and beside them the
modules that their `_target_` names. It becomes a search path of Hydra and, before a run, the last one of Python.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from itertools import pairwise
from pathlib import Path
from typing import Any

from runner.config.grammar import all_parsed, quoted
from runner.config.options import CONF, METHOD_GROUPS
from runner.config.ranges import is_path
from runner.config.schema import TOP_LEVEL
from runner.config.targets import OWN_PACKAGE, check_defined
from runner.config.text import SettingError
from runner.config.trust import EXTENSIONS, FORMER

_SEARCH_PATH = "hydra.searchpath"
_CONFIG_DIR = ("--config-dir", "-cd")
_on_path: Path | None = None  # the folder that `use_folder` added


def extensions_folder(path: str) -> Path:
    """The absolute path of a folder with options from outside. Raises SettingError if it cannot be one."""
    if not is_path(path) or not (folder := Path(path).resolve()).is_dir():
        raise SettingError(f"{EXTENSIONS}={path}: there is no such folder.")
    methods = {file.stem for group in METHOD_GROUPS for file in (CONF / group).glob("*.yaml")}
    methods |= {*TOP_LEVEL, "sync_batchnorm", "trained_parameters"}
    for group in (each.name for each in CONF.iterdir() if each.is_dir()):
        for file in sorted((folder / group).rglob("*.yaml")):
            ours = CONF / file.relative_to(folder)
            is_taken = ours.is_file() or (group in METHOD_GROUPS and file.stem in methods)
            if is_taken and not (ours.is_file() and file.samefile(ours)):
                raise SettingError(
                    f"{EXTENSIONS}={path}: {file.relative_to(folder)} has a name of the runner's own; rename the file"
                    f"{' and the node in it' if group in METHOD_GROUPS else ''}."
                )
    return folder


def add_search_path(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments with the folder of `paths.extensions`, made absolute, among Hydra's search paths.

    A search path of the user's own stays. Raises SettingError if there is no such folder.
    """
    given = all_parsed(arguments)
    for override in given:
        if override.key_or_group == FORMER:
            raise SettingError(f"{override.input_line}: it is {EXTENSIONS} now; write {EXTENSIONS}=FOLDER.")
    folders = [override for override in given if override.key_or_group == EXTENSIONS]
    if not folders or folders[-1].value() is None:
        return list(arguments)
    if folders[-1].is_sweep_override() or not isinstance(folders[-1].value(), str):
        raise SettingError(f"{folders[-1].input_line}: it must be one folder; make a sweep for each.")
    folder = str(extensions_folder(folders[-1].value()))
    ours = {override.input_line for override in folders}
    theirs = [override for override in given if override.key_or_group == _SEARCH_PATH]
    ours |= {override.input_line for override in theirs}
    paths = theirs[-1].value() if theirs else []
    paths = [*(paths if isinstance(paths, list) else [paths]), f"file://{folder}"]
    return [
        *(word for word in arguments if word not in ours),
        f"{EXTENSIONS}={quoted(folder)}",
        f"{_SEARCH_PATH}=[{','.join(quoted(str(path)) for path in paths)}]",
    ]


def search_folders(arguments: Sequence[str]) -> list[Path]:
    """The folders with configuration groups that `arguments`, as `add_search_path` gives them, name; our own first.

    These are `--config-dir` and `hydra.searchpath`, in the order in which Hydra looks into them.
    """
    values = [override.value() for override in all_parsed(arguments) if override.key_or_group == _SEARCH_PATH]
    paths = [value for flag, value in pairwise([*arguments, ""]) if flag in _CONFIG_DIR]
    paths += [word.partition("=")[2] for word in arguments if word.partition("=")[0] in _CONFIG_DIR and "=" in word]
    paths += values[-1] if values and isinstance(values[-1], list) else []
    folders = [Path(str(path).removeprefix("file://")) for path in paths]
    return [CONF, *(folder for folder in folders if folder.is_dir())]


def use_folder(folder: Path | None) -> None:
    """Make the modules of `folder` importable: Python looks there last.

    An earlier folder gives way, and its modules are forgotten.
    """
    global _on_path
    if folder == _on_path:
        return
    if _on_path is not None:
        sys.path.remove(str(_on_path))
        inside = f"{_on_path}{os.sep}"
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(inside):
                del sys.modules[name]
    if folder is not None:
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    _on_path = folder


def import_class(target: str) -> type:
    """The class that `target` names, as in `my_method.MyMethod`.

    Raises ValueError with the file and the reason if it cannot be imported.
    """
    found = _import(target)
    if not isinstance(found, type):
        raise ValueError(f"{_file_of(target)} has no class {target.rpartition('.')[2]}")
    check_defined(found, target)
    return found


def import_builder(target: str) -> Callable[..., Any]:
    """The class or function that `target` names. Raises ValueError as `import_class`."""
    found = _import(target)
    if not callable(found):
        raise ValueError(f"{_file_of(target)} has no class or function {target.rpartition('.')[2]}")
    check_defined(found, target)
    return found


def describe_error(error: Exception) -> str:
    """What an error in a module from outside was, and where, as in `FILE, line 3: NameError: ...`."""
    reason = error.msg if isinstance(error, SyntaxError) else f"{error}".partition("\n")[0]
    return f"{_place(error)}{type(error).__name__}: {reason}"


def _import(target: str) -> object:
    """What `target` names; None if its module has nothing of that name."""
    module_name, _, name = target.rpartition(".")
    first = module_name.partition(".")[0]
    own = first == OWN_PACKAGE
    if _on_path is not None and not own:
        _refuse_shadows(_on_path, first)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module from outside may raise anything; the message says what and where
        if own and not isinstance(error, ImportError):
            raise
        if not isinstance(error, ModuleNotFoundError) or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(describe_error(error)) from None
        if _on_path is None:
            raise ValueError(f"there is no {error.name}; say where it lies by paths.extensions=FOLDER") from None
        missing = f"{_on_path / first}.py is missing" if first == error.name else f"there is no {error.name}"
        raise ValueError(missing) from None
    return getattr(module, name, None)


def _file_of(target: str) -> str:
    module = target.rpartition(".")[0]
    return getattr(sys.modules[module], "__file__", None) or module


def _refuse_shadows(folder: Path, first: str) -> None:
    """Raise a ValueError if a module of `folder` has the name of one that Python finds elsewhere."""
    files = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    for path in sorted({*files, *([folder / first] if (folder / first).is_dir() else [])}):
        elsewhere = [entry for entry in sys.path if Path(entry).resolve() != folder]
        for finder in sys.meta_path:
            spec = finder.find_spec(path.stem, elsewhere if finder is PathFinder else None)
            if spec and spec.origin and not Path(spec.origin).resolve().is_relative_to(folder):
                raise ValueError(f"{path} has the name of a module that lies in {spec.origin} too; rename it")


def _place(error: Exception) -> str:
    """Where in the user's files `error` arose, as `FILE, line N: `."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if _on_path and _on_path in Path(frame.filename).parents]
    return f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""
