"""The workspace that `runner workspace` makes of a sweep, as wandb-workspaces itself reads it back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import yaml
from PIL import Image

from runner.commands.workspace import logged_by, main
from runner.results.runs import read_runs
from runner.tracking import workspace
from runner.tracking.workspace import Logged, as_json, build_workspace

ROWS = [
    {"step": 0, "epoch": 0, "split": "probe", "clipping/share_above": 0.9},
    {"step": 5, "epoch": 1, "split": "steps", "loss": 2.0, "lr": 0.1, "agc/clipped_share": 0.5},
    {"step": 9, "epoch": 1, "split": "train", "loss": 1.0, "accuracy": 0.5, "agc/clipped_share": 0.5},
    {"step": 9, "epoch": 1, "split": "validation", "loss": 1.0, "accuracy": 0.5, "seconds": 1.0},
]
pytestmark = [
    pytest.mark.usefixtures("offline_machine"),
    pytest.mark.skipif(not workspace.is_installed(), reason="wandb-workspaces is missing: pip install '.[dashboards]'"),
]


def read_back(text: str):
    """The library's own reading of what its server would have been given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from wandb_workspaces.workspaces import Workspace
        from wandb_workspaces.workspaces.internal import View
    return Workspace._from_model(View.model_validate_json(text))


def metrics_of(found) -> set[str]:
    """What the panels show: metrics of lines, summaries of bars, keys of pictures."""
    panels = [panel for section in found.sections for panel in section.panels]
    shown = [entry for panel in panels for entry in getattr(panel, "y", getattr(panel, "metrics", []))]
    return {entry.name for entry in shown} | {key for panel in panels for key in getattr(panel, "media_keys", [])}


@pytest.fixture
def sweep(tmp_path) -> Path:
    """A sweep of two clips and two seeds, written by hand, as the runner leaves it."""
    folder = tmp_path / "sweeps" / "clips"
    for clip in ("0.01", "0.02"):
        for seed in (0, 1):
            job = folder / f"agc.clip={clip},seed={seed}"
            (job / "probes").mkdir(parents=True)
            overrides = ["norm=agc", f"agc.clip={clip}", f"seed={seed}"]
            summary = {"status": "completed", "overrides": overrides, "throughput": {"images_per_second": 9.0}}
            summary |= {"metrics": {"accuracy": 0.5, "loss": 1.0}, "best": {"accuracy": 0.5, "loss": 1.0, "epoch": 1}}
            (job / "summary.json").write_text(json.dumps(summary))
            (job / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
            config = {"seed": seed, "agc": {"clip": float(clip)}, "paths": {"outputs": "outputs"}}
            config["wandb"] = {"project": "runner", "entity": None, "group": None}
            (job / "config.yaml").write_text(yaml.safe_dump(config))
            Image.new("RGB", (2, 2)).save(job / "probes" / "clipping-step0.png")
    return folder


@pytest.fixture
def call(capsys):
    """`call(...)` runs the subcommand; gives its exit code, its output and its errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            code = end.code
        return code or 0, *capsys.readouterr()

    return run


def test_without_an_account_the_workspace_is_a_file_in_the_sweeps_folder(call, sweep):
    code, out, err = call(sweep, "--project", "mine")
    assert (code, err) == (0, "")
    assert "wandb sync outputs/wandb/offline-run-*" in out
    assert f"python -m runner workspace {sweep} --project mine" in out
    found = read_back((sweep / "wandb_workspace.json").read_text())
    assert (found.project, found.name, found.auto_generate_panels) == ("mine", "Sweep clips", True)
    runs = found.runset_settings
    assert runs.filters == """Metric("Group") == 'clips'"""
    assert [group.name for group in runs.groupby] == ["overrides/agc/clip"]  # a seed is a repetition, no group
    assert {"config:overrides/agc/clip.value", "summary:status", "summary:validation/accuracy"} <= {
        *runs.pinned_columns
    }
    shown = metrics_of(found)
    assert {"validation/accuracy", "test/accuracy", "train/loss", "steps/loss"} <= shown
    bars = [panel for section in found.sections for panel in section.panels if hasattr(panel, "metrics")]
    assert [bar.metrics[0].name for bar in bars if bar.title == "best validation accuracy"] == ["validation/accuracy"]
    assert {"steps/agc/clipped_share", "throughput/images_per_second", "probe/clipping", "step"} <= shown
    assert "steps/images_per_second" not in shown  # which no run logged


def test_a_file_of_ones_own(call, sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "has_account", lambda: pytest.fail("--json needs no account"))
    code, out, _ = call(sweep, "--json", tmp_path / "mine.json", "--entity", "team")
    assert code == 0
    assert read_back((tmp_path / "mine.json").read_text()).entity == "team"
    assert f"python -m runner workspace {sweep} --entity team\n" in out
    assert not (sweep / "wandb_workspace.json").exists()


def test_with_an_account_it_is_saved(call, sweep, monkeypatch):
    saved = []
    monkeypatch.setattr(workspace, "has_account", lambda: True)
    monkeypatch.setattr(workspace, "default_entity", lambda: "me")
    monkeypatch.setattr(workspace, "save", lambda found: saved.append(found) or "https://wandb.example/me/runner")
    assert call(sweep) == (0, "https://wandb.example/me/runner\n", "")
    assert [(found.entity, found.project) for found in saved] == [("me", "runner")]
    assert not (sweep / "wandb_workspace.json").exists()

    def fail(_: object) -> str:
        raise RuntimeError("no network\nand more")

    monkeypatch.setattr(workspace, "save", fail)
    code, _, err = call(sweep)
    assert code == 1
    assert err == "W&B could not save the workspace (RuntimeError: no network).\n"
    assert (sweep / "wandb_workspace.json").is_file()


def test_wrong_folders_and_a_missing_package(call, sweep, tmp_path, monkeypatch):
    run = next(sweep.iterdir())
    for folder in (tmp_path / "nowhere", tmp_path, run):
        code, out, err = call(folder)
        assert (code, out) == (2, "")
        assert str(folder) in err
        assert err.count("\n") == 1
    (run / "metrics.jsonl").write_text("{\n")
    assert call(sweep)[0] == 2
    monkeypatch.setattr(workspace, "is_installed", lambda: False)
    code, _, err = call(sweep)
    assert code == 2
    assert "pip install '.[dashboards]'" in err


def test_numbers_of_probes_are_bars_of_one_moment_and_lines_over_several():
    logged = Logged(names={"probe/sharpness/largest", "validation/mean_iou"}, moments={0})
    about = {"title": "t", "group": "g", "swept": [], "project": "p"}
    for moments, kind in (({0}, "BarPlot"), ({0, 50}, "LinePlot")):
        logged.moments = moments
        found = read_back(as_json(build_workspace(logged, **about)))
        panels = {panel.title: type(panel).__name__ for section in found.sections for panel in section.panels}
        assert panels["sharpness/largest"] == kind
    assert metrics_of(found) == {"validation/mean_iou", "probe/sharpness/largest", "step"}
    assert found.sections[0].name == "Score: mean IoU"


def test_every_panel_shows_what_wandb_has(call, runner, small_model, records, tmp_path):
    """Against the file that W&B itself wrote."""
    words = ["dataset=random", "dataset.num_images=32", "dataset.image_size=8", "train.global_batch_size=8"]
    words += ["train.device=cpu", "train.epochs=1", "train.log_every_steps=2", "norm=agc", "sweep.name=s"]
    assert runner("-m", *words, "probe=clipping", "seed=0").code == 0
    logged = logged_by(read_runs([tmp_path / "outputs/sweeps/s"]))
    found = records(tmp_path / "outputs")
    known = {key.removesuffix("._type") for point in found["history"] for key in point["item"]}
    known |= {key for summary in found["summary"] for key in summary["update"]}
    about = {"title": "t", "group": "s", "swept": [], "project": "p"}
    shown = metrics_of(read_back(as_json(build_workspace(logged, **about))))
    assert {"steps/agc/clipped_share", "probe/clipping", "validation/loss", "throughput/train_seconds"} <= shown
    assert shown <= known
