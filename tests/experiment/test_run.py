"""What a run leaves in its folder, which checkpoint is the best, and every method for a step on its own."""

import contextlib
import errno
import io
import json
import math
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
import torchvision
import yaml
from torch import nn

from runner import load_run
from runner.__main__ import main
from runner.config.options import options_of_kind
from runner.config.validation import CONF
from runner.methods.agc import AdaptiveGradientClipping
from runner.training import evaluation
from runner.training.checkpoint import load_checkpoint

SECRET = "hunter2-0815-do-not-write-me"
RUN = ("dataset=random", "dataset.num_images=32", "dataset.image_size=32", "model.stem=imagenet", "train.device=cpu")
RUN += ("train.global_batch_size=8", "train.epochs=2", "train.log_every_steps=3", "seed=5")
RUN += ("norm=ghost_batchnorm", "ghost_batchnorm.ghost_batch_size=4")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run to its end, with W&B as it is by default, in an environment with a secret: its folders and output."""
    import wandb

    folder = tmp_path_factory.mktemp("finished")
    wandb.teardown()  # first, so that no address of its service is put back into the environment
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        for key in [key for key in os.environ if key.startswith("WANDB_")]:
            patch.delenv(key)
        settings = tmp_path_factory.mktemp("settings")
        patch.setenv("WANDB_CONFIG_DIR", str(settings))
        patch.setenv("NETRC", str(settings / "netrc"))
        patch.setenv("SECRET_TOKEN_X", SECRET)
        patch.setattr(sys, "argv", ["runner", *RUN])
        patch.chdir(folder)
        with pytest.raises(SystemExit) as end:
            main()
        wandb.teardown()
    assert not end.value.code, out.getvalue()
    run = folder / "outputs/runs/random-resnet18-ghost_batchnorm"
    summary = json.loads((run / "summary.json").read_text())
    return SimpleNamespace(work=folder, run=run, summary=summary, out=out.getvalue())


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def multiply_adds(model, image):
    """Of convolutions and linear layers, by the formula: outputs x inputs that each of them sees."""
    total = 0

    def count(module, _, output):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
        elif isinstance(module, nn.Linear):
            total += output[0].numel() * module.in_features

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(image)
    return total


def test_a_run_leaves_these_files_and_no_other(finished):
    files = {str(path.relative_to(finished.run)) for path in finished.run.rglob("*") if path.is_file()}
    checkpoints = {f"checkpoints/{name}.pt" for name in ("best", "last", "previous")}
    others = {"config.yaml", "record.json", "metrics.jsonl", "summary.json", "predictions.npz", ".lock"}
    assert files == others | checkpoints
    assert [path.name for path in finished.work.iterdir()] == ["outputs"]
    assert {path.name for path in (finished.work / "outputs").iterdir()} == {"runs", "wandb"}


def test_config_yaml_is_the_resolved_configuration(finished, composed):
    chosen = ("train.precision=fp32", "train.channels_last=false")  # by the runner, where RUN leaves them open
    assert yaml.safe_load((finished.run / "config.yaml").read_text()) == composed(*RUN, *chosen).plain()
    assert json.loads((finished.run / "record.json").read_text())["overrides"] == list(RUN)


def test_the_summary_says_how_the_run_ended(finished):
    summary = finished.summary
    assert summary["status"] == "completed"
    assert summary["error"] is None
    for part in ("metrics", "best"):
        assert isinstance(summary[part]["accuracy"], float)
        assert 0 <= summary[part]["accuracy"] <= 1
        assert isinstance(summary[part]["loss"], float)
    assert set(summary["metrics"]) == {"accuracy", "loss"}
    assert set(summary["best"]) == {"accuracy", "loss", "epoch"}
    assert summary["best"]["epoch"] in (1, 2)
    assert summary["methods"] == {"ghost_batchnorm": 20}
    assert summary["overrides"] == list(RUN)
    data = summary["data"]
    assert (data["train"], data["validation"], data["test"], data["validation_source"]) == (32, 8, 8, "train")
    throughput = summary["throughput"]
    assert 0 < throughput["first_step_seconds"] < throughput["train_seconds"] <= throughput["seconds"]
    assert throughput["images"] == 64
    steady = throughput["train_seconds"] - throughput["first_step_seconds"]
    assert throughput["images_per_second"] == pytest.approx((64 - 8) / steady)


def test_the_models_size_is_that_of_torchvisions(finished):
    model = torchvision.models.resnet18(num_classes=10)
    size = finished.summary["model"]
    assert size["name"] == "resnet18"
    assert size["num_params"] == sum(parameter.numel() for parameter in model.parameters())
    assert size["multiply_adds"] == multiply_adds(model, torch.zeros(1, 3, 32, 32))


def test_provenance_is_recorded(finished):
    provenance = finished.summary["provenance"]
    assert provenance["command"] == f"python -m runner {' '.join(RUN)}"
    assert provenance["versions"]["torch"] == torch.__version__
    assert {"python", "torchvision", "numpy"} <= set(provenance["versions"])
    assert {"cpu", "cores", "memory_gib", "gpu"} <= set(provenance["hardware"])
    assert provenance["git"] is None or set(provenance["git"]) == {"commit", "dirty"}
    assert datetime.fromisoformat(provenance["time"]).tzinfo is not None


def test_metrics_are_rows_with_step_epoch_and_split(finished):
    found = rows(finished.run)
    places = [(row["step"], row["epoch"], row["split"]) for row in found]
    best = finished.summary["best"]
    assert places == [
        (3, 1, "steps"),
        (4, 1, "train"),
        (4, 1, "validation"),
        (6, 2, "steps"),
        (8, 2, "train"),
        (8, 2, "validation"),
        (8, best["epoch"], "test"),
    ]
    for row in found:
        assert 0 <= row["accuracy"] <= 1
        assert math.isfinite(row["loss"])
        assert ("lr" in row) == (row["split"] in ("steps", "train"))
    assert {key: found[-1][key] for key in ("accuracy", "loss")} == finished.summary["metrics"]


def test_no_value_of_the_environment_is_written(finished):
    files = [path for path in finished.work.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert b"SECRET_TOKEN_X" not in content, path
    assert SECRET not in finished.out


def test_wandb_has_the_run_offline_with_its_configuration(finished):
    [log] = (finished.work / "outputs/wandb").glob("offline-run-*/*.wandb")
    assert finished.summary["wandb_id"] in log.name
    assert finished.summary["wandb_id"].startswith("random-resnet18-ghost_batchnorm-")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    [run] = [record["run"] for record in map(json.loads, lines) if record["type"] == "run"]
    config = run["config"]["update"]
    assert config["ghost_batchnorm"]["ghost_batch_size"] == 4
    assert config["train"]["global_batch_size"] == 8
    assert config["methods"] == ["ghost_batchnorm"]
    assert {"resnet18", "random", "ghost_batchnorm"} <= set(run["tags"])
    assert "sync" in finished.out


OPTIONS = [(group, file.stem) for group in ("norm", "regularization") for file in sorted((CONF / group).glob("*.yaml"))]
NF_RESNET = ["model=nf_resnet26", "model.width=0.25"]
ON_NF_RESNET = {"agc": NF_RESNET, "stochastic_depth": [*NF_RESNET, "norm=[]"]}
# the small model's convolutions and batch norms; of nf_resnet26 2 bottlenecks in each of 4 stages
COUNTS = dict.fromkeys((*options_of_kind("norm", "normalization"), "precise_batchnorm", "weight_standardization"), 3)
COUNTS |= {"stochastic_depth": 8, "dropout": 1}
CHANGE_NOTHING = ("label_smoothing", "mixup", "cutmix")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_method_trains_alone(small, tmp_path, group, option):
    arguments = [*ON_NF_RESNET.get(option, ()), f"{group}={option}"]
    if option == "ghost_batchnorm":
        arguments.append("ghost_batchnorm.ghost_batch_size=4")
    outcome = small(*arguments, "train.max_steps=1", "name=run")
    assert outcome.code == 0, outcome.out + outcome.err
    summary = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["methods"][option] == COUNTS.get(option, summary["methods"][option])
    assert (summary["methods"][option] > 0) == (option not in CHANGE_NOTHING)
    saved = load_checkpoint(tmp_path / "outputs/runs/run/checkpoints/last.pt")
    assert saved["progress"]["step"] == 1
    assert option in saved["methods"]
    assert all(torch.isfinite(value).all() for value in saved["model"].values())


def test_the_best_checkpoint_is_chosen_on_the_validation_split(small, tmp_path, monkeypatch):
    """Accuracy first, of equal ones the lower loss, then the earlier; the test split plays no part."""
    scores = iter([(0.25, 2.0), (0.75, 1.5), (0.75, 1.0), (0.75, 1.0), (0.5, 0.5)])
    evaluate, weights = evaluation.evaluate, []

    def scripted(model, batches, precision, task):
        found = evaluate(model, batches, precision, task)
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        accuracy, loss = next(scores)
        return replace(found, metrics={"loss": loss, "accuracy": accuracy})

    monkeypatch.setattr(evaluation, "evaluate", scripted)
    assert small("train.epochs=5", "schedule=constant", "name=run").code == 0
    folder = tmp_path / "outputs/runs/run"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"] == {"accuracy": 0.75, "loss": 1.0, "epoch": 3}
    best = load_checkpoint(folder / "checkpoints/best.pt")
    assert best["epoch"] == 3
    assert best["metrics"] == {"accuracy": 0.75, "loss": 1.0}
    for name, value in best["model"].items():
        assert torch.equal(value, weights[2][name])
    assert [row["split"] for row in rows(folder)].count("test") == 1
    assert summary["metrics"]["loss"] != summary["last"]["loss"]  # best.pt was tested, not the last weights


@pytest.mark.usefixtures("small_model")
def test_the_published_convention_is_labelled(runner, tmp_path):
    digits = ("dataset=digits", "dataset.image_size=8", "dataset.validation=test", "wandb.mode=disabled")
    outcome = runner(*digits, "train.max_steps=1", "train.device=cpu", "name=run")
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())
    assert summary["data"]["validation_source"] == "test"
    assert summary["data"]["validation"] == summary["data"]["test"]
    assert summary["best"]["accuracy"] == summary["metrics"]["accuracy"]
    assert "the test split stands in for validation" in outcome.out
    assert "test split, which stands in for validation" in outcome.out


def test_a_taken_name_gets_a_number(small, tmp_path):
    for _ in range(2):
        assert small("train.max_steps=1", "name=run").code == 0
    first = (tmp_path / "outputs/runs/run/summary.json").read_bytes()
    assert small("train.max_steps=1", "name=run").code == 0
    assert sorted(path.name for path in (tmp_path / "outputs/runs").iterdir()) == ["run", "run-2", "run-3"]
    assert (tmp_path / "outputs/runs/run/summary.json").read_bytes() == first
    assert small("train.max_steps=1", "norm=[weight_standardization,agc]").code == 0
    assert (tmp_path / "outputs/runs/random-resnet18-weight_standardization-agc").is_dir()


def test_a_failure_of_wandb_does_not_end_a_run(small, tmp_path, monkeypatch):
    import wandb

    def fail(**_):
        raise RuntimeError("the service is gone")

    monkeypatch.setattr(wandb, "init", fail)
    outcome = small("wandb.mode=offline", "train.max_steps=1", "name=run")
    assert outcome.code == 0, outcome.out + outcome.err
    assert "the service is gone" in outcome.out
    assert json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())["status"] == "completed"


def test_wandb_disabled_writes_nothing(small, tmp_path):
    assert small("train.max_steps=1").code == 0  # `small` disables it
    assert not (tmp_path / "outputs/wandb").exists()


def test_a_warning_of_the_surgery_is_one_line(small, tmp_path, monkeypatch):
    apply = AdaptiveGradientClipping.apply

    def warn(*args, **kwargs):
        warnings.warn("these weights were trained without it", stacklevel=2)
        return apply(*args, **kwargs)

    monkeypatch.setattr(AdaptiveGradientClipping, "apply", warn)
    outcome = small("norm=agc", "train.max_steps=1", "name=run")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert [line for line in outcome.out.splitlines() if "trained without it" in line] == [
        "warning: these weights were trained without it"
    ]
    load_run(tmp_path / "outputs/runs/run")  # warnings are errors here


def test_batchnorm_on_a_model_without_it_is_said_and_names_no_run(small, tmp_path):
    outcome = small(*NF_RESNET, "norm=[batchnorm,agc]", "train.max_steps=1")
    assert outcome.code == 0, outcome.err
    assert "batchnorm: no batch norm in the model" in outcome.out
    assert [path.name for path in (tmp_path / "outputs/runs").iterdir()] == ["random-nf_resnet26-agc"]


def test_settings_are_shown_as_the_command_line_takes_them(small):
    outcome = small("norm=[none,agc]", "agc.exclude=['0','6']", "train.max_steps=1")
    assert outcome.code == 0, outcome.err
    assert "skipinit=false, fixup=false" in outcome.out
    assert "exclude=[0,6]" in outcome.out
    assert "groups=" not in outcome.out  # empty


def test_sync_batchnorm_on_one_cpu_is_batch_norm(small, tmp_path):
    for sync in ("false", "true"):
        outcome = small(f"train.sync_batchnorm={sync}", "train.max_steps=2", f"name=sync-{sync}")
        assert outcome.code == 0, outcome.err
        assert ("sync_batchnorm: 3 batch norms" in outcome.out) == (sync == "true")
        assert ("left as they are" in outcome.out) == (sync == "false")
    plain, synced = (rows(tmp_path / f"outputs/runs/sync-{sync}")[-1] for sync in ("false", "true"))
    assert plain == synced
    summary = json.loads((tmp_path / "outputs/runs/sync-true/summary.json").read_text())
    assert summary["methods"] == {"batchnorm": 3, "sync_batchnorm": 3}


def test_a_new_folder_in_which_nothing_may_be_written_does_not_stay(small, tmp_path, monkeypatch):
    def refuse(path, flags):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("runner.results.run_lock.open_unlinked", refuse)
    outcome = small("train.epochs=1", "name=run")
    assert outcome.code == 2
    assert "paths.outputs=outputs: no folder can be made there" in outcome.err.replace("\n", " ")
    assert "Permission denied" in outcome.err
    assert not (tmp_path / "outputs").exists()
