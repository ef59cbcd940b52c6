"""The record of a run in its folder and in each checkpoint: what one lacks the others tell, what differs is told."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from runner import load_run
from runner.commands import evaluate
from runner.files.readers import Unreadable
from runner.report.report import read_report
from runner.results.record import Record, verified_record
from runner.results.runs import read_run
from runner.training.checkpoint import load_checkpoint, save_checkpoint

RESUME = "resume=outputs/runs/run"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(finished):
    """A run of one epoch with settings that are not the defaults."""
    return finished("optimizer.lr=0.03", "seed=3", "train.epochs=1")


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def changed(folder, **settings):
    """config.yaml with other values of these keys, as `optimizer__lr=0.1`; MISSING without them."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in settings.items():
        *above, last = key.split("__")
        node = config
        for name in above:
            node = node[name]
        node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def as_older_version(folder):
    """The folder as a version without a record left it."""
    record = json.loads((folder / "record.json").read_text())
    (folder / "overrides.yaml").write_text(yaml.safe_dump(record["overrides"]))
    (folder / "record.json").unlink()
    for path in (folder / "checkpoints").glob("*.pt"):
        checkpoint = load_checkpoint(path)
        del checkpoint["about"]["record"]
        save_checkpoint(path, checkpoint)


def test_folder_and_checkpoints_hold_one_record(folder):
    text = (folder / "record.json").read_text()
    record = json.loads(text)
    assert record["settings"] == yaml.safe_load((folder / "config.yaml").read_text())
    assert record["id"] == json.loads((folder / "summary.json").read_text())["wandb_id"]
    for name in ("last", "best"):
        assert load_checkpoint(folder / f"checkpoints/{name}.pt")["about"]["record"] == text
    digest = record.pop("sha256")
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    assert digest == hashlib.sha256(canonical).hexdigest()


def test_every_changed_character_of_a_record_is_found():
    record = Record("a-1", "now", {"seed": 3, "optimizer": {"lr": 0.1}}, ("seed=3",))
    assert Record.parse(record.text, "here") == record
    for place in range(len(record.text) - 1):
        letter = "7" if record.text[place] != "7" else "8"
        text = record.text[:place] + letter + record.text[place + 1 :]
        with pytest.raises(Unreadable, match="here: "):
            Record.parse(text, "here")


@pytest.mark.parametrize("missing", [["config.yaml"], ["record.json"], ["config.yaml", "record.json"]])
def test_what_is_left_is_enough_to_go_on_and_to_refuse(small, folder, missing):
    for name in missing:
        (folder / name).unlink()
    before = content(folder)
    for word, part in (("seed=4", "seed=3"), ("dataset.num_images=64", "dataset.num_images=32")):
        outcome = small(RESUME, "train.epochs=2", word)
        assert outcome.code == 2, outcome.out
        assert part in outcome.err
        assert content(folder) == before
    assert load_run(folder)[1].optimizer.lr == 0.03
    assert evaluate.evaluate_run(folder, "best", "test", []).startswith("random test, 8 images")
    assert small(RESUME, "train.epochs=2").code == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["lr"] == 0.03
    assert json.loads((folder / "record.json").read_text())["settings"]["seed"] == 3


@pytest.mark.parametrize("text", ["a: [", "[1, 2]", "\0", "seed: 3\n", "seed: 2020-01-01\n"])
def test_a_cut_configuration_is_told_and_stood_in_for(small, folder, text):
    (folder / "config.yaml").write_text(text)
    if "2020" in text:  # no value that a configuration can hold
        text = "values that are no settings"
    outcome = small(RESUME, "train.epochs=2")
    assert outcome.code == 0, outcome.err
    assert "config.yaml: " in outcome.out
    assert yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["lr"] == 0.03


def test_a_damaged_record_is_told_and_stood_in_for(small, folder):
    text = (folder / "record.json").read_text()
    (folder / "record.json").write_text(text.replace("0.03", "0.06"))
    outcome = small(RESUME, "train.epochs=2")
    assert outcome.code == 0, outcome.err
    assert "its checksum does not match" in " ".join(outcome.out.split())
    assert json.loads((folder / "record.json").read_text())["settings"]["optimizer"]["lr"] == 0.03


def test_without_a_checkpoint_a_damaged_record_is_refused(small, folder):
    (folder / "record.json").write_text("{}")
    shutil.rmtree(folder / "checkpoints")
    (folder / "summary.json").unlink()
    before = content(folder)
    outcome = small(RESUME)
    assert (outcome.code, content(folder)) == (2, before)
    assert "record.json: it is damaged" in outcome.err


@pytest.mark.parametrize("key", ["optimizer__lr", "train__epochs", "seed"])
def test_a_changed_configuration_is_refused_with_both_values(small, folder, key):
    changed(folder, **{key: 7})
    before = content(folder)
    dotted, value = key.replace("__", "."), {"optimizer__lr": "0.03", "train__epochs": "1", "seed": "3"}[key]
    message = f"config.yaml was changed after the run: {dotted}=7 here, {value} in record.json"
    outcome = small(RESUME, "train.epochs=2")
    assert outcome.code == 2, outcome.out
    assert message in outcome.err
    assert content(folder) == before
    for read in (load_run, lambda folder: evaluate.evaluate_run(folder, "best", "test", [])):
        with pytest.raises(ValueError, match="was changed after the run"):
            read(folder)
    [note] = read_run(folder).notes
    assert message in note
    assert any(message in str(block) for block in read_report(folder, into=folder).blocks())
    (folder / "record.json").unlink()
    outcome = small(RESUME, "train.epochs=2")
    assert f"{dotted}=7 here, {value} in last.pt" in outcome.err


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize("with_record", [True, False])
def test_a_checkpoint_of_another_run_is_refused(small, folder, name, with_record):
    assert small("optimizer.lr=0.03", "seed=3", "train.epochs=1", "name=other").code == 0
    shutil.copy(folder.with_name("other") / f"checkpoints/{name}.pt", folder / "checkpoints")
    if not with_record:
        (folder / "record.json").unlink()
        (folder / "summary.json").unlink()
    before = content(folder)
    outcome = small(RESUME, "train.epochs=2")
    assert outcome.code == 2, outcome.out
    assert ".pt is of another run" in outcome.err
    assert content(folder) == before
    if with_record:
        with pytest.raises(ValueError, match=rf"{name}\.pt is of another run"):
            load_run(folder, name)


def test_a_kill_between_record_and_configuration_is_no_change(small, folder, monkeypatch):
    """config.yaml is then still that of the attempt before, and the attempt after that one may be killed there too."""
    kept = (folder / "config.yaml").read_bytes()

    def killed(path, *_, **__):
        raise KeyboardInterrupt

    for lr in ("0.01", "0.02"):
        with monkeypatch.context() as patch:
            patch.setattr("runner.results.run_folder.yaml.safe_dump", killed)
            small(RESUME, "train.epochs=2", f"optimizer.lr={lr}")
        assert (folder / "config.yaml").read_bytes() == kept
        assert json.loads((folder / "record.json").read_text())["settings"]["optimizer"]["lr"] == float(lr)
        assert not verified_record(folder, {}).notes
    assert small(RESUME, "train.epochs=2").code == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["lr"] == 0.02


def test_a_run_of_an_older_version(small, folder, capsys):
    as_older_version(folder)
    assert load_run(folder)[1].seed == 3
    words = (folder / "overrides.yaml").read_text()
    for text in ("[]", "- dataset=random\n- wandb.mode=disabled\n"):
        (folder / "overrides.yaml").write_text(text)
        line = evaluate.evaluate_run(folder, "best", "test", [])
        assert line.startswith("random test, 8 images")  # not the default's digits
    (folder / "overrides.yaml").write_text(words.replace("- optimizer.lr=0.03\n", ""))
    before = content(folder)
    outcome = small(RESUME, "train.epochs=2")
    assert outcome.code == 2, outcome.out
    assert "optimizer.lr=0.05: the run so far has optimizer.lr=0.03, and no override changes it" in outcome.err
    (folder / "overrides.yaml").write_text(words)
    (folder / "config.yaml").write_text("a: [")
    outcome = small(RESUME, "train.epochs=2", "seed=4")
    assert outcome.code == 2, outcome.out
    assert "config.yaml: not YAML" in outcome.err
    assert "An older version made this run" in outcome.err
    for path, text in before.items():
        path.write_bytes(text)
    (folder / "overrides.yaml").write_text(words)
    assert small(RESUME, "train.epochs=2").code == 0
    assert not (folder / "overrides.yaml").exists()
    assert json.loads((folder / "record.json").read_text())["settings"]["optimizer"]["lr"] == 0.03


def test_missing_rows_are_told(small, folder, tmp_path):
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[1:]))
    [note] = read_run(folder).notes
    assert f"has {len(lines) - 1} rows, where {len(lines)} were written" in note
    outcome = small(RESUME, "train.epochs=2")
    assert outcome.code == 0
    assert f"has {len(lines) - 2} rows up to step 4, where {len(lines) - 1} were" in " ".join(outcome.out.split())
    assert not read_run(folder).notes


def test_a_record_of_a_newer_run_is_no_reason_to_lose_settings(folder):
    record = Record.parse((folder / "record.json").read_text(), "record.json")
    (folder / "record.json").write_text(replace(record, id="another").text)
    with pytest.raises(ValueError, match=r"best\.pt is of another run, run-\w+, than the folder, another"):
        load_run(folder)
