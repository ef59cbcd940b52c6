"""What may be resumed: a run that would change what its weights compute is refused before anything is written."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from torch import nn

from runner import load_run
from runner.config.validation import CONF, METHOD_GROUPS
from runner.experiment.resume import MAY_CHANGE, check_fit, check_left, check_methods, check_settings
from runner.results.record import read_record
from runner.training.checkpoint import load_checkpoint, save_checkpoint

RESUME = "resume=outputs/runs/run"


def files(folder):
    """All that lies in a folder: bytes of files, targets of links."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def refused(small, finished, tmp_path):
    """`refused(first, then, *parts)`: a run with `first` is not resumed with `then`; the message has all of `parts`."""

    def call(first, then, *parts):
        finished(*first, "train.epochs=1")
        before = files(tmp_path)
        outcome = small(RESUME, *then)
        assert outcome.code == 2, outcome.out
        for part in (f"{RESUME}: ", *parts):
            assert part in outcome.err
        assert files(tmp_path) == before

    return call


@pytest.mark.parametrize(
    "method", ["regularization=mixup", "regularization=label_smoothing", "train.sync_batchnorm=true"]
)
def test_a_method_cannot_join_a_run(refused, method):
    name = method.partition("=")[2] if "regularization" in method else "sync_batchnorm"
    refused([], ["train.epochs=2", method], f"{name} was not part of the run", "Leave out the override")


def test_a_method_cannot_leave_a_run(refused):
    first = ["norm=weight_standardization"]
    refused(first, ["norm=batchnorm"], "weight_standardization is part of the run: the weights so far were trained")


def test_a_method_that_was_given_settings_cannot_leave_either(refused):
    first = ["regularization=mixup", "mixup.alpha=0.4"]
    refused(first, ["train.epochs=2", "regularization=[]"], "mixup is part of the run")


def test_a_run_whose_classes_had_other_names_goes_on(small, finished):
    """Records of older versions name runner.methods.groupnorm.GroupNorm, and so on."""
    run = finished("norm=groupnorm", "regularization=dropout", "train.epochs=1")
    record = read_record(run / "record.json")
    for node, target in {"groupnorm": "groupnorm.GroupNorm", "dropout": "dropout.Dropout"}.items():
        assert record.settings[node]["_target_"] == f"runner.methods.{target}Method"
        record.settings[node]["_target_"] = f"runner.methods.{target}"
    record = replace(record, before=None)
    (run / "record.json").write_text(record.text)
    (run / "config.yaml").write_text(yaml.safe_dump(record.settings))
    for path in (run / "checkpoints").glob("*.pt"):
        checkpoint = load_checkpoint(path)
        save_checkpoint(path, {**checkpoint, "about": {**checkpoint["about"], "record": record.text}})
    model, config = load_run(run)
    assert any(isinstance(module, nn.GroupNorm) for module in model.modules())
    assert config.groupnorm._target_ == "runner.methods.groupnorm.GroupNormMethod"
    outcome = small(RESUME, "train.epochs=2")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("first", "then", "earlier"),
    [
        ("norm=groupnorm", "groupnorm.num_groups=8", "groupnorm.num_groups=32"),
        ("norm=weight_standardization", "weight_standardization.ignore=['3']", "weight_standardization.ignore=[]"),
        ("regularization=stochastic_depth", "stochastic_depth.drop_rate=0.5", "stochastic_depth.drop_rate=0.2"),
        ("seed=3", "seed=4", "seed=3"),
        ("seed=3", "train.global_batch_size=16", "train.global_batch_size=8"),
        ("seed=3", "dataset.num_images=64", "dataset.num_images=32"),
        ("seed=3", "model.zero_init_residual=true", "model.zero_init_residual=false"),
    ],
)
def test_what_a_run_keeps(refused, first, then, earlier):
    refused([first], ["train.epochs=2", then], f"{then.replace(chr(39), '')}: the run so far has {earlier}, which a")


def test_what_may_change(small, finished):
    first = ["norm=[batchnorm,agc]", "regularization=[mixup,label_smoothing]"]
    then = ["agc.clip=0.1", "agc.groups={3.conv1:0.02}", "mixup.alpha=0.4", "label_smoothing.smoothing=0.2"]
    finished(*first, "train.epochs=1")
    outcome = small(RESUME, "train.epochs=2", "optimizer.lr=0.01", "schedule=constant", *then)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("then", [[], ["train.epochs=2", "train.max_steps=4"]])  # an epoch has 4 steps
def test_nothing_left_to_train(refused, then):
    refused([], then, "nothing is left to train: the run has 1 epochs done, 4 steps")


def test_a_run_stopped_before_its_test_is_tested(small, finished, tmp_path):
    finished("train.epochs=1")
    file = tmp_path / "outputs/runs/run/summary.json"
    file.write_text(json.dumps({"status": "interrupted"}))
    assert small(RESUME).code == 0
    assert json.loads(file.read_text())["metrics"]["accuracy"] is not None


@pytest.mark.parametrize(
    ("epoch", "batch", "step", "train", "completed", "left"),
    [
        (2, 0, 8, {"epochs": 3, "max_steps": None}, True, True),
        (2, 0, 8, {"epochs": 2, "max_steps": None}, True, False),
        (2, 0, 8, {"epochs": 2, "max_steps": None}, False, True),
        (2, 1, 9, {"epochs": 2, "max_steps": None}, False, False),
        (2, 1, 9, {"epochs": 3, "max_steps": 9}, True, False),
        (2, 1, 9, {"epochs": 3, "max_steps": 9}, False, True),
        (2, 1, 9, {"epochs": 3, "max_steps": 8}, False, False),
        (2, 1, 9, {"epochs": 3, "max_steps": 10}, True, True),
    ],
)
def test_what_is_left(epoch, batch, step, train, completed, left):
    progress = {"epoch": epoch, "batch": batch, "step": step}
    if left:
        check_left(progress, train, completed=completed)
        return
    key = "max_steps" if epoch < train["epochs"] else "epochs"
    least = step + 1 if key == "max_steps" else epoch + 1
    with pytest.raises(ValueError, match=rf"^nothing is left to train: .* set train\.{key}={least} or more\.$"):
        check_left(progress, train, completed=completed)


def test_methods_and_settings_in_plain_data():
    check_methods(["a", "b"], ["b", "a"])
    with pytest.raises(ValueError, match=r"^a is part of the run"):
        check_methods(["a"], [])
    now = {"seed": 0, "train": {"global_batch_size": 8}, "own": {"rate": 2, "new": 3}, "agc": {"clip": 1}}
    before = {**now, "own": {"rate": 2}, "agc": {"clip": 2}}
    check_settings(before, now, ["own", "agc"])  # a setting that is new has no say
    with pytest.raises(ValueError, match=r"own.rate=2: the run so far has own.rate=1,"):
        check_settings({**before, "own": {"rate": 1}}, now, ["own", "agc"])


def test_a_job_of_an_earlier_version_does_not_go_on_with_another_decoder():
    """A sweep's job is composed anew, without the overrides of its folder."""
    now = {"seed": 0, "train": {"global_batch_size": 8}, "dataset": {"name": "image_folder", "decode": "torchvision"}}
    before = {**now, "dataset": {"name": "image_folder"}}
    with pytest.raises(ValueError, match=r"^dataset\.decode=torchvision: the run so far has dataset\.decode=pil"):
        check_settings(before, now, [])
    check_settings(before, {**now, "dataset": {"name": "image_folder", "decode": "pil"}}, [])


@pytest.mark.parametrize("name", sorted(MAY_CHANGE))
def test_the_settings_that_may_change_exist(composed, name):
    choices = {"model": ["model=nf_resnet26"], "dataset": ["dataset=cifar10", "dataset=imagenet"]}
    choices |= {p.stem: [f"{group}={p.stem}"] for group in METHOD_GROUPS for p in (CONF / group).glob("*.yaml")}
    assert set(MAY_CHANGE[name]) <= {key for choice in choices[name] for key in composed(choice)[name]}


def test_a_checkpoint_fits_its_model_and_optimizer():
    model, about = nn.Linear(2, 2), {"optimizer": "sgd"}
    checkpoint = {"model": model.state_dict(), "about": about}
    check_fit(checkpoint, model, "sgd")
    with pytest.raises(ValueError, match="1 tensors of its checkpoint, weight the first"):
        check_fit(checkpoint, nn.Linear(3, 2), "sgd")
    with pytest.raises(ValueError, match="holds the state of sgd, not of optimizer=adamw"):
        check_fit(checkpoint, model, "adamw")


def damage(line, text):
    def change(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        lines[line - 1] = text
        (folder / "metrics.jsonl").write_text("\n".join([*lines, ""]))

    return change


def in_its_place(name, make):
    def change(folder):
        path = folder / name
        if path.is_dir():
            path.rename(folder / "moved")
        path.unlink(missing_ok=True)
        make(path)

    return change


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (damage(2, '{"step": 4, "ep'), "metrics.jsonl, line 2: not JSON"),
        (damage(1, "[1]"), "metrics.jsonl, line 1: not a JSON object"),
        (damage(3, '{"step": "4", "epoch": 1, "split": "train"}'), "metrics.jsonl, line 3: no row of metrics"),
        (damage(1, "[" * 10**5), "metrics.jsonl, line 1: not JSON (nested too deeply)"),
        (in_its_place("metrics.jsonl", os.mkdir), "metrics.jsonl is no regular file"),
        (in_its_place("metrics.jsonl", os.mkfifo), "metrics.jsonl is no regular file"),
        (in_its_place("summary.json", os.mkdir), "summary.json is no regular file"),
        (in_its_place("error.txt", os.mkfifo), "error.txt is no regular file"),
        (in_its_place("probes", lambda path: path.symlink_to("/")), "probes is a symbolic link"),
        (in_its_place("checkpoints", lambda path: path.symlink_to("moved")), "checkpoints is a symbolic link"),
        (in_its_place(".lock", lambda path: path.symlink_to("metrics.jsonl")), "it is a symbolic link"),
        (in_its_place(".lock", os.mkfifo), "it is no regular file"),
    ],
)
def test_a_refusal_changes_no_byte_of_the_folder(small, finished, tmp_path, change, part):
    change(finished("train.epochs=1", "train.log_every_steps=2"))
    before = files(tmp_path)
    outcome = small(RESUME, "train.epochs=2")
    assert outcome.code == 2, outcome.out
    assert part in outcome.err
    assert files(tmp_path) == before


def test_a_refusal_leaves_no_lock_behind(small, finished, tmp_path):
    finished("train.epochs=1")
    (tmp_path / "outputs/runs/run/.lock").unlink()
    before = files(tmp_path)
    assert small(RESUME).code == 2  # nothing is left to train
    assert files(tmp_path) == before


def test_damage_of_what_a_resumed_run_writes_anew_does_not_hinder_it(small, finished, tmp_path):
    finished("train.epochs=1")
    (tmp_path / "outputs/runs/run/summary.json").write_text("[]")
    assert small(RESUME, "train.epochs=2").code == 0
    assert json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())["status"] == "completed"


def test_a_finished_run_without_its_last_checkpoint_is_not_begun_anew(small, finished, tmp_path):
    finished("train.epochs=1")
    (tmp_path / "outputs/runs/run/checkpoints/last.pt").unlink()
    before = files(tmp_path)
    outcome = small(RESUME, "train.epochs=2")
    assert (outcome.code, files(tmp_path)) == (2, before)
    assert "last.pt is missing, without which a finished run cannot go on" in outcome.err


def test_a_folder_whose_settings_cannot_be_written_is_told_in_a_line(small, tmp_path, monkeypatch):
    unlink = Path.unlink

    def full(path, missing_ok=False):
        if path.name == "overrides.yaml":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", full)
    outcome = small("name=run", "train.max_steps=1")
    assert outcome.code == 1
    assert "cannot be written (Input/output error)" in outcome.out + outcome.err
    assert "Traceback" not in outcome.out + outcome.err
