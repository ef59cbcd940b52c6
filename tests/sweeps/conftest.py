"""A fixture of the tests of sweeps."""

import pytest


@pytest.fixture
def without_figures(monkeypatch):
    """Most of the time would go into the report's figures, which are tested elsewhere."""
    monkeypatch.setattr("runner.report.report.Report.results", lambda report: iter(()))
    monkeypatch.setattr("runner.report.report.Report.curves", lambda report: iter(()))
