"""A W&B run that mirrors the metrics file; its failures do not stop training."""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config.limits import LIMITS, check
from runner.results.metrics import SPLITS, metric_names

INIT_TIMEOUT_SECONDS = 15
FINISH_TIMEOUT_SECONDS = 60
LONGEST_TAG = 64
SERVICE = "WANDB_SERVICE"  # the variable by which child processes find W&B's service
HOMES = ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
MOST_BINS = 512  # W&B refuses histograms with more
NODES_WITHOUT_COLUMN = ("name", "resume", "sweep", "wandb", "paths")  # say where a run lies, not what it is


def new_run_id(name: str) -> str:
    """A readable id, unique in its project: `name` without the characters that W&B forbids, and a random end.

    Keep it with the run: a resumed run must have the same id.
    """
    return f"{re.sub(r'[^A-Za-z0-9_.=-]+', '-', name).strip('-')[:96]}-{secrets.token_hex(3)}"


def upload_command(folder: Path) -> str:
    """The command that uploads an offline run, or those of a sweep; folders in outputs/ have a short name there.

    >>> from pathlib import Path
    >>> from runner.tracking.wandb_run import upload_command
    >>> upload_command(Path("outputs/runs/digits-resnet18"))
    'python -m runner sync digits-resnet18'
    """
    places = [place for place in ("outputs/runs", "outputs/sweeps") if folder.is_relative_to(place)]
    return f"python -m runner sync {shlex.quote(str(folder.relative_to(places[0]) if places else folder))}"


def override_column(key: str) -> str:
    """The column of an override in W&B's table of runs: `overrides/agc/clip`. W&B reads a dot as nesting."""
    return f"overrides/{key.replace('.', '/')}"


def override_columns(overrides: Sequence[str]) -> dict[str, float | str]:
    """A run's overrides as columns to filter and group by, except those that say where a run lies.

    Numbers stay numbers. A list becomes its entries joined by `+`, since W&B cannot filter by lists.

    >>> from runner.tracking.wandb_run import override_columns
    >>> override_columns(["norm=[ghost_batchnorm,agc]", "agc.clip=2e-2", "seed=1", "sweep.name=s"])
    {'overrides/norm': 'ghost_batchnorm+agc', 'overrides/agc/clip': 0.02, 'overrides/seed': 1}
    """
    columns = {}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if not key.startswith("~") and key.partition(".")[0] not in NODES_WITHOUT_COLUMN:
            columns[override_column(key)] = _column_value(value)
    return columns


def _column_value(text: str) -> float | str:
    text = text.strip("'\"")
    if text.startswith("[") and text.endswith("]"):
        return "+".join(entry.strip(" '\"") for entry in text[1:-1].split(","))
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if math.isfinite(number := kind(text)):
                return number
    return text


class WandbRun:
    """A W&B run in `folder`/wandb.

    `mode` is offline, online or disabled. An online run without an API key is recorded offline, without a question; one
    without a network goes on offline after `INIT_TIMEOUT_SECONDS`. `disabled` does not import wandb.

    The first failure of W&B (import, disk, network, its service process) is passed to `report(text)` and switches W&B
    off: `mode` becomes "disabled" and later calls do nothing.

    Metrics are named `<split>/<metric>` and drawn over `step`, which is W&B's own step too: a resumed run (the same
    `run_id`) continues, and W&B ignores steps that it has. W&B gets `config` as a plain dictionary, but no console
    output, code, git state or host name. `upload` is the command that sends an offline run to an account.
    """

    def __init__(
        self,
        *,
        mode: str = "offline",
        folder: str | os.PathLike[str],
        run_id: str,
        project: str,
        report: Callable[[str], None],
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        config: Mapping[str, object] | None = None,
        job_type: str | None = None,
        upload: str | None = None,
    ) -> None:
        check("wandb", LIMITS["wandb"], mode=mode)
        self.mode = mode
        self.folder = Path(folder)
        self.url: str | None = None
        self.run_folder: Path | None = None
        self._run: Any = None
        self._report = report
        self._upload = upload
        identity = {
            "id": run_id,
            "project": project,
            "name": name,
            "entity": entity,
            "group": group,
            "tags": [tag[:LONGEST_TAG] for tag in tags if tag],
            "config": dict(config or {}),
            "job_type": job_type,
        }
        if mode == "online":
            self._attempt("be reached", self._start, identity, otherwise="offline")
        if self.mode == "offline":
            self._attempt("start", self._start, identity)

    def log(self, row: Mapping[str, object]) -> None:
        """Log a row of the metrics file."""
        if self._run is not None:
            metrics = {name: row[key] for key, name in metric_names(row).items()}
            point = {"step": row["step"], "epoch": row["epoch"], **metrics}
            self._attempt("log", self._run.log, point, step=row["step"])

    def figure(self, name: str, path: Path, *, step: int) -> None:
        """Log a probe's picture as `probe/<name>`.

        If the .npz file beside it has a histogram, `counts` between `edges`, log it as `probe/<name>/histogram`.
        """
        if self._run is not None:
            self._attempt("take a figure", self._log_figure, name, path, step)

    def summary(self, values: Mapping[str, object]) -> None:
        """Add to the run's summary."""
        if self._run is not None:
            self._attempt("write its summary", self._write_summary, values)

    def finish(self, exit_code: int = 0) -> None:
        """Close the run, online after at most `FINISH_TIMEOUT_SECONDS`. Later calls do nothing."""
        if self._run is not None:
            self._attempt("finish", self._run.finish, exit_code=exit_code)
            self._run = None

    def how_to_look(self) -> list[str]:
        """The URL of an online run, or the commands that show an offline run and upload it, each with a remark."""
        if self.run_folder is None:
            return []
        if self.url:
            return [self.url]
        program = "wandb" if shutil.which("wandb") else "python -m wandb"
        commands = [f"{program} leet {_shortened(self.run_folder.parent)}"]
        return [*commands, f"{self._upload}  (needs an account)"] if self._upload else commands

    def _start(self, identity: Mapping[str, object]) -> None:
        (self.folder / "wandb").mkdir(parents=True, exist_ok=True)  # else W&B would write to the system's /tmp
        _give_home(self.folder / "wandb")

        import wandb

        quiet = {"silent": True, "quiet": True, "console": "off"}
        try:
            wandb.setup(settings=wandb.Settings(mode=self.mode, **quiet))
        except Exception:  # the environment names a service that is no more, of the process that started this one say
            self._leave()
            wandb.setup(settings=wandb.Settings(mode=self.mode, **quiet))
        if self.mode == "online" and not wandb.login(prompt=False, verify=False):
            self.mode = "offline"
            self._report("W&B: no API key found, so this run is recorded offline. `wandb login` stores a key.")
            return
        run = wandb.init(
            mode=self.mode,
            dir=str(self.folder),
            resume="allow",
            reinit="finish_previous",
            save_code=False,
            settings=wandb.Settings(
                **quiet,
                disable_git=True,
                disable_code=True,
                host="",
                init_timeout=INIT_TIMEOUT_SECONDS,
                finish_timeout=FINISH_TIMEOUT_SECONDS,
                finish_timeout_raises=True,
            ),
            **identity,
        )
        for axis in ("step", "epoch"):
            run.define_metric(axis, hidden=True)  # not drawn by themselves; either may be a panel's x axis
        for split in SPLITS:
            run.define_metric(f"{split}/*", step_metric="step")
        self._run = run
        self.url = run.url if self.mode == "online" else None
        self.run_folder = Path(run.settings.sync_dir)

    def _write_summary(self, values: Mapping[str, object]) -> None:
        self._run.log({}, commit=True)  # the last row, whose values would replace those of the summary
        self._run.summary.update(dict(values))

    def _log_figure(self, name: str, path: Path, step: int) -> None:
        import wandb

        point = {"step": step, f"probe/{name}": wandb.Image(str(path))}
        if histogram := _histogram(path.with_suffix(".npz")):
            point[f"probe/{name}/histogram"] = wandb.Histogram(np_histogram=histogram)
        self._run.log(point, step=step)

    def _attempt(self, action: str, call: Callable[..., object], *args: object, otherwise="disabled", **kwargs) -> None:
        """Call W&B and report a failure instead of raising it; W&B's errors have no common base class."""
        try:
            call(*args, **kwargs)
        except Exception as error:
            self._run = None
            self.mode = otherwise
            reason = (str(error).strip() or "no reason given").splitlines()[0][:160]
            then = "goes on offline" if otherwise == "offline" else "goes on without it; metrics.jsonl is complete"
            self._report(f"W&B could not {action} ({type(error).__name__}: {reason}). The run {then}.")
            self._leave()

    def _leave(self) -> None:
        """Disconnect from W&B's service: a dead one prints a traceback at exit and breaks later runs."""
        wandb = sys.modules.get("wandb")
        if wandb is not None:
            with contextlib.suppress(Exception):
                wandb.teardown(exit_code=1)
        os.environ.pop(SERVICE, None)


def _give_home(folder: Path) -> None:
    """Have W&B write its caches and settings into `folder` where the home folder cannot be written.

    Its service would else print its log among the epochs.
    """
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wandb"
        home.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(home, os.W_OK)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        is_writable = False
    for name in () if is_writable else HOMES:
        os.environ.setdefault(name, os.path.abspath(folder / "home"))


def _histogram(path: Path) -> tuple[Any, Any] | None:
    """`counts` and `edges` in a probe's file, with adjacent bins merged to at most `MOST_BINS`."""
    if not path.is_file():
        return None
    import numpy as np

    from runner.results.measurement import Measurement

    arrays = Measurement.load(path).arrays
    if not {"counts", "edges"} <= arrays.keys():
        return None
    counts, edges = arrays["counts"], arrays["edges"]
    width = -(-len(counts) // MOST_BINS)
    return np.add.reduceat(counts, range(0, len(counts), width)), np.append(edges[:-1:width], edges[-1])


def _shortened(path: Path) -> str:
    """`path` relative to the working directory if it lies in it."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
