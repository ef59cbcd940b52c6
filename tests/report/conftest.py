"""Run folders made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run("agc.clip=0.01", "seed=1", accuracy=0.9)` writes a run of 3 epochs into the sweep `tmp_path/sweep`."""

    def make(*overrides: str, accuracy: float | None = 0.9, test: float | None = None, **summary: object) -> Path:
        folder = tmp_path / "sweep" / (",".join(overrides).replace("/", "_") or "run")
        folder.mkdir(parents=True)
        seed = next((word.removeprefix("seed=") for word in overrides if word.startswith("seed=")), "0")
        (folder / "config.yaml").write_text(yaml.safe_dump({"seed": int(seed), "train": {"epochs": 3}}))
        content = {
            "status": "completed",
            "metrics": {"accuracy": accuracy if test is None else test, "loss": 0.3} if accuracy else {},
            "best": {"accuracy": accuracy, "loss": 0.25, "epoch": 3} if accuracy else {},
            "throughput": {"images_per_second": 812.4, "seconds": 30.5},
            "data": {"test": 359, "validation": 143, "validation_source": "train"},
            "error": None,
            "overrides": list(overrides),
            **summary,
        }
        (folder / "summary.json").write_text(json.dumps(content))
        rows = [
            {"step": epoch, "epoch": epoch, "split": split, "loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch}
            for epoch in (1, 2, 3)
            for split in ("train", "validation")
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return make
