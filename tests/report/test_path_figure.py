"""The figure of a study's looks."""

from __future__ import annotations

import numpy as np
import pytest

from runner.claims.sequential import Look
from runner.claims.verdict import judge
from runner.report.path_figure import path_figure
from tests.claims.test_verdict import two_arms

CLAIMS = [
    {"claim": f"It helps by {bound}.", "measure": "test/score", "plus": {"case": "new"}, "minus": {"case": "old"}}
    | {"holds": {"above": bound}}
    for bound in (0, 0.1)
]


def test_each_claim_with_looks_has_a_plot_of_its_intervals():
    values = [0.59, 0.6, 0.61, 0.6, 0.64, 0.6]
    verdicts = judge(CLAIMS, two_arms(values, [0.5] * 6), sequential=True)
    assert [verdict.verdict for verdict in verdicts] == ["holds", "undecidable here"]
    figure = path_figure(verdicts, CLAIMS)
    first, second = figure.axes
    assert first.get_title("left") == "1. It helps by 0."
    np.testing.assert_allclose(first.lines[0].get_xydata()[:, 0], [4, 5, 6])
    np.testing.assert_allclose(first.lines[0].get_ydata(), [100 * (np.mean(values[:n]) - 0.5) for n in (4, 5, 6)])
    [bars] = (container for container in second.containers)
    segments = bars[2][0].get_segments()
    for segment, look in zip(segments, verdicts[1].looks, strict=True):
        assert isinstance(look, Look)
        np.testing.assert_allclose(segment[:, 1], [100 * look.low, 100 * look.high])
    decided = [line for line in first.lines if line.get_linestyle() == ":"]
    assert decided[0].get_xdata()[0] == 4
    assert not [line for line in second.lines if line.get_linestyle() == ":"]


@pytest.mark.parametrize("holds", [{"below": 3.0}, {"within": [1.0, 1.5]}])
def test_ratios_have_a_logarithmic_axis(holds):
    claim = {**CLAIMS[0], "combine": "ratio", "holds": holds}
    [axes] = path_figure(judge([claim], two_arms([0.6, 0.8, 0.7, 0.9], [0.5] * 4), sequential=True), [claim]).axes
    assert axes.get_yscale() == "log"


def test_there_is_none_before_the_first_look():
    assert path_figure(judge(CLAIMS, two_arms([0.6] * 3, [0.5] * 3), sequential=True), CLAIMS) is None
    assert path_figure(judge(CLAIMS, two_arms([0.6] * 6, [0.5] * 6)), CLAIMS) is None
