"""What torchrun tells the processes that it starts, read without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence

from runner.config.text import SettingError

KEY = "train.num_devices"


def world_size() -> int:
    """How many processes torchrun started, on all machines; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ and "RANK" in os.environ else 1


def is_first() -> bool:
    """Whether this process speaks for all."""
    return world_size() == 1 or os.environ["RANK"] == "0"


def with_num_devices(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments with the number of processes that torchrun started as train.num_devices.

    Raises SettingError if they say another number, and for a sweep, whose jobs start their processes themselves.
    """
    number = world_size()
    if number == 1:
        return list(arguments)
    if any(word in ("-m", "--multirun") for word in arguments):
        raise SettingError(f"-m: a sweep under torchrun is no job of its own; use python -m runner -m {KEY}={number}.")
    given = [word.partition("=")[2] for word in arguments if word.startswith(f"{KEY}=")]
    if given and given[-1] != str(number):
        raise SettingError(f"{KEY}={given[-1]}: torchrun started {number} processes; leave out the override.")
    return [*arguments, *([] if given else [f"{KEY}={number}"])]
