"""`sweep.jobs_at_once`: how many jobs of a sweep run at once on this machine, and what each of them may use.

On a machine with GPUs a job takes as many of them as it has processes, and `sweep.jobs_per_device` jobs may share one.
On a CPU the cores are shared out: two processes of one thread do more work than one of two threads. Hydra's joblib
launcher starts the jobs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, flag_override

from runner.config.plugins import LAUNCHER, plugin_fault
from runner.config.settings import Settings
from runner.config.text import SettingError

if TYPE_CHECKING:
    from runner.experiment.check import Checked

AT_ONCE, PER_DEVICE, AUTO = "sweep.jobs_at_once", "sweep.jobs_per_device", "auto"
PROCESS_BYTES = 2**30  # of a job beside its model and its batches: torch, the data, W&B
THREADS, CORES, GPUS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "LOKY_MAX_CPU_COUNT", "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class JobsAtOnce:
    """How many jobs run at once, and the threads of each.

    `devices` are GPUs by their names in CUDA_VISIBLE_DEVICES, and `per_device` jobs may share one; on a CPU there are
    none.
    """

    number: int
    threads: int
    cores: int
    devices: tuple[str, ...] = ()
    per_device: int = 1

    def environment(self, devices: Sequence[str]) -> dict[str, str]:
        """What the environment of a job says of its share of the machine; `devices` are its GPUs."""
        shares = {**dict.fromkeys(THREADS, str(self.threads)), CORES: str(self.cores)}
        return {**shares, GPUS: ",".join(devices)} if devices else shares

    def __str__(self) -> str:
        text = f"{self.number} jobs at once, with {self.threads} thread{'s' * (self.threads > 1)} each"
        if not self.devices:
            return text
        text += f", on GPU {','.join(self.devices)}"
        if self.per_device == 1:
            return text
        mps = "MPS is running" if is_mps_running() else "without MPS, so by turns: nvidia-cuda-mps-control -d starts it"
        return f"{text}, up to {self.per_device} on each ({mps})"


def choose(sweep: Settings, checked: Sequence[Checked], total: int) -> JobsAtOnce | None:
    """What the settings `sweep` ask for; None where one job is to run after the other.

    `checked` are the jobs that are to run, of `total`. Raises SettingError for more jobs than the GPUs may have, and
    without the launcher.
    """
    wanted, per_device = sweep.jobs_at_once, sweep.jobs_per_device
    if wanted is None and per_device > 1:
        wanted = AUTO
    if wanted in (None, 1) or not checked:
        return None
    from joblib import cpu_count  # minds affinity and the quota of a container

    from runner.data.memory import free_memory

    devices = visible_gpus() if any(each.precision.device.type == "cuda" for each in checked) else ()
    processes = [each.settings.train.num_devices for each in checked]
    cores = cpu_count()
    if devices:
        room = len(devices) * per_device
        if wanted != AUTO and wanted > room:
            raise SettingError(
                f"{AT_ONCE}={wanted}: there is room for {room} on {len(devices)} GPUs with {PER_DEVICE}={per_device}. "
                f"Set {PER_DEVICE} to {-(-wanted // len(devices))}, or {AT_ONCE}={AUTO}."
            )
        most = room // min(processes)
    else:
        needed = max(PROCESS_BYTES * n + each.memory for each, n in zip(checked, processes, strict=True))
        most = min(cores // max(processes), int(free_memory() // needed))
    number = min(most, total) if wanted == AUTO else wanted
    if number <= 1:
        return None
    if fault := plugin_fault(LAUNCHER, "joblib"):
        raise SettingError(f"{AT_ONCE}={wanted}: joblib's launcher starts the jobs, and {fault}")
    share = max(1, cores // number)
    threads = os.environ.get(THREADS[0], "")
    return JobsAtOnce(number, min(share, int(threads)) if threads.isdecimal() else share, share, devices, per_device)


def check_one_way(config: DictConfig, sweep: Settings, typed: Sequence[str]) -> None:
    """Raise a SettingError if both a launcher and the number of jobs at once are given."""
    keys = {AT_ONCE: sweep.jobs_at_once, PER_DEVICE: None if sweep.jobs_per_device == 1 else sweep.jobs_per_device}
    given = [f"{key}={value}" for key, value in keys.items() if value is not None]
    launchers = [word for word in typed if word.startswith(f"{LAUNCHER}=")]
    if (chosen := config.hydra.runtime.choices[LAUNCHER]) != "basic":
        launchers = [f"{LAUNCHER}={chosen}"]
    if given and launchers:
        raise SettingError(
            f"{given[0]} with {launchers[-1]}: each says how jobs are started. Leave out {LAUNCHER}, or {given[0]} "
            "(joblib has hydra.launcher.n_jobs)."
        )


def use_joblib(config: DictConfig, jobs: JobsAtOnce, left: int) -> None:
    """Have Hydra start the jobs of the sweep that it composed as `config` by its joblib launcher; `left` are to run.

    With a single worker joblib would run the jobs in this process.
    """
    node = ConfigStore.instance().load(f"{LAUNCHER}/joblib.yaml").node
    with flag_override(config, ["readonly", "struct"], False):
        config.hydra.launcher = OmegaConf.merge(node, {"n_jobs": max(2, min(jobs.number, left)), "batch_size": "1"})


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that torch sees, by the names that CUDA_VISIBLE_DEVICES gives them, or would."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get(GPUS)
    return tuple(map(str, range(count))) if named is None else tuple(map(str.strip, named.split(",")))[:count]


def is_mps_running() -> bool:
    """Whether CUDA's Multi-Process Service runs here, by which kernels of several processes share a GPU at one time."""
    folder = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    try:
        os.kill(int((folder / "nvidia-cuda-mps-control.pid").read_text()), 0)
    except PermissionError:
        return True  # of another user
    except (OSError, ValueError):
        return False
    return True
