"""How much memory settings will take, before any of it is taken, beside what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from runner.config.text import SettingError

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container
GIB = 2**30


def memory_of(device: torch.device) -> int:
    """The bytes of memory that the device has, free or not; of a container what it may take."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return total


def check_memory(setting: str, needed: float, device: torch.device, remedy: str) -> None:
    """Raise a SettingError if `needed` bytes, at the least, are more than the device has."""
    available = memory_of(device)
    if needed > available:
        raise SettingError(
            f"{setting}: this takes about {needed / GIB:,.0f} GiB of memory, and this machine's "
            f"{'GPU' if device.type == 'cuda' else 'CPU'} has {available / GIB:,.0f} GiB. {remedy}"
        )
