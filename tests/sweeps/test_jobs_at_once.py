"""`sweep.jobs_at_once`: how many jobs run at once, with which threads and GPUs, and that they are as good as alone."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from runner.config.settings import Settings
from runner.config.text import SettingError
from runner.data import memory
from runner.report.plan_table import time_of
from runner.results.job import Job
from runner.sweeps import jobs_at_once
from runner.sweeps.devices import take_devices
from runner.sweeps.jobs_at_once import JobsAtOnce, choose, visible_gpus
from runner.sweeps.planned_sweep import MOST_DEATHS, PlannedSweep

GIB = 2**30
SWEEP = ("train.max_steps=1", "-m", "seed=0,1")


@pytest.fixture
def machine(monkeypatch):
    """`machine(cores=8, gpus=(), free=64)` is what jobs are shared out on; `free` is in GiB."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def make(cores=8, gpus=(), free=1000):
        monkeypatch.setattr("joblib.cpu_count", lambda: cores)
        monkeypatch.setattr(jobs_at_once, "visible_gpus", lambda: gpus)
        monkeypatch.setattr(memory, "free_memory", lambda: free * GIB)

    return make


def chosen(at_once, per_device=1, *, total=100, device="cpu", processes=(1, 1), job_gib=0.0):
    sweep = Settings({"jobs_at_once": at_once, "jobs_per_device": per_device})
    checked = [
        SimpleNamespace(
            settings=Settings({"train": {"num_devices": number}}),
            precision=SimpleNamespace(device=torch.device(device)),
            memory=job_gib * GIB,
        )
        for number in processes
    ]
    return choose(sweep, checked, total)


@pytest.mark.parametrize(
    ("at_once", "options", "number", "threads"),
    [
        ("auto", {}, 8, 1),
        ("auto", {"total": 3}, 3, 2),
        ("auto", {"processes": (1, 2)}, 4, 2),  # as many cores as processes
        ("auto", {"job_gib": 199}, 5, 1),  # 1000 GiB hold five jobs of 200 GiB
        (3, {}, 3, 2),
        (20, {}, 20, 1),  # as it was asked for
    ],
)
def test_the_cores_of_a_cpu_are_shared_out(machine, at_once, options, number, threads):
    machine(cores=8)
    jobs = chosen(at_once, **options)
    assert (jobs.number, jobs.threads, jobs.devices) == (number, threads, ())
    assert number > 8 or jobs.number * jobs.threads <= 8
    assert jobs.environment(()) == {"OMP_NUM_THREADS": f"{threads}", "MKL_NUM_THREADS": f"{threads}"} | {
        "LOKY_MAX_CPU_COUNT": f"{threads}"
    }


def test_fewer_threads_than_there_are_stay_fewer(machine, monkeypatch):
    machine(cores=8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert (chosen(2).threads, chosen(2).cores) == (1, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert chosen(2).threads == 4


@pytest.mark.parametrize("at_once", [None, 1])
def test_one_job_after_the_other(machine, at_once):
    machine()
    assert chosen(at_once) is None
    machine(cores=1)
    assert chosen("auto") is None
    machine(free=1)
    assert chosen("auto") is None
    assert choose(Settings({"jobs_at_once": "auto", "jobs_per_device": 1}), [], 8) is None  # all are done


@pytest.mark.parametrize(
    ("at_once", "per_device", "processes", "number"),
    [
        ("auto", 1, (1, 1), 2),
        ("auto", 4, (1, 1), 8),
        (None, 4, (1, 1), 8),
        (3, 2, (1, 1), 3),
        ("auto", 1, (2, 1), 2),  # those of one process fill both
        ("auto", 1, (2, 2), None),  # each has both GPUs
        ("auto", 2, (2, 2), 2),
    ],
)
def test_a_job_has_a_gpu(machine, at_once, per_device, processes, number):
    machine(cores=16, gpus=("3", "5"), free=0)
    jobs = chosen(at_once, per_device, device="cuda", processes=processes)
    assert (jobs and jobs.number) == number
    if jobs:
        assert (jobs.devices, jobs.threads) == (("3", "5"), 16 // number)
        assert jobs.environment(("5",))["CUDA_VISIBLE_DEVICES"] == "5"


def test_more_jobs_than_gpus_are_refused(machine):
    machine(gpus=("0", "1"))
    with pytest.raises(SettingError, match=r"room for 2 on 2 GPUs .* Set sweep.jobs_per_device to 3, or"):
        chosen(5, device="cuda")


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [(None, 2, ("0", "1")), ("2, 3", 2, ("2", "3")), ("GPU-ab,MIG-cd", 2, ("GPU-ab", "MIG-cd")), ("1,9", 1, ("1",))],
)
def test_the_gpus_that_are_visible(monkeypatch, visible, count, names):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == names


def test_what_the_first_line_says_of_mps(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    shared = JobsAtOnce(4, 1, 1, ("0",), 4)
    assert str(shared).endswith(
        "on GPU 0, up to 4 on each (without MPS, so by turns: nvidia-cuda-mps-control -d starts it)"
    )
    (tmp_path / "nvidia-cuda-mps-control.pid").write_text(f"{os.getpid()}\n")
    assert str(shared).endswith("(MPS is running)")
    assert str(JobsAtOnce(2, 3, 3)) == "2 jobs at once, with 3 threads each"


def test_free_memory_is_what_a_container_leaves(monkeypatch, tmp_path):
    files = {
        "MACHINE": "MemTotal: 9 kB\nMemAvailable:   4000 kB\n",
        "CGROUP_LIMIT": "3000000",
        "CGROUP_USED": "2500000",
    }
    files["CGROUP_STATISTICS"] = "anon 1\ninactive_file 400000\n"
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert memory.free_memory() == 3_000_000 - 2_500_000 + 400_000
    (tmp_path / "CGROUP_LIMIT").write_text("max\n")
    assert memory.free_memory() == 4000 * 1024
    (tmp_path / "MACHINE").unlink()
    assert memory.free_memory() == memory.memory_of(torch.device("cpu"))


def test_processes_share_devices_out(tmp_path):
    """Twelve of them, each with one or two of two devices that two may use: none ever has a third beside it."""
    children = []
    for number in range(12):
        if (pid := os.fork()) == 0:
            with take_devices(1 + number % 2, ("a", "b"), 2, tmp_path / "places", lambda: False) as devices:
                marks = [tmp_path / f"{device}-{number}" for device in devices]
                for mark in marks:
                    mark.touch()
                time.sleep(0.05)
                most = max(len(list(tmp_path.glob(f"{device}-*"))) for device in devices)
                for mark in marks:
                    mark.unlink()
            os._exit(0 if len(set(devices)) == 1 + number % 2 and most <= 2 else 1)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 12


def test_a_wait_for_a_device_ends_when_it_should(tmp_path):
    held, go = os.pipe()
    if (pid := os.fork()) == 0:
        with take_devices(1, ("a",), 1, tmp_path / "places", lambda: False):
            os.write(go, b"1")
            time.sleep(60)
        os._exit(0)
    try:
        os.read(held, 1)
        with take_devices(1, ("a",), 1, tmp_path / "places", Mock(side_effect=[False, False, True])) as devices:
            assert devices == ()
        os.kill(pid, signal.SIGKILL)  # whose place is free at once
        os.waitpid(pid, 0)
        with take_devices(1, ("a",), 1, tmp_path / "places", lambda: False) as devices:
            assert devices == ("a",)
    finally:
        os.close(held)
        os.close(go)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ("hydra/launcher=joblib", "sweep.jobs_at_once=2"),
            ["sweep.jobs_at_once=2 with hydra/launcher=joblib", "Leave out"],
        ),
        (("hydra/launcher=basic", "sweep.jobs_per_device=2"), ["sweep.jobs_per_device=2 with hydra/launcher=basic"]),
        (("sweep.jobs_at_once=1,2",), ["sweep.jobs_at_once: all jobs of a sweep share it; give one value"]),
        (("sweep.jobs_at_once=many",), ["sweep.jobs_at_once=many", "or be auto"]),
        (("sweep.jobs_at_once=0",), ["sweep.jobs_at_once=0", "[1, 1024]"]),
        (("sweep.jobs_per_device=0",), ["sweep.jobs_per_device=0"]),
    ],
)
def test_wrong_numbers_of_jobs_are_refused(small, tmp_path, words, parts):
    small(*SWEEP, *words).assert_refused(*parts)
    assert list(tmp_path.iterdir()) == []


def test_the_launcher_must_be_installed(small, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_at_once, "plugin_fault", lambda *_: "it is not installed; pip install it.")
    small(*SWEEP, "sweep.jobs_at_once=2").assert_refused("sweep.jobs_at_once=2: joblib's", "pip install it")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_tells_the_time_of_jobs_at_once(small, tmp_path, monkeypatch):
    monkeypatch.setattr("runner.sweeps.forecast.Forecast._seconds_per_step", lambda *_: (60.0, "measured here"))
    before = torch.get_num_threads()
    words = ("train.max_steps=2", "-m", "seed=0,1,2")
    try:
        assert "one after the other: 6:00" in small("plan", *words).out
        assert "2 at once: 4:00" in small("plan", *words, "sweep.jobs_at_once=2").out
    finally:
        torch.set_num_threads(before)
    assert list(tmp_path.iterdir()) == []


def test_the_time_of_jobs_at_once():
    assert time_of([5, 4, 3, 2], 1) == 14
    assert time_of([5, 4, 3, 2], 2) == 7  # 5 and 2, 4 and 3
    assert time_of([5, 1], 8) == 5
    assert time_of([], 2) == 0


def planned(tmp_path):
    job = Job("a=1-0", 1, 1, tmp_path, ("a=1",))
    return PlannedSweep(jobs=[job], watch=Mock(), stop=tmp_path / ".stop"), job


def test_jobs_are_launched_again_where_a_process_of_the_launcher_died(tmp_path):
    sweep, _ = planned(tmp_path)
    main = Mock(side_effect=[BrokenProcessPool, BrokenProcessPool, None])
    sweep.launch(main)
    assert main.call_count == 3
    sweep.watch.console.message.assert_called_with(
        "A process of the launcher died. Its jobs go on in new ones.", "warning"
    )


def test_a_launcher_whose_processes_always_die_is_given_up(tmp_path):
    sweep, job = planned(tmp_path)
    main = Mock(side_effect=BrokenProcessPool)
    with pytest.raises(BrokenProcessPool):
        sweep.launch(main)
    assert main.call_count == MOST_DEATHS + 1

    before_the_end = iter([True] * MOST_DEATHS + [False] * (MOST_DEATHS + 1))

    def dies():
        if not next(before_the_end):  # a job has ended since: the deaths are counted anew
            job.path.mkdir(exist_ok=True)
            (job.path / "summary.json").write_text(json.dumps({"status": "completed"}))
        raise BrokenProcessPool

    main = Mock(side_effect=dies)
    with pytest.raises(BrokenProcessPool):
        sweep.launch(main)
    assert main.call_count == 2 * MOST_DEATHS + 1
    sweep.stop.touch()  # after Ctrl-C nothing is launched again
    main = Mock(side_effect=BrokenProcessPool)
    with pytest.raises(BrokenProcessPool):
        sweep.launch(main)
    assert main.call_count == 1


def test_a_slow_sweep_says_what_would_be_faster(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("runner.sweeps.planned_sweep.run_job", lambda *_, **__: "completed")
    jobs = [Job(f"a={n}-0", n, 3, tmp_path, (f"a={n}",)) for n in (1, 2, 3)]
    sweep = PlannedSweep(jobs=jobs, settings=dict.fromkeys((job.name for job in jobs), Settings({})))
    sweep.faster = JobsAtOnce(2, 1, 1)
    sweep.run(["a=1"], 1)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("runner.sweeps.planned_sweep.WORTH_SECONDS", -1)
    sweep.run(["a=2"], 2)
    assert capsys.readouterr().out == (
        "note: With sweep.jobs_at_once=auto the sweep would take less time: 2 jobs at once, with 1 thread each.\n"
    )
    sweep.run(["a=3"], 3)
    assert capsys.readouterr().out == ""


COMMAND = [sys.executable, "-m", "runner", "dataset=random", "dataset.num_images=64", "dataset.image_size=8"]
COMMAND += ["train.global_batch_size=8", "train.device=cpu", "model=resnet20", "-m"]


def run(folder, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*COMMAND, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_jobs_at_once_give_the_numbers_of_jobs_alone(tmp_path):
    """And a folder of W&B for each, and a sweep without a name that is launched in a folder with a number."""
    for name, words in (("alone", ()), ("at_once", ("sweep.jobs_at_once=2",))):
        (tmp_path / name).mkdir()
        done = run(tmp_path / name, "seed=0,1,2", "train.epochs=2", "sweep.name=s", *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "note: 2 jobs at once, with 1 thread each\n" in done.stdout
    assert done.stdout.count(" 3/3 done\n") == 1
    alone, at_once = (tmp_path / name / "outputs/sweeps/s" for name in ("alone", "at_once"))
    jobs = sorted(path.parent.name for path in alone.glob("*/summary.json"))
    assert len(jobs) == 3
    for job in jobs:
        texts = [(sweep / job / "metrics.jsonl").read_text() for sweep in (alone, at_once)]
        found = [[json.loads(line) for line in text.splitlines()] for text in texts]
        times = ("seconds", "images_per_second", "throughput")
        rows = [[{key: row[key] for key in row if not key.endswith(times)} for row in each] for each in found]
        assert rows[0] == rows[1]
        assert json.loads((at_once / job / "summary.json").read_text())["provenance"]["hardware"]["threads"] == 1
        assert "status: completed" in (at_once / job / "console.txt").read_text()
    assert len((at_once / "results.csv").read_text().splitlines()) == 4
    assert (at_once / "report.html").is_file()
    assert len(list((tmp_path / "at_once/outputs/wandb").glob("offline-run-*"))) == 3
    assert not list(at_once.glob(".stop*"))

    again = run(tmp_path / "at_once", "seed=0,1,2", "train.epochs=2", "sweep.name=s", "sweep.jobs_at_once=2")
    assert again.returncode == 0
    assert again.stdout.count(" before\n") == 3
    assert "jobs at once" not in again.stdout


def start(folder, *words):
    return subprocess.Popen(
        [*COMMAND, "wandb.mode=disabled", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def children(process):
    """The processes of the launcher below the command's."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "LokyProcess" in line]


def wait_for_checkpoints(process, folder, number):
    end = time.monotonic() + 120
    while len(list(folder.glob("outputs/sweeps/*/*/checkpoints/last.pt"))) < number:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_process_of_the_launcher_that_is_killed_takes_no_job_with_it(tmp_path):
    """In a sweep without a name, whose folder is that of the first launch."""
    process = start(tmp_path, "seed=0,1,2", "train.epochs=20", "sweep.jobs_at_once=2")
    wait_for_checkpoints(process, tmp_path, 2)
    os.kill(children(process)[0], signal.SIGKILL)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert "warning: A process of the launcher died. Its jobs go on in new ones." in out
    [sweep] = (tmp_path / "outputs/sweeps").iterdir()
    assert [json.loads(file.read_text())["status"] for file in sweep.glob("*/summary.json")] == ["completed"] * 3


@pytest.mark.slow
def test_all_processes_end_with_the_command(tmp_path):
    process = start(tmp_path, "seed=0,1,2", "train.epochs=2000", "sweep.jobs_at_once=2", "sweep.name=s")
    wait_for_checkpoints(process, tmp_path, 2)
    process.kill()
    process.communicate(timeout=60)  # its processes have its output open as long as they live
    statuses = [json.loads(file.read_text())["status"] for file in Path(tmp_path, "outputs").rglob("summary.json")]
    assert statuses == ["interrupted", "interrupted"]
