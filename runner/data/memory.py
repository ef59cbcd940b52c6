"""How much memory settings will take, before any of it is taken, beside what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from runner.config.text import SettingError

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container
CGROUP_USED, CGROUP_STATISTICS = (CGROUP_LIMIT.with_name(name) for name in ("memory.current", "memory.stat"))
MACHINE = Path("/proc/meminfo")
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


def free_memory() -> int:
    """The bytes of memory that more processes may take; of a container what its limit leaves it."""
    try:
        free = 1024 * _number(MACHINE, "MemAvailable:")
    except (OSError, ValueError):  # not Linux
        return memory_of(torch.device("cpu"))
    try:
        files = _number(CGROUP_STATISTICS, "inactive_file")  # read from disk, and given up if memory is short
        return min(free, int(CGROUP_LIMIT.read_text()) - int(CGROUP_USED.read_text()) + files)
    except (OSError, ValueError):
        return free


def _number(file: Path, name: str) -> int:
    """The number behind a name, on a line of its own. Raises ValueError without one."""
    return int(next((line.split()[1] for line in file.read_text().splitlines() if line.startswith(name)), ""))


def check_memory(setting: str, needed: float, device: torch.device, remedy: str) -> None:
    """Raise a SettingError if `needed` bytes, at the least, are more than the device has."""
    available = memory_of(device)
    if needed > available:
        raise SettingError(
            f"{setting}: this takes about {needed / GIB:,.0f} GiB of memory, and this machine's "
            f"{'GPU' if device.type == 'cuda' else 'CPU'} has {available / GIB:,.0f} GiB. {remedy}"
        )
