"""The processes of one run: started here through torch's elastic launcher, or by torchrun outside.

`train.num_devices=8` starts eight on this machine. Under `torchrun --nproc-per-node=8 -m runner ...`, on one machine or
several, each process is a rank already, and joins the others.
"""

from __future__ import annotations

import logging
import os
import shlex
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from runner.config.secrets import redact
from runner.config.settings import Settings
from runner.config.text import SettingError
from runner.config.trust import places_again, words_again
from runner.distributed import collectives, environment
from runner.distributed.signals import STOP_SIGNALS, raise_on_signal
from runner.distributed.watch import RankWatch, rendezvous_folder, start_heartbeat
from runner.experiment import run as experiment
from runner.experiment.check import check
from runner.results.job import Job
from runner.results.run_folder import RunFolder
from runner.tracking.console import RunConsole
from runner.tracking.tracker import EXIT_CODES
from runner.training.precision import choose_device

ECHOES = ("gloo", "NCCL", *collectives.CONNECTION_LOST_TEXTS)  # of another rank's death
FOLDER = "folder"  # the file in which the first rank says where the run lies


def run(config: Settings, overrides: list[str], command: list[str], job: Job | None = None) -> str:
    """`experiment.run` in as many processes as the configuration says. Raises SettingError before anything is written.

    If one of them dies the others are ended, and the run has failed with the error of the first that died.
    """
    if environment.world_size() > 1:
        with collectives.process_group(_own_device(config.train.device), timeout=config.train.rank_timeout):
            return experiment.run(config, overrides, command, job)
    if config.train.num_devices == 1:
        return experiment.run(config, overrides, command, job)
    check(config)
    with rendezvous_folder() as told:
        arguments = (config, overrides, command, job, str(told), os.getpid())
        launched = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=config.train.num_devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(told)),  # else a folder more
            signals_to_handle="SIGQUIT",  # the others are passed on
        )
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it says is said here
        watch = RankWatch(told, timeout=config.train.rank_timeout)
        try:
            with watch:
                outcomes = elastic_launch(launched, _rank)(*arguments)
        except ChildFailedError as error:
            return _killed(told, config) if watch.signalled_at else _failed(error, watch, config)
    status, refusal = outcomes[0]
    if refusal is not None:
        raise SettingError(refusal)
    return status


@record
def _rank(
    config: Settings, overrides: list[str], command: list[str], job: Job | None, told: str, launcher: int
) -> tuple[str | None, str | None]:
    """One rank of a run that the process `launcher` started: its status, or why its settings were refused."""
    number = int(os.environ["RANK"])
    start_heartbeat(Path(told), number)
    if number > 0:
        warnings.simplefilter("ignore")
    if config.train.device != "cuda" and not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // config.train.num_devices))
    if os.getppid() != launcher:  # it died while this process started
        os._exit(EXIT_CODES["interrupted"])
    timeout = config.train.rank_timeout
    with raise_on_signal(), collectives.process_group(_own_device(config.train.device), timeout=timeout):
        try:
            outcome = experiment.run(config, overrides, command, job, announce=Path(told, FOLDER).write_text), None
        except SettingError as error:
            outcome = None, str(error)
    if os.getppid() != launcher:  # it died, and nobody will ever fetch the outcome, for which torch would wait
        os._exit(EXIT_CODES["interrupted"])
    return outcome


def _own_device(name: str) -> torch.device:
    """This rank's device, which becomes torch's current one."""
    device = choose_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return device


def _place(failure: ProcessFailure) -> tuple[int, int]:
    """Which of several failures comes first: those killed, then those with an error of their own, then the echoes."""
    killed = failure.exitcode < 0 and -failure.exitcode not in STOP_SIGNALS
    echo = -failure.exitcode in STOP_SIGNALS or any(word in str(failure.message) for word in ECHOES)
    return (0 if killed else 2 if echo else 1), failure.timestamp


def _failed(error: ChildFailedError, watch: RankWatch, config: Settings) -> str:
    """Tell of the rank that died first, or that hung, also in the run's folder."""
    number, failure = min(error.failures.items(), key=lambda item: _place(item[1]))
    reason, trace = failure.message, ""
    if isinstance(reason, Mapping):
        trace = str(reason.get("extraInfo", {}).get("py_callstack", ""))
        reason = reason.get("message", reason)
    text = f"rank {number} (process {failure.pid}) failed: {str(reason).strip()}"
    if watch.hung or collectives.is_timeout(str(reason)):
        limit = f"train.rank_timeout={config.train.rank_timeout:g}"
        text = f"{limit}: {watch.hung or f'rank {number} waited so long for another, which did not answer'}"
    console = RunConsole()
    console.message(redact(text), "error")
    folder = _folder(watch.folder)
    if folder is not None:
        folder.write_failure(text, f"{text}\n{trace}", {"metrics": {}, "best": {}, **folder.read_summary()})
        _tell_way_on(console, folder, config)
    return "failed"


def _killed(told: Path, config: Settings) -> str:
    """Tell, also in the run's folder, of ranks that were killed since they did not end when they were asked to."""
    console, folder = RunConsole(), _folder(told)
    console.message("not all ranks ended when they were asked to; they were killed", "warning")
    if folder is not None:
        folder.write_summary({"metrics": {}, "best": {}, **folder.read_summary(), "status": "interrupted"})
        _tell_way_on(console, folder, config)
    return "interrupted"


def _folder(told: Path) -> RunFolder | None:
    """The run's folder, as soon as the first rank has said which."""
    file = told / FOLDER
    return RunFolder(Path(file.read_text())) if file.is_file() else None


def _tell_way_on(console: RunConsole, folder: RunFolder, config: Settings) -> None:
    words = [f"resume={folder.path}", *words_again(config.paths), *places_again(config)]
    again = shlex.join(["python", "-m", "runner", *words])
    console.message(f"go on with: {again}")
