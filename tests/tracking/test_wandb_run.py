from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.tracking import wandb_run as module
from runner.tracking.wandb_run import WandbRun, new_run_id, override_columns

ROOT = Path(__file__).resolve().parents[2]
ROW = {"step": 10, "epoch": 1, "split": "validation", "accuracy": 0.5, "loss": 1.25}
pytestmark = pytest.mark.usefixtures("offline_machine")


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path, reports):
    """Makes a W&B run in tmp_path/outputs that reports into `reports`."""
    folder = tmp_path / "outputs"
    return lambda **kw: WandbRun(
        **{"folder": folder, "project": "runner", "run_id": "digits-1a2b3c", "report": reports.append, **kw}
    )


def test_an_offline_run_holds_everything(make, reports, records, tmp_path, capfd):
    run = make(name="digits", group="sweep", tags=["agc", "", "x" * 100], config={"agc": {"clip": 0.01}}, job_type="t")
    run.log({"step": 5, "epoch": 0.5, "split": "steps", "loss": 2.0})
    run.log({"step": 10, "epoch": 1, "split": "train", "loss": math.nan})
    run.log(ROW)
    run.log({**ROW, "step": 20, "epoch": 2, "accuracy": 0.25})
    run.summary({"validation/accuracy": 0.5, "status": "completed"})
    run.finish()
    run.finish()
    run.log(ROW)
    assert reports == []
    assert capfd.readouterr() == ("", "")

    found = records(tmp_path / "outputs")
    [head] = found["run"]
    assert head["run_id"] == "digits-1a2b3c"
    assert (head["display_name"], head["run_group"], head["project"]) == ("digits", "sweep", "runner")
    assert head["tags"] == ["agc", "x" * 64]
    assert head["config"]["update"]["agc"] == {"clip": 0.01}
    history = [
        {key: value for key, value in record["item"].items() if key[0] != "_"} | {"at": record["step"].get("num")}
        for record in found["history"]
    ]
    assert history == [  # rows of one step are one point
        {"at": 5, "step": 5, "epoch": 0.5, "steps/loss": 2},
        {"at": 10, "step": 10, "epoch": 1, "train/loss": "NaN", "validation/accuracy": 0.5, "validation/loss": 1.25},
        {"at": 20, "step": 20, "epoch": 2, "validation/accuracy": 0.25, "validation/loss": 1.25},
    ]
    summary = {}
    for record in found["summary"]:
        summary.update(record["update"])
    assert summary["status"] == "completed"
    assert summary["validation/accuracy"] == 0.5  # of best.pt, not of the last epoch
    assert summary["validation/loss"] == 1.25
    axes = {metric.get("glob_name"): metric.get("step_metric") for metric in found["metric"]}
    assert {f"{split}/*" for split in ("train", "validation", "test", "steps")} <= axes.keys()
    assert axes["validation/*"] == "step"
    hidden = {metric["name"] for metric in found["metric"] if metric["options"].get("hidden")}
    assert hidden == {"step", "epoch"}  # x axes, drawn by themselves nowhere
    assert summary["step"] == 20
    assert found["exit"][0].get("exit_code", 0) == 0
    assert not any("git" in record or "host" in record for record in [head, *found["environment"]])


@pytest.mark.parametrize(
    ("override", "column"),
    [
        ("agc.clip=0.02", {"overrides/agc/clip": 0.02}),
        ("seed=3", {"overrides/seed": 3}),
        ("optimizer.lr=1e-3", {"overrides/optimizer/lr": 0.001}),
        ("norm=[ghost_batchnorm, agc]", {"overrides/norm": "ghost_batchnorm+agc"}),
        ("norm=[agc]", {"overrides/norm": "agc"}),
        ("train.ema=null", {"overrides/train/ema": "null"}),
        ("probe.sharpness.tolerance=nan", {"overrides/probe/sharpness/tolerance": "nan"}),
        ("dataset.root='a=b'", {"overrides/dataset/root": "a=b"}),
        ("++agc.groups={layer4:0.02}", {"overrides/agc/groups": "{layer4:0.02}"}),
        *((word, {}) for word in ("sweep.name=s", "paths.outputs=o", "wandb.mode=online", "name=n", "resume=r", "~a")),
    ],
)
def test_an_override_is_a_column_to_filter_by(override, column):
    assert override_columns([override]) == column


@pytest.mark.parametrize("bins", [3, 512, 1301])
def test_a_probe_is_a_picture_and_a_distribution_a_histogram(make, reports, records, tmp_path, bins):
    counts, edges = np.random.default_rng(0).integers(0, 9, bins), np.linspace(-2, 5, bins + 1)
    for name in ("tail", "flat"):
        Image.new("RGB", (4, 3)).save(tmp_path / f"{name}.png")
    np.savez(tmp_path / "tail.npz", counts=counts, edges=edges)
    np.savez(tmp_path / "flat.npz", **{"slope": np.ones(3), "number/slope": np.float64(1)})
    run = make()
    run.figure("tail", tmp_path / "tail.png", step=7)
    run.figure("flat", tmp_path / "flat.png", step=7)
    run.finish()
    assert reports == []
    [point] = (record["item"] for record in records(tmp_path / "outputs")["history"])
    assert (point["step"], point["probe/tail._type"], point["probe/flat._type"]) == (7, "image-file", "image-file")
    assert "probe/flat/histogram._type" not in point
    assert point["probe/tail/histogram._type"] == "histogram"
    found, limits = point["probe/tail/histogram.values"], point["probe/tail/histogram.bins"]
    assert len(found) <= 512  # of W&B's own
    assert limits == pytest.approx(sorted({*edges[:: -(-bins // 512)], 5.0}))
    assert found == [counts[(edges[:-1] >= low) & (edges[:-1] < high)].sum() for low, high in pairwise(limits)]


def test_a_run_of_a_sweep_has_its_group_and_columns_and_so_has_it_resumed(runner, small_model, records, tmp_path):
    words = ["dataset=random", "dataset.num_images=32", "dataset.image_size=8", "train.global_batch_size=8"]
    words += ["train.device=cpu", "norm=[ghost_batchnorm,agc]", "ghost_batchnorm.ghost_batch_size=4"]
    words += ["agc.clip=0.02", "probe=gradient_histogram"]
    assert runner("-m", *words, "train.epochs=1", "seed=4", "sweep.name=clips").code == 0
    [folder] = (tmp_path / "outputs/sweeps/clips").glob("*seed=4*/")
    first = records(tmp_path / "outputs")
    shutil.rmtree(tmp_path / "outputs/wandb")
    assert runner(f"resume={folder}", "train.epochs=2").code == 0
    second = records(tmp_path / "outputs")
    for [head] in (first["run"], second["run"]):
        assert (head["run_group"], head["job_type"]) == ("clips", "sweep")
        config = head["config"]["update"]
        assert (config["norm"], config["regularization"]) == ("ghost_batchnorm+agc", "-")
        assert config["agc"]["clip"] == config["overrides/agc/clip"] == 0.02
        assert config["overrides/seed"] == config["seed"] == 4
        assert config["overrides/norm"] == "ghost_batchnorm+agc"
    assert first["run"][0]["run_id"] == second["run"][0]["run_id"]
    beginning = first["history"][0]["item"]
    assert sum(beginning["probe/gradient_histogram/histogram.values"]) == 9216  # of its 3x3 convolution, 32 to 32
    assert beginning["probe/gradient_histogram._type"] == "image-file"


def test_a_resumed_run_goes_on_under_the_same_id_and_step(make, tmp_path):
    first = make()
    first.log(ROW)
    first.finish(130)
    second = make()
    second.log({**ROW, "step": 20})
    second.finish()
    folders = sorted((tmp_path / "outputs" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all((folder / "run-digits-1a2b3c.wandb").exists() for folder in folders)


def test_how_to_look_at_an_offline_run(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
    run = make(folder="outputs", upload="python -m runner sync a")
    run.finish()
    assert run.how_to_look() == ["wandb leet outputs/wandb", "python -m runner sync a  (needs an account)"]
    monkeypatch.setattr(module.shutil, "which", lambda _: None)  # in a virtual environment that is not activated
    assert run.how_to_look()[0] == "python -m wandb leet outputs/wandb"


def test_a_home_that_cannot_be_written_gets_a_place_beside_the_runs(make, tmp_path, monkeypatch):
    for name in (*module.HOMES, "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that it is set back in the end
        monkeypatch.delenv(name)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file/home"))
    module._give_home(tmp_path)
    assert {os.environ[name] for name in module.HOMES} == {str(tmp_path / "home")}
    for name in module.HOMES:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "another"))
    module._give_home(tmp_path)
    assert not {*module.HOMES} & {*os.environ}


def test_disabled_imports_neither_wandb_nor_torch_nor_hydra(tmp_path):
    script = f"""
        import sys
        import runner.tracking.tracker, runner.report.sweep_table, runner.tracking.provenance
        from runner.tracking.wandb_run import WandbRun
        run = WandbRun(mode="disabled", folder={str(tmp_path / "outputs")!r}, project="p", run_id="a", report=print)
        run.log({ROW}); run.summary({{}}); run.finish()
        assert run.how_to_look() == []
        print(sorted({{"wandb", "torch", "hydra", "omegaconf"}} & sys.modules.keys()))
    """
    assert python(script).stdout == "[]\n"
    assert not (tmp_path / "outputs").exists()


def test_an_unknown_mode_is_refused(make):
    with pytest.raises(ValueError, match=r"wandb\.mode=ofline.*Did you mean offline\?"):
        make(mode="ofline")


def test_online_without_a_key_asks_nothing_and_records_offline(make, reports, records, tmp_path, monkeypatch):
    def ask(*_: object) -> str:
        raise AssertionError("W&B asked a question")

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("wandb.errors.term.can_use_terminput", lambda: True)
    monkeypatch.setattr("wandb.util.prompt_choices", ask)
    run = make(mode="online")
    run.log(ROW)
    run.finish()
    assert run.mode == "offline"
    assert reports == ["W&B: no API key found, so this run is recorded offline. `wandb login` stores a key."]
    assert len(records(tmp_path / "outputs")["history"]) == 1


def test_online_without_a_network_records_offline(make, reports, records, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(module, "INIT_TIMEOUT_SECONDS", 1)
    run = make(mode="online")
    run.log(ROW)
    run.finish()
    assert run.mode == "offline"
    assert len(reports) == 1
    assert reports[0].startswith("W&B could not be reached")
    assert "a" * 40 not in reports[0]
    assert capfd.readouterr() == ("", "")
    assert len(records(tmp_path / "outputs")["history"]) == 1


def test_no_wait_for_a_server_is_long(make, monkeypatch):
    given = {}

    def init(**arguments: object) -> None:
        given.update(arguments)
        raise RuntimeError

    monkeypatch.setattr("wandb.init", init)
    make()
    assert 0 < given["settings"].init_timeout <= 30
    assert 0 < given["settings"].finish_timeout <= 120


def test_the_environment_does_not_change_the_mode(make, monkeypatch, reports):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = make()
    run.log(ROW)
    run.finish()
    assert run.run_folder.is_dir()
    assert reports == []


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("something\nlong")


@pytest.mark.parametrize("target", ["setup", "init", "Run.define_metric", "Run.log", "Run.finish"])
def test_whatever_fails_is_reported_once_and_the_run_goes_on(make, reports, monkeypatch, target, capfd):
    monkeypatch.setattr(f"wandb.{target}", fail)
    run = make()
    for _ in range(3):
        run.log(ROW)
    run.summary({"a": 1})
    run.finish()
    run.finish()
    assert run.mode == "disabled"
    assert len(reports) == 1
    assert "RuntimeError: something)" in reports[0]
    assert capfd.readouterr() == ("", "")
    monkeypatch.undo()
    reports.clear()
    after = make(run_id="the-next-job")  # one broken run takes no later one along
    after.log(ROW)
    after.finish()
    assert (after.mode, reports) == ("offline", [])


def test_the_address_of_a_dead_service(make, reports, monkeypatch, tmp_path):
    """As a process has it whose parent's service died."""
    monkeypatch.setenv("WANDB_SERVICE", f"3-1-unix-{tmp_path / 'gone'}")
    run = make()
    run.log(ROW)
    run.finish()
    assert (run.mode, reports) == ("offline", [])
    assert "gone" not in os.environ.get("WANDB_SERVICE", "")


def test_a_missing_wandb(make, reports, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = make()
    run.log(ROW)
    run.finish()
    assert run.mode == "disabled"
    assert [text[:40] for text in reports] == ["W&B could not start (ModuleNotFoundError"]


def test_a_folder_that_cannot_be_written(make, reports, tmp_path):
    (tmp_path / "file").write_text("")
    assert make(folder=tmp_path / "file").mode == "disabled"
    assert len(reports) == 1
    assert not (tmp_path / "file" / "wandb").exists()


def test_an_interrupt_is_no_failure(make, monkeypatch, reports):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = make()
    with monkeypatch.context() as patch:
        patch.setattr("wandb.Run.log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.log(ROW)
    run.finish(130)
    assert reports == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds W&B's service process in /proc")
def test_a_killed_service_process(tmp_path):
    script = f"""
        import os, pathlib, signal, time
        from runner.tracking.wandb_run import WandbRun
        run = WandbRun(folder={str(tmp_path)!r}, project="p", run_id="a", report=print)
        run.log({ROW})
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                service = b"wandb-core" in (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == os.getpid() and service:
                os.kill(int(entry.name), signal.SIGKILL)
        for step in range(20, 40):
            time.sleep(0.05)
            run.log({{**{ROW}, "step": step}})
        run.finish()
        print("done", run.mode)
    """
    done = python(script)
    report, last = done.stdout.splitlines()
    assert report.startswith("W&B could not log (")
    assert last == "done disabled"
    assert done.stderr == ""


def python(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=60)


def test_ids_can_be_read_are_unique_and_allowed(make):
    name = "norm=[agc],clip=0.01/a:b;c#d?'x' %é"
    ids = {new_run_id(name) for _ in range(10)}
    assert len(ids) == 10
    for run_id in ids:
        assert run_id.startswith("norm=-agc-clip=0.01-a-b-c-d-x-")
        assert not set(run_id) & set("/\\#?%:;,'[] ")
    run = make(run_id=new_run_id("x" * 500))
    assert run.mode == "offline"
    run.finish()
