"""Waiting for loader processes that may have died, hang, or have no room left: an end and a word for each."""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from runner.data.dataset import DataFault
from runner.distributed.signals import StopRequested, stop_requested

LOOK_EVERY_SECONDS = 1  # how long the loader waits before it is asked whether to go on
NO_SHARED_MEMORY = "shared memory is full: raise --shm-size or set dataset.num_workers=0."
NO_FILES = "too many open files: raise `ulimit -n`, or set dataset.num_workers to fewer."
HINTS = {  # by what the error says
    "killed by signal: Bus error": NO_SHARED_MEMORY,
    "out of shared memory": NO_SHARED_MEMORY,
    os.strerror(errno.ENOSPC): NO_SHARED_MEMORY,
    os.strerror(errno.EMFILE): NO_FILES,
    "items of ancdata": NO_FILES,  # where the socket drops the descriptor of a batch
    "killed by signal": "there may be too little memory: set dataset.num_workers to fewer, or to 0.",
    "exited unexpectedly": "there may be too little memory: set dataset.num_workers to fewer, or to 0.",
}
FATAL = ("DataLoader worker", "shared memory", *(os.strerror(number) for number in (errno.ENOSPC, errno.EMFILE)))


def batches_of(loader: DataLoader, seconds: float) -> Iterator[Any]:
    """The loader's batches. It is asked again and again, so that a signal can end the wait for its processes.

    Raises DataFault if none comes for so many seconds, and if a process dies; StopRequested if a single-process run
    was asked to stop.
    """
    waits, batches = loader.num_workers > 0, None
    try:
        batches = iter(loader)
        while (batch := _next(batches, seconds) if waits else next(batches, None)) is not None:
            yield batch
    except (OSError, RuntimeError) as error:
        crashed = any(process.exitcode == -signal.SIGBUS for process in getattr(batches, "_workers", ()))
        _end_workers(batches)
        fault = DataFault(NO_SHARED_MEMORY) if crashed else loader_fault(error) if waits else None
        if fault is None:
            raise
        raise fault from error
    except (StopRequested, KeyboardInterrupt):
        _end_workers(batches)
        raise


def loader_fault(error: Exception) -> DataFault | None:
    """What to tell if `error` is torch's word of a loader process in trouble; it comes at any moment of a run."""
    text = str(error)
    if isinstance(error, DataFault) or not any(part in text for part in (*FATAL, "ancdata")):
        return None
    hint = next((hint for part, hint in HINTS.items() if part in text), None)
    if hint in (NO_SHARED_MEMORY, NO_FILES):
        return DataFault(hint)
    return DataFault(f"a loader process died ({text.splitlines()[0].rstrip('. ')}); {hint}") if hint else None


def _next(batches: Iterator[Any], seconds: float) -> Any:
    """The next batch, None at the end."""
    end = time.monotonic() + seconds
    while True:
        if stop_requested():
            raise StopRequested
        try:
            return next(batches, None)
        except RuntimeError as error:
            if "DataLoader timed out" not in str(error):
                raise
        if time.monotonic() > end:
            raise DataFault(
                f"dataset.timeout_seconds={seconds:g}: the loader processes gave no batch for so long. Do the files "
                "lie on a disk that hangs? If they only need longer, raise the limit."
            )


def in_shared_memory(batch: Any) -> Any:
    """In a loader process: the batch, its tensors where the main process can see them, or the word that none fit.

    Else torch would move them in a thread, which loses a batch that does not fit, and nobody hears of it.
    """
    if get_worker_info() is not None:
        try:
            for tensor in batch:
                if isinstance(tensor, Tensor):
                    tensor.share_memory_()
        except (OSError, RuntimeError) as error:
            fault = loader_fault(error)
            if fault is None:
                raise
            return batch._replace(images=None, targets=None, fault=fault)
    return batch


def _end_workers(batches: Iterator[Any] | None) -> None:
    """Ask the loader's processes to end, also those that are stopped; torch would wait for one after the other."""
    if hasattr(signal, "sigwaitinfo"):  # they end with exit code 0 then, see runner.data.file_loader
        for process in getattr(batches, "_workers", ()):
            process.terminate()
    _wake()


def _wake() -> None:
    """Let processes that are stopped go on, so that the end that is asked of them can come."""
    for process in multiprocessing.active_children():
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)


atexit.register(_wake)  # before multiprocessing waits for its processes
