"""The studies: every job of each composes, its claims can be judged, and a small one runs from command to verdict."""

import re
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from runner.config.overrides import as_typed
from runner.config.recipes import without_replaced
from runner.config.validation import CONF, validate
from runner.sweeps.study import study_of, with_axes

FOLDER = CONF / "experiment"
STUDIES = sorted(
    file.relative_to(FOLDER).with_suffix("").as_posix()
    for file in FOLDER.rglob("*.yaml")
    if "sweep" in OmegaConf.load(file)
)
ASKED_FOR = {
    "bjorck": "fig1 fig2 fig3 fig4 fig5 fig6 table1",
    "brock": "fig2a fig2b first_layer last_layer clip_by_norm granularity clip_sensitivity signal_propagation",
    "ghost_batchnorm": "ghost_batch_size large_batch",
    "stochastic_depth": "cost drop_rate with_others",
    "weight_standardization": "norms deeplabv3plus",
    "combined": "factorial",
    "batchnorm": "discrepancy first_epoch largest_rate",
    "beyond": "stochastic_depth_window batchnorm_only ema_batchnorm ema_label_noise edge_of_stability",
}


def jobs_of(study):
    """The overrides of each of the study's jobs."""
    _, *words = with_axes([f"experiment={study}"])
    overrides = OverridesParser.create().parse_overrides(words)
    return [as_typed(job) for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]


def test_every_study_that_was_asked_for_comes_in_a_larger_size_too():
    for folder, names in ASKED_FOR.items():
        for name in names.split():
            sizes = [study for study in STUDIES if re.fullmatch(rf"{folder}/{name}(_.*)?", study)]
            [small] = [study for study in sizes if not study.endswith(("_gpu", "_paper"))]
            assert {*sizes} - {small} <= {f"{small}_gpu", f"{small}_paper"}, sizes
            assert len(sizes) > 1, sizes


@pytest.mark.parametrize("study", STUDIES)
def test_every_job_of_a_study_is_a_right_setting_and_its_claims_can_be_judged(study):
    jobs = jobs_of(study)
    assert len({tuple(sorted(job)) for job in jobs}) == len(jobs) > 1
    seeds = {word for job in jobs for word in job if word.startswith("seed=")}
    assert len(seeds) >= 3, "an interval needs repetitions"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for job in (jobs[0], jobs[-1]):  # all of them are checked when the study starts
            config = compose("config", overrides=job)
            validate(without_replaced(config, job))
    study_of(config.sweep, jobs)
    claims = OmegaConf.to_container(config.sweep.claims)
    assert claims
    assert all(claim["published"] for claim in claims)
    assert config.sweep.title
    assert config.sweep.source
    assert config.sweep.about


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_says_what_it_took_and_what_came_of_it(study):
    text = (FOLDER / f"{study}.yaml").read_text()
    fields = dict(re.findall(r"^# ([a-z ]+): {2,}(.*)", text, re.MULTILINE))
    assert shlex.split(fields["command"]) == ["python", "-m", "runner", f"experiment={study}"]
    assert {"hardware", "time"} < fields.keys()
    assert ("not run" if study.endswith("_paper") else "measured") in fields
    assert "TODO" not in text
