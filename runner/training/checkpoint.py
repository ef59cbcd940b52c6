"""Checkpoints: written whole or not at all, two generations of the last one, read without running code they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import nn

from runner.files.atomic import CannotWrite, write_atomically
from runner.files.readers import is_there
from runner.files.tensors import read_tensors
from runner.methods.method import Method
from runner.training import checksum

PREVIOUS = "previous.pt"  # the generation before last.pt


@dataclass(frozen=True)
class Latest:
    """The newest checkpoint that can be used. `damaged` says what is wrong with a newer one, which it stands in for."""

    checkpoint: dict
    path: Path
    damaged: str | None = None


def save_checkpoint(path: Path, checkpoint: dict, *, previous: Path | None = None) -> None:
    """Write tensors, numbers, strings and containers of them, atomically and with a checksum.

    The file that was there stays under the name `previous`, if that is given. Raises CannotWrite if there is no room
    or no right to; what was there before then stays as it was.
    """

    def write(file: IO[bytes]) -> None:
        torch.save(checkpoint, file)
        checksum.seal(file)

    try:
        write_atomically(path, write, previous=previous)
    except RuntimeError as error:  # torch tells a full disk by an error of its own, raised over the first
        if not isinstance(error.__context__, OSError):
            raise
        raise CannotWrite.from_os_error(path, error.__context__) from error


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", *, check: Callable[[object], None] | None = None
) -> dict:
    """Read a checkpoint with `weights_only=True`. Raises ValueError if there is none, it is damaged or fails `check`.

    `check` is one of runner.training.checkpoint_content.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such checkpoint.")
    try:
        fault = checksum.fault(path)
        if fault:
            raise ValueError(fault)
        content = read_tensors(path, device)
        if check is not None:
            check(content)
        return content
    except OSError as error:
        raise ValueError(f"{path}: this checkpoint cannot be read; {error.strerror or error}.") from None
    except ValueError as error:
        raise ValueError(f"{path}: this checkpoint cannot be used; {str(error).removesuffix('.')}.") from None


def load_latest(
    last: Path, device: torch.device | str = "cpu", *, check: Callable[[object], None] | None = None
) -> Latest | None:
    """The checkpoint `last`, or the generation before it where it is damaged; None if there is neither.

    Raises ValueError, which names what is damaged, if there is no checkpoint but damaged ones.
    """
    faults = []
    for path in (last, last.with_name(PREVIOUS)):
        if not is_there(path):
            continue
        try:
            return Latest(load_checkpoint(path, device, check=check), path, faults[0] if faults else None)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError(" ".join(faults))
    return None


def restore_model(checkpoint: Mapping, model: nn.Module, methods: Mapping[str, Method]) -> None:
    """Load the model's tensors and the state of its methods, which may say how it is evaluated."""
    model.load_state_dict(checkpoint["model"])
    for name, method in methods.items():
        method.load_state_dict(checkpoint["methods"].get(name, {}))


def random_state(device: torch.device) -> dict:
    """The state of torch's global generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict, device: torch.device) -> None:
    """Take up what `random_state` gave."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
