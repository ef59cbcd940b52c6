"""The simulation that shows how often verdicts are wrong."""

import runpy
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts/calibrate_verdicts.py"


def test_equal_methods_that_differ_by_image_are_told_apart_by_seeds_alone_and_not_by_seeds_and_images():
    decided = runpy.run_path(str(SCRIPT))["_decided"]
    ours, alone = decided(5, 359, 1.5, 0.0, 0.7, number=100, seed=0)
    assert ours <= 0.12  # 5 % and three standard errors
    assert alone > 0.2


def test_a_wrong_number_of_studies_is_told():
    done = subprocess.run([sys.executable, SCRIPT, "--studies", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--studies 0: it must be at least 1" in done.stderr


def test_a_rule_for_one_look_errs_often_at_many_and_the_sequential_one_does_not():
    script = runpy.run_path(str(SCRIPT))
    for kind, about in (("of_images", (359, 0.0, 0.3, 0.7)), ("of_means", ())):
        ours, one_look = script["_any_look"](script[kind], 30, *about, number=80, seed=0)
        assert ours <= 0.125  # 5 % and three standard errors
        assert one_look > 0.125
