"""The provenance of a result: command, code, versions and hardware."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path

from runner.config.secrets import redact

PACKAGES = ("torchvision", "numpy", "hydra-core", "omegaconf", "wandb", "rich", "scikit-learn", "timm")
GIT_TIMEOUT_SECONDS = 5


def provenance(command: Sequence[str]) -> dict:
    """The provenance of a run started by `command` (the program and its arguments), as plain data.

    `git` is None outside a git checkout. Environment variables, host and user names may be private and are left out.
    """
    return {
        "command": shlex.join(map(redact, command)),
        "git": _git_state(Path(__file__).resolve().parents[1]),
        "versions": _versions(),
        "hardware": _hardware(),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _git_state(package: Path) -> dict | None:
    """Commit and state of the checkout that tracks `package`.

    A package installed into the virtual environment of another project lies in that project's checkout, but is not
    tracked by it.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    top = _git(package, "rev-parse", "--show-toplevel")
    changes = _git(Path(top) if top else package, "status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command; None if it fails or hangs, or git is not installed."""
    # GIT_DIR and similar variables would point git at another repository
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available() and torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _hardware() -> dict[str, object]:
    import torch

    hardware = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": None,
        "gpu_memory_gib": None,
        "num_gpus": 0,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        hardware["gpu"] = properties.name
        hardware["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        hardware["num_gpus"] = torch.cuda.device_count()
    return hardware


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
