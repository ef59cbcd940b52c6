from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def offline_machine(tmp_path, monkeypatch):
    """No settings and no key of W&B from the machine the tests run on; a new W&B session for each test."""
    import wandb

    wandb.teardown()  # first, so that no address of its service is put back into the environment
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()


@pytest.fixture
def records():
    """Reads the records of the only offline run in a folder, by kind."""

    def read(folder: Path) -> dict[str, list[dict]]:
        [log] = folder.glob("wandb/offline-run-*/*.wandb")
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        by_kind: dict[str, list[dict]] = {}
        for record in map(json.loads, lines):
            by_kind.setdefault(record["type"], []).append(record[record["type"]])
        return by_kind

    return read
