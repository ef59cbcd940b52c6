"""The processes that run one function: started here through torch's elastic launcher, or by torchrun outside.

`train.num_devices=8` starts eight on this machine. Under `torchrun --nproc-per-node=8 -m runner ...`, on one machine or
several, each process is a rank already, and joins the others.
"""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from runner.config.text import SettingError
from runner.distributed import collectives
from runner.distributed.signals import EXIT_INTERRUPTED, STOP_SIGNALS, raise_on_signal
from runner.distributed.watch import RankWatch, rendezvous_folder, start_heartbeat

T = TypeVar("T")
ECHOES = ("gloo", "NCCL", *collectives.CONNECTION_LOST_TEXTS)  # of another rank's death
ANNOUNCED = "announced"  # the file with what rank 0 has announced


class RanksFailed(Exception):
    """A rank died or hung, and the others were ended; `announced` is what rank 0 had announced.

    `were_killed` if they did not end when they were asked to. `trace` is the traceback of the first that died.
    """

    def __init__(self, reason: str, announced: str | None, *, trace: str = "", were_killed: bool = False) -> None:
        super().__init__(reason)
        self.announced = announced
        self.trace = trace
        self.were_killed = were_killed


def launch(function: Callable[..., T], *, num_devices: int, device: torch.device, timeout: float) -> T:
    """What `function(announce=...)` returns on rank 0 of `num_devices` processes, each with a device of this type.

    `announce(text)` leaves a text for the launcher. If one rank dies the others are ended, and RanksFailed is raised
    with the error of the first that died. A SettingError of rank 0 is raised here.
    """
    with rendezvous_folder() as folder:
        launched = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder)),  # else a folder more
            signals_to_handle="SIGQUIT",  # the others are passed on
        )
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it says is said here
        watch = RankWatch(folder, timeout=timeout)
        try:
            with watch:
                outcomes = elastic_launch(launched, _rank)(function, device, timeout, str(folder), os.getpid())
        except ChildFailedError as error:
            file = folder / ANNOUNCED
            raise _failure(error, watch, file.read_text() if file.is_file() else None) from None
    value, refusal = outcomes[0]
    if refusal is not None:
        raise SettingError(refusal)
    return value


@record
def _rank(
    function: Callable[..., T], device: torch.device, timeout: float, folder: str, launcher: int
) -> tuple[T | None, str | None]:
    """One rank that the process `launcher` started: what the function returns, or why it refused its settings."""
    number = int(os.environ["RANK"])
    start_heartbeat(Path(folder), number)
    if number > 0:
        warnings.simplefilter("ignore")
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    if os.getppid() != launcher:  # it died while this process started
        os._exit(EXIT_INTERRUPTED)
    with raise_on_signal(), collectives.process_group(own_device(device), timeout=timeout):
        try:
            outcome = function(announce=Path(folder, ANNOUNCED).write_text), None
        except SettingError as error:
            outcome = None, str(error)
    if os.getppid() != launcher:  # it died, and nobody will ever fetch the outcome, for which torch would wait
        os._exit(EXIT_INTERRUPTED)
    return outcome


def own_device(device: torch.device) -> torch.device:
    """The device of this rank, which becomes torch's current one."""
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return device


def _place(failure: ProcessFailure) -> tuple[int, int]:
    """Which of several failures comes first: those killed, then those with an error of their own, then the echoes."""
    killed = failure.exitcode < 0 and -failure.exitcode not in STOP_SIGNALS
    echo = -failure.exitcode in STOP_SIGNALS or any(word in str(failure.message) for word in ECHOES)
    return (0 if killed else 2 if echo else 1), failure.timestamp


def _failure(error: ChildFailedError, watch: RankWatch, announced: str | None) -> RanksFailed:
    """What to tell of the rank that died first, or that hung."""
    if watch.signalled_at:
        text = "not all ranks ended when they were asked to; they were killed"
        return RanksFailed(text, announced, were_killed=True)
    number, failure = min(error.failures.items(), key=lambda item: _place(item[1]))
    reason, trace = failure.message, ""
    if isinstance(reason, Mapping):
        trace = str(reason.get("extraInfo", {}).get("py_callstack", ""))
        reason = reason.get("message", reason)
    text = f"rank {number} (process {failure.pid}) failed: {str(reason).strip()}"
    if watch.hung or collectives.is_timeout(str(reason)):
        limit = f"train.rank_timeout={watch.timeout:g}"
        text = f"{limit}: {watch.hung or f'rank {number} waited so long for another, which did not answer'}"
    return RanksFailed(text, announced, trace=trace)
