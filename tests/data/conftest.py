"""Fixtures of the tests of data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.data import file_cache


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, in the place of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(file_cache, "cache_folder", lambda: folder)
    return folder
