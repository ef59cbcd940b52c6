"""Sweeps: every job checked before the first starts, one that fails stops no other, a table at the end."""

import csv
import errno
import hashlib
import json
import os
import re
import signal
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
import yaml

from runner.config.settings import Settings
from runner.experiment import run as experiment
from runner.experiment.setup import prepare, set_backends
from runner.results.job import Job, config_hash, job_name, varied_keys
from runner.sweeps.command_line import name_sweep
from runner.sweeps.job_process import run_job_apart
from runner.sweeps.job_run import run_job
from runner.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("without_figures")


def jobs_of(folder):
    """The summary of each job of a sweep by its folder's name."""
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/summary.json")}


def job_with(folder, override):
    """The folder of the one job of a sweep that has this override."""
    [name] = [name for name, summary in jobs_of(folder).items() if override in summary["overrides"]]
    return folder / name


def only_sweep(folder):
    [sweep] = (folder / "outputs/sweeps").iterdir()
    return sweep


def results(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def table_of(out):
    """The lines of the table, from its title on."""
    lines = out.splitlines()
    return lines[next(number for number, line in enumerate(lines) if line.startswith("Sweep ")) :]


def spoil(monkeypatch, clip, deed):
    """Have `deed()` called in each step of the job with this agc.clip."""
    step = Trainer._step

    def spoilt(trainer, *args):
        step(trainer, *args)
        if trainer.state.methods["agc"].clip == clip:
            deed()

    monkeypatch.setattr(Trainer, "_step", spoilt)


def fail():
    raise RuntimeError("the device fell off")


@pytest.mark.parametrize(
    ("overrides", "key", "values"),
    [
        (("norm=ghost_batchnorm", "ghost_batchnorm.ghost_batch_size=4,8"), "ghost_batchnorm.ghost_batch_size", "4 8"),
        (
            ("regularization=stochastic_depth", "stochastic_depth.drop_rate=0.1,0.5"),
            "stochastic_depth.drop_rate",
            "0.1 0.5",
        ),
        (("norm=agc", "agc.clip=0.005,0.02"), "agc.clip", "0.005 0.02"),
    ],
)
def test_a_sweep_ends_with_a_table(small, tmp_path, overrides, key, values):
    values = values.split()
    outcome = small("train.max_steps=2", "-m", *overrides)  # of one step alone no images/s are told
    assert outcome.code == 0, outcome.out + outcome.err
    sweep = only_sweep(tmp_path)
    summaries = jobs_of(sweep)
    assert len(summaries) == 2

    by_value = {}
    for value in values:
        [(name, summary)] = [job for job in summaries.items() if f"{key}={value}" in job[1]["overrides"]]
        assert f"{key.rpartition('.')[2]}={value}" in name  # the folder says what the job is
        assert summary["status"] == "completed"
        by_value[value] = summary

    table = table_of(outcome.out)
    for heading in (key, "validation accuracy", "test accuracy", "images/s"):
        assert heading in table[1]
    lines = {line.removeprefix("*").split()[0]: line for line in table[2:4]}
    for value, summary in by_value.items():
        shares = [f"{100 * summary[part]['accuracy']:.1f}" for part in ("best", "metrics")]
        speed = f"{summary['throughput']['images_per_second']:.0f}"
        assert lines[value].removeprefix("*").split() == [value, *shares, speed]
    best = max(values, key=lambda value: (by_value[value]["best"]["accuracy"], -by_value[value]["best"]["loss"]))
    assert [value for value in values if lines[value].startswith("*")] == [best]

    rows = results(sweep)
    assert [row[key] for row in rows] == values
    for row in rows:
        summary = by_value[row[key]]
        assert row["status"] == "completed"
        assert float(row["validation/accuracy"]) == summary["best"]["accuracy"]
        assert float(row["test/accuracy"]) == summary["metrics"]["accuracy"]
        assert (sweep / row["job"] / "checkpoints/best.pt").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("norm=ghost_batchnorm", "ghost_batchnorm.ghost_batch_size=4,9"), "ghost_batchnorm.ghost_batch_size=9"),
        (("norm=agc", "agc.clip=0.01,abc"), "agc.clip=abc"),
        (("norm=agc,foo",), "foo"),
        (("norm=none", "model=resnet18,nf_resnet26"), "norm=none"),  # only the model shows it
        (("train.global_batch_size=8,64",), "train.global_batch_size=64"),  # only the data show it
        (("seed=${nope},1",), "nope"),
        (("seed=range(0,0)",), "seed=range(0,0): there is no value in it"),
        (("seed=0,1", "model=glob(nothing*)"), "model=glob(nothing*): name one of the group's options"),
        (("seed=0,1", f"sweep.name={300 * 'x'}"), "it names a folder; use up to 120 letters"),
        (("sweep.name=a,b",), "sweep.name=a,b: all jobs of a sweep lie in one folder; set sweep.name=NAME"),
        (("paths.outputs=a,b",), "paths.outputs=a,b: all jobs of a sweep lie in one folder; set paths.outputs=FOLDER"),
        (("seed=0,1", "hydra.job.chdir=true"), "hydra.job.chdir=true: leave it as it is."),
        (("seed=0,1", "hydra.sweep.subdir=x"), "hydra.sweep.subdir=x: leave it as it is."),
        (("seed=0,1", "hydra.sweep.dir=x"), "set paths.outputs, name or sweep.name"),
    ],
)
def test_one_wrong_job_and_none_starts(small, tmp_path, overrides, message):
    outcome = small("train.max_steps=1", "-m", *overrides)
    assert outcome.code == 2
    assert outcome.err.startswith("Wrong setting. ")
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["hydra.run.dir=x", "hydra.output_subdir=x", "hydra.job.chdir=true"])
def test_folders_beside_the_runs_own_are_refused(small, tmp_path, setting):
    outcome = small("train.max_steps=1", setting)
    assert outcome.code == 2
    assert outcome.err.startswith(f"Wrong setting. {setting}: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.ENOSPC, "No space left on device")])
def test_whatever_is_raised_before_the_first_job_ends_the_sweep(small, tmp_path, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr("runner.sweeps.sweep.write_sweep", fails)
    command = ("train.max_steps=1", "-m", "seed=0,1", "sweep.name=s")
    if isinstance(error, OSError):
        outcome = small(*command)
        assert outcome.code == 1
        assert outcome.out == "error: outputs/sweeps/s cannot be written (No space left on device).\n"
        assert outcome.err == ""
    else:
        with pytest.raises(RuntimeError, match="a bug"):
            small(*command)
    assert not list(tmp_path.glob("outputs/sweeps/s/*/"))


@pytest.mark.parametrize("refused", ["runner.results.run_lock.open_unlinked", "runner.sweeps.study.write_atomically"])
def test_a_new_folder_in_which_nothing_can_be_written_does_not_stay(small, tmp_path, monkeypatch, refused):
    def refuse(*_):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(refused, refuse)
    outcome = small("train.max_steps=1", "-m", "seed=0,1")
    assert outcome.code == 2
    assert "paths.outputs: outputs/sweeps/seed-" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_job_whose_folder_cannot_be_made_fails(tmp_path, capsys):
    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    job = Job("a=1-0", 1, 1, tmp_path, ("a=1",))
    path = Mock(wraps=Path, mkdir=no_room)
    with patch.object(Job, "path", path):
        assert run_job(Settings({}), job, retry_failed=True) == "failed"
    (tmp_path / "a=1-0").touch()
    capsys.readouterr()
    assert run_job(Settings({}), job, retry_failed=True) == "failed"
    assert run_job_apart(Settings({}), job, retry_failed=True, stop=tmp_path / "stop") == "failed"
    assert capsys.readouterr().out == 2 * f"error: {job.path} cannot be written (File exists).\n"


@pytest.mark.parametrize("put", [os.mkfifo, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_a_job_with_something_else_in_its_folders_place_stops_no_other(small, tmp_path, put):
    command = ("train.max_steps=1", "-m", "seed=0,1", "sweep.name=s")
    assert small(*command).code == 0
    folder = job_with(tmp_path / "outputs/sweeps/s", "seed=0")
    folder.rename(tmp_path / "elsewhere")
    put(folder)
    outcome = small(*command)
    assert outcome.code == 1
    assert f"error: {folder.relative_to(tmp_path)} cannot be written (File exists)." in outcome.out
    assert re.search(r"^job 2/2: \S+  completed, .* before$", outcome.out, re.MULTILINE)


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to(path.parents[3] / "mine"), Path.mkdir])
def test_what_hydra_writes_is_a_file_of_its_own(small, tmp_path, put):
    command = ("train.max_steps=1", "-m", "seed=0", "sweep.name=s")
    folder, mine = tmp_path / "outputs/sweeps/s", tmp_path / "mine"
    mine.write_text("kept")
    folder.mkdir(parents=True)
    put(folder / "multirun.yaml")
    outcome = small(*command)
    assert mine.read_text() == "kept"
    if put is Path.mkdir:
        assert outcome.code == 1
        assert re.match(r"error: outputs/sweeps/s/multirun\.yaml cannot be written \(.*\)\.$", outcome.out)
        assert [path.name for path in folder.iterdir()] == ["multirun.yaml"]
    else:
        assert outcome.code == 0
        assert not (folder / "multirun.yaml").is_symlink()
        assert yaml.safe_load((folder / "multirun.yaml").read_text())["sweep"]["name"] == "s"


def test_two_sweeps_without_a_name_in_one_second_have_folders_of_their_own(small, tmp_path, monkeypatch):
    monkeypatch.setattr("runner.sweeps.sweep.time.strftime", lambda *_: "20260101-000000")
    for seeds, name in (("0,1", ()), ("2,3", ("sweep.name=null",))):
        outcome = small("train.max_steps=1", "-m", f"seed={seeds}", *name)
        assert outcome.code == 0, outcome.out + outcome.err
    sweeps = tmp_path / "outputs/sweeps"
    found = {path.name: {row["seed"] for row in results(path)} for path in sweeps.iterdir()}
    assert found == {"seed-20260101-000000": {"0", "1"}, "seed-20260101-000000-2": {"2", "3"}}
    [config, _] = (yaml.safe_load(file.read_text()) for file in sweeps.glob("*-2/*/config.yaml"))
    assert config["sweep"]["name"] == "seed-20260101-000000-2"
    again = small("train.max_steps=1", "-m", "seed=2,3", "sweep.name=seed-20260101-000000-2")
    assert again.code == 0
    assert again.out.count(" before\n") == 2


def test_cublas_is_told_of_determinism_before_the_first_job_uses_it(small, monkeypatch):
    """It reads the variable once in a process, and the jobs of a sweep share one."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is as before afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    seen = []

    def noted(checked, *arguments):
        seen.append((checked.settings.train.deterministic, os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        return prepare(checked, *arguments)

    monkeypatch.setattr(experiment, "prepare", noted)
    try:
        assert small("-m", "train.deterministic=false,true", "train.max_steps=1").code == 0
        assert seen == [(False, ":4096:8"), (True, ":4096:8")]
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        set_backends(deterministic=False)


def test_a_failed_job_stops_no_other(small, tmp_path, monkeypatch):
    spoil(monkeypatch, 0.02, fail)
    outcome = small("train.max_steps=1", "-m", "norm=agc", "agc.clip=0.01,0.02,0.04", "sweep.name=s")
    assert outcome.code == 1
    statuses = {row["agc.clip"]: row["status"] for row in results(tmp_path / "outputs/sweeps/s")}
    assert statuses == {"0.01": "completed", "0.02": "failed", "0.04": "completed"}
    before, third = outcome.out.split("job 3/3")
    table = "\n".join(table_of(third))
    assert "the device fell off" in before  # when it happens
    assert "the device fell off" in table  # and again
    assert "the device fell off" not in third.removesuffix(table + "\n").split("Sweep ")[0]
    folder = job_with(tmp_path / "outputs/sweeps/s", "agc.clip=0.02")
    assert "RuntimeError: the device fell off" in (folder / "error.txt").read_text()


def test_a_diverged_job_is_a_result(small, tmp_path):
    hot = ("norm=none", "schedule.warmup_epochs=0", "train.epochs=2", "optimizer.lr=10000000,0.001")
    outcome = small("-m", *hot, "sweep.name=s")
    assert outcome.code == 0
    rows = {row["optimizer.lr"]: row for row in results(tmp_path / "outputs/sweeps/s")}
    assert [rows[lr]["status"] for lr in ("10000000", "0.001")] == ["diverged", "completed"]
    assert rows["10000000"]["test/accuracy"] == ""
    assert ["*", "0.001"] in [line.split()[:2] for line in table_of(outcome.out)]


def test_an_interrupted_job_ends_the_sweep(small, tmp_path, monkeypatch):
    step = Trainer._step
    spoil(monkeypatch, 0.02, lambda: os.kill(os.getpid(), signal.SIGTERM))
    arguments = ("train.epochs=1", "-m", "norm=agc", "agc.clip=0.01,0.02,0.04", "sweep.name=s")
    outcome = small(*arguments)
    assert outcome.code == 130
    summaries = jobs_of(tmp_path / "outputs/sweeps/s")
    assert sorted(summary["status"] for summary in summaries.values()) == ["completed", "interrupted"]
    folder = job_with(tmp_path / "outputs/sweeps/s", "agc.clip=0.02")
    assert f"python -m runner resume={folder.relative_to(tmp_path)}" in outcome.out
    last = outcome.out.splitlines()[-1]
    assert last.startswith("Go on with the sweep: python -m runner dataset=random ")
    assert last.endswith(" ".join(arguments))
    assert any("interrupted" in line for line in table_of(outcome.out))

    monkeypatch.setattr(Trainer, "_step", step)
    assert small(f"resume={folder.relative_to(tmp_path)}").code == 0
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"


def test_a_sweep_is_named_after_what_it_sweeps():
    *arguments, name = name_sweep(["norm=agc", "-m", "agc.clip=0.01,0.02", "train.epochs=range(1,3)"])
    assert arguments == ["-m", "norm=agc", "agc.clip=0.01,0.02", "train.epochs=range(1,3)"]
    assert re.fullmatch(r"sweep\.name=clip-epochs-\d{8}-\d{6}", name)
    assert re.fullmatch(r"sweep\.name=norm-\d{8}-\d{6}", name_sweep(["--multirun", "norm=[agc],none"])[-1])
    many = [f"train.{key}=1,2" for key in ("a", "b", "c", "d", "e")]
    assert re.fullmatch(r"sweep\.name=a-b-c-d-\d{8}-\d{6}", name_sweep(["-m", *many])[-1])
    assert name_sweep(["a=1,2", "-m", "sweep.name=mine"]) == ["-m", "a=1,2", "sweep.name=mine"]
    assert name_sweep(["a=1,2", "-m", "++sweep.name=mine"]) == ["-m", "a=1,2", "++sweep.name=mine"]
    assert re.fullmatch(r"sweep\.name=a-\d{8}-\d{6}", name_sweep(["-m", "a=1,2", "sweep.name=null"])[-1])
    assert name_sweep(["norm=agc"]) == ["norm=agc"]
    assert name_sweep(["-m", "a=[1"])[:2] == ["-m", "a=[1"]  # Hydra tells what is wrong with it


def test_a_method_may_be_set_where_its_group_is_swept(small, tmp_path):
    both = "norm=[agc],[weight_standardization,agc]"
    outcome = small("train.max_steps=1", "-m", both, "agc.clip=0.02", "agc.exclude=['0']", "sweep.name=s")
    assert outcome.code == 0, outcome.err
    for folder in jobs_of(tmp_path / "outputs/sweeps/s"):
        config = yaml.safe_load((tmp_path / "outputs/sweeps/s" / folder / "config.yaml").read_text())
        assert (config["agc"]["clip"], config["agc"]["exclude"]) == (0.02, ["0"])
    assert len(jobs_of(tmp_path / "outputs/sweeps/s")) == 2
    for values in ("0.01", "0.01,0.02"):
        outcome = small("-m", "norm=agc,batchnorm", f"agc.clip={values}")
        assert outcome.code == 2
        assert "agc.clip=0.01: not every job of norm=agc,batchnorm has agc." in outcome.err


def test_a_jobs_folder_says_what_varies_and_the_hash_of_its_settings():
    words = ["agc.clip=0.01", "norm=agc", "seed=0", "sweep.name=s", "wandb.mode=disabled"]
    assert job_name(words, "0123abcd", {"agc.clip"}) == "clip=0.01-0123abcd"
    assert job_name(words, "0123abcd") == "norm=agc,clip=0.01,seed=0-0123abcd"
    assert job_name(words[::-1], "0123abcd") == job_name(words, "0123abcd")
    assert job_name(words, "0123abcd", {"agc.clip", "seed", "dropout.clip"}) == "agc.clip=0.01,seed=0-0123abcd"
    assert job_name(["norm=[ghost_batchnorm,agc]"], "0123abcd") == "norm=ghost_batchnorm,agc-0123abcd"
    assert job_name(["sweep.name=s"], "0123abcd", {"seed"}) == "job-0123abcd"
    assert job_name(["name=a b/c"], "0123abcd") == "name=a_b_c-0123abcd"
    assert re.fullmatch(r"[A-Za-z0-9].*", job_name(["~train.epochs", "dataset.root=../../x y"], "0123abcd"))
    assert "/" not in job_name(["dataset.root=../../x y"], "0123abcd")


def test_what_varies_between_jobs():
    assert varied_keys([]) == varied_keys([["a=1"]]) == varied_keys([["a=1"], ["a=1"]]) == set()
    assert varied_keys([["a=1", "x.b=1", "c=0"], ["a=2", "c=0"]]) == {"a", "x.b"}


def test_a_long_name_of_a_job_is_cut_and_keeps_its_end():
    common = [f"model.a_setting_with_a_long_name_{number}=1" for number in range(6)]
    names = [job_name([*common, f"seed={seed}"], "0123abcd") for seed in (1, 2)]
    assert all(len(name) <= 120 and name.endswith("-0123abcd") for name in names)
    assert ["seed=1" in names[0], "seed=2" in names[1]] == [True, True]
    assert len(job_name(["dataset.root=" + 300 * "x"], "0123abcd")) == 120


def test_a_job_of_an_older_version_keeps_its_folder_and_a_new_one_says_what_is_new(small, tmp_path):
    words = ("-m", "norm=agc", "agc.clip=0.01,0.02", "train.max_steps=1", "sweep.name=s")
    assert small(*words).code == 0
    sweep = tmp_path / "outputs/sweeps/s"
    assert sorted(name.partition("-")[0] for name in jobs_of(sweep)) == ["clip=0.01", "clip=0.02"]
    digits = job_with(sweep, "agc.clip=0.01").name.rpartition("-")[2]
    old = f"norm=agc,agc.clip=0.01,train.max_steps=1-{digits}"
    job_with(sweep, "agc.clip=0.01").rename(sweep / old)
    record = yaml.safe_load((sweep / "sweep.yaml").read_text())
    names = {name: old if digits in name else name for name in record["jobs"]}
    record["jobs"] = {names[name]: overrides for name, overrides in record["jobs"].items()}
    (sweep / "sweep.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    outcome = small(*words, "seed=1,0")
    assert outcome.code == 0
    assert sorted(re.sub("-[0-9a-f]{8}$", "", name) for name in jobs_of(sweep)) == [
        "clip=0.01,seed=1",
        "clip=0.02",
        "clip=0.02,seed=1",
        old.rpartition("-")[0],
    ]
    assert len(re.findall(r"completed, .* before", outcome.out)) == 2


def test_the_hash_is_that_of_the_settings_but_for_where_a_run_lies_and_how_it_is_watched(composed):
    def digits(*overrides):
        return config_hash(composed(*overrides).plain())

    settings = composed().plain()
    for key in ("wandb", "sweep", "name", "resume"):
        del settings[key]
    del settings["paths"]["outputs"]
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    canonical = (
        re.sub(r'"_target_":"[\w.]+",?', "", text).replace(",}", "}").encode()
    )  # no setting: where the code lies
    assert digits() == hashlib.sha256(canonical).hexdigest()[:8]
    same = ("paths.outputs=/elsewhere", "wandb.mode=disabled", "wandb.tags=[a]", "sweep.name=s", "name=n")
    assert digits(*same, "sweep.retry_failed=false", "seed=0", "norm=[batchnorm]") == digits()
    others = ("seed=1", "norm=agc", "train.epochs=9", "dataset.validation=test", "train.device=cpu")
    assert len({digits(), *(digits(word) for word in others)}) == 1 + len(others)
