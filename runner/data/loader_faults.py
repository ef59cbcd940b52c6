"""Errors of DataLoader workers: that died, hang, or have no memory or files left."""

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

POLL_SECONDS = 1  # the timeout of the DataLoader, after which the wait for a batch is checked
NO_SHARED_MEMORY = "shared memory is full: raise --shm-size or set dataset.num_workers=0."
NO_FILES = "too many open files: raise `ulimit -n`, or set dataset.num_workers to fewer."
REMEDIES = {  # by a part of torch's error message
    "killed by signal: Bus error": NO_SHARED_MEMORY,
    "out of shared memory": NO_SHARED_MEMORY,
    os.strerror(errno.ENOSPC): NO_SHARED_MEMORY,
    os.strerror(errno.EMFILE): NO_FILES,
    "items of ancdata": NO_FILES,  # the socket dropped a batch's descriptor
    "killed by signal": "there may be too little memory: set dataset.num_workers to fewer, or to 0.",
    "exited unexpectedly": "there may be too little memory: set dataset.num_workers to fewer, or to 0.",
}
LOADER_ERRORS = ("DataLoader worker", "shared memory", os.strerror(errno.ENOSPC), os.strerror(errno.EMFILE))


def batches_of(loader: DataLoader, seconds: float) -> Iterator[Any]:
    """The loader's batches, which a signal can interrupt while it waits for a worker.

    Raises DataFault if no batch comes for `seconds`, and if a worker dies; StopRequested if a single-process run was
    asked to stop.
    """
    waits, batches = loader.num_workers > 0, None
    try:
        batches = iter(loader)
        while (batch := _next(batches, seconds) if waits else next(batches, None)) is not None:
            yield batch
    except (OSError, RuntimeError) as error:
        crashed = any(process.exitcode == -signal.SIGBUS for process in getattr(batches, "_workers", ()))
        _end_workers(batches)
        fault = DataFault(NO_SHARED_MEMORY) if crashed else loader_fault(error, in_loader=True) if waits else None
        if fault is None:
            raise
        raise fault from error
    except (StopRequested, KeyboardInterrupt):
        _end_workers(batches)
        raise


def loader_fault(error: Exception, *, in_loader: bool = False) -> DataFault | None:
    """The DataFault for an error of torch about its workers, which it may raise at any moment of a run.

    None for other errors. An OSError is one only if it was raised `in_loader`.
    """
    text = str(error)
    kinds = (OSError, RuntimeError) if in_loader else RuntimeError
    if isinstance(error, DataFault) or not isinstance(error, kinds):
        return None
    if not any(part in text for part in (*LOADER_ERRORS, "ancdata")):
        return None
    remedy = next((remedy for part, remedy in REMEDIES.items() if part in text), None)
    if remedy in (NO_SHARED_MEMORY, NO_FILES):
        return DataFault(remedy)
    return DataFault(f"a loader process died ({text.splitlines()[0].rstrip('. ')}); {remedy}") if remedy else None


def _next(batches: Iterator[Any], seconds: float) -> Any:
    """The next batch. None at the end."""
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
    """In a worker: move the batch's tensors to shared memory, or return the fault if they do not fit.

    Otherwise torch moves them in a thread and silently loses a batch that does not fit.
    """
    if get_worker_info() is not None:
        try:
            for tensor in batch:
                if isinstance(tensor, Tensor):
                    tensor.share_memory_()
        except (OSError, RuntimeError) as error:
            fault = loader_fault(error, in_loader=True)
            if fault is None:
                raise
            return batch._replace(images=None, targets=None, fault=fault)
    return batch


def _end_workers(batches: Iterator[Any] | None) -> None:
    """End the workers together, also stopped ones. Torch would wait for one after the other."""
    if hasattr(signal, "sigwaitinfo"):  # see _exit_on_sigterm_of_main: exit code 0
        for process in getattr(batches, "_workers", ()):
            process.terminate()
    _continue_children()


def _continue_children() -> None:
    """Continue stopped child processes, so that they can end."""
    for process in multiprocessing.active_children():
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)


atexit.register(_continue_children)  # before multiprocessing waits for its processes
