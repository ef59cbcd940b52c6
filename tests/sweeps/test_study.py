"""Studies: axes without -m, claims made ready for the jobs there are, and what one leaves behind."""

import json
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from runner.config.extensions import add_search_path
from runner.config.text import SettingError
from runner.config.typed import check_study
from runner.sweeps.study import study_of, with_axes

STUDY = "experiment=bjorck/fig5_activation_statistics"
AXES = ["model=resnet20,resnet56,resnet110", "norm=[none],[batchnorm]", "seed=range(10)"]
QUICK = ["dataset=random", "dataset.num_images=32", "dataset.image_size=8", "train.global_batch_size=8"]
QUICK += ["wandb.mode=disabled", "train.device=cpu"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([STUDY], ["-m", STUDY, *AXES]),
        ([STUDY, "--multirun", "seed=0,1"], ["-m", STUDY, "seed=0,1", *AXES[:2]]),
        ([STUDY, "seed=3"], ["-m", STUDY, "seed=3", *AXES[:2]]),
        ([STUDY, "seed=3", "norm=none", "model=resnet20"], [STUDY, "seed=3", "norm=none", "model=resnet20"]),
        (["sweep=bjorck/fig5_activation_statistics"], ["sweep=bjorck/fig5_activation_statistics"]),
        (["experiment=cluttered_digits/resnet20", "seed=1"], ["experiment=cluttered_digits/resnet20", "seed=1"]),
        ([STUDY, "--cfg", "job"], [STUDY, "--cfg", "job"]),
        ([STUDY, "resume=outputs/runs/a"], [STUDY, "resume=outputs/runs/a"]),
        (["experiment=no_such_thing"], ["experiment=no_such_thing"]),
        (["sweep=" + "x" * 300], ["sweep=" + "x" * 300]),
        (["-m", "norm=agc,none"], ["-m", "norm=agc,none"]),
    ],
)
def test_axes_become_a_sweep_unless_the_command_line_sets_them(arguments, expected):
    assert with_axes(arguments) == expected


def test_two_studies_are_not_one_sweep():
    with pytest.raises(SettingError, match="a study is a sweep of its own; name one at a time"):
        with_axes(["-m", f"{STUDY},bjorck/fig4_divergence"])


def test_an_axis_is_changed_by_its_own_key():
    with pytest.raises(SettingError, match="an axis is changed by its own key, as in seed=VALUE,VALUE"):
        with_axes([STUDY, "sweep.axes.seed=0,1"])


def study(claims, axes, measures=()):
    return OmegaConf.create(
        {"name": "s", "title": None, "axes": axes, "measures": list(measures), "names": {}, "claims": claims}
    )


CLAIM = {"claim": "It helps.", "published": "1 %", "measure": "test/score", "holds": {"above": 0}}


def test_claims_speak_of_the_values_that_the_jobs_have():
    claim = {
        **CLAIM,
        "plus": {"train.global_batch_size": "largest", "case": ["ghost_8", "ghost_64"]},
        "minus": [{"train.global_batch_size": "smallest", "case": "batchnorm"}],
    }
    axes = {"train.global_batch_size": "64,1024", "case": "batchnorm,ghost_8"}
    jobs = [
        [f"train.global_batch_size={size}", f"case={case}", "seed=0"]
        for size in (64, 1024)
        for case in ("batchnorm", "ghost_8")
    ]
    found = study_of(study([claim], axes), jobs)
    [made] = found["claims"]
    assert made["plus"] == {"train.global_batch_size": "1024", "case": ["ghost_8"]}
    assert made["minus"] == [{"train.global_batch_size": "64", "case": "batchnorm"}]
    assert found["axes"] == {"train.global_batch_size": ["64", "1024"], "case": ["batchnorm", "ghost_8"]}
    shortened = study_of(study([claim], axes), jobs[:1])  # the arms that are spoken of were not all asked for
    assert shortened["claims"][0]["plus"]["case"] == ["ghost_8"]


@pytest.mark.parametrize(
    ("claim", "measures", "message"),
    [
        ({**CLAIM, "plus": {"norm": "[agc]"}}, [], "norm"),
        ({**CLAIM, "plus": {"case": "ghost_88"}}, [], "ghost_88"),
        ({**CLAIM, "plus": {"case": "ghost_8"}, "measur": "x"}, [], "measur"),
        ({**CLAIM, "plus": {"case": "ghost_8"}}, ["test/acuracy"], "test/acuracy"),
    ],
)
def test_a_claim_that_nothing_can_bear_out_is_refused(claim, measures, message):
    jobs = [[f"case={case}"] for case in ("batchnorm", "ghost_8")]
    with pytest.raises(SettingError, match=message):
        study_of(study([claim], {"case": "batchnorm,ghost_8"}, measures), jobs)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("x", "entry 1=x: it must be a mapping"),
        ({**CLAIM, "plus": "x"}, "plus=x: it must be a mapping from swept keys to values"),
        ({**CLAIM, "plus": [{"case": "ghost_8"}, 3]}, "plus=.*: it must be a mapping from swept keys to values"),
        ({**CLAIM, "plus": {"case": "largest"}}, "case=largest: not all its values are numbers"),
    ],
)
def test_a_claim_of_another_form_is_refused(claim, message):
    with pytest.raises(SettingError, match=message):
        study_of(study([claim], {}), [["case=batchnorm"], ["case=ghost_8"]])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sweep.claims=[x]", "sweep.claims=[x]: it must be a list of mappings, each with claim, measure"),
        ("sweep.claims=null", "sweep.claims=null: it must be a list of mappings"),
        ("sweep.claims={a:1}", "sweep.claims={a:1}: it must be a list"),
        ("sweep.names=[x]", "sweep.names=[x]: "),
        ("sweep.measures=x", "sweep.measures=x: it must be a list"),
        ("sweep.measures=[[x]]", "sweep.measures=[[x]]: it must be a list"),
        ("sweep.axes=x", "sweep.axes=x: an axis is changed by its own key, as in KEY=VALUE,VALUE."),
    ],
)
@pytest.mark.parametrize("seeds", [("seed=0",), ("-m", "seed=0,1")])
def test_a_part_of_a_study_of_another_form_is_refused(small, tmp_path, word, message, seeds):
    outcome = small("train.max_steps=1", *seeds, word)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert not (tmp_path / "outputs").exists()


def test_names_of_an_axis_are_a_mapping():
    with pytest.raises(SettingError, match=r"sweep\.names={norm:x}: it must be a mapping of axes to names of their"):
        check_study({"axes": {}, "names": {"norm": "x"}, "claims": []})


@pytest.mark.parametrize(("axes", "place"), [("[norm]", "sweep.axes=[norm]"), ("{norm: '['}", "sweep.axes.norm=[")])
def test_axes_of_another_form_are_refused(tmp_path, axes, place):
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "odd.yaml").write_text(f"# @package _global_\nsweep:\n  axes: {axes}\n")
    with pytest.raises(SettingError) as refusal:
        with_axes(add_search_path([f"paths.extensions={tmp_path}", "experiment=odd"]))
    assert f"odd.yaml: {place}: write values as -m takes them" in str(refusal.value)


def test_a_study_runs_from_one_command_to_its_verdicts(runner):
    outcome = runner(STUDY, *QUICK, "model=resnet20", "seed=0,1", "sweep.name=s")
    assert outcome.code == 0, outcome.err + outcome.out
    folder = Path("outputs/sweeps/s")
    record = yaml.safe_load((folder / "sweep.yaml").read_text())
    assert record["command"].startswith(f"python -m runner {STUDY} dataset=random")
    assert record["axes"] == {"seed": ["0", "1"], "norm": ["[none]", "[batchnorm]"]}
    assert len(record["claims"]) == 3
    jobs = sorted(path.parent for path in folder.glob("*/summary.json"))
    assert len(jobs) == 4
    for job in jobs:
        summary = json.loads((job / "summary.json").read_text())
        assert (summary["status"], summary["metrics"]["accuracy"], summary["best"]) == ("completed", None, {})
        assert (job / "probes/activation_statistics.npz").is_file()
        sweep = yaml.safe_load((job / "config.yaml").read_text())["sweep"]
        one_by_one = {"jobs_at_once": None, "jobs_per_device": 1}
        undecided = {"decide": False, "budget": None, "max_seeds": 30}
        assert sweep == {"name": "s", "retry_failed": True, "mix": False, **one_by_one, **undecided}
        assert not any((job / "checkpoints").iterdir())
    assert "grows nearly exponentially with depth" in outcome.out
    assert "With batch norm it hardly changes with depth." in (folder / "report.md").read_text()
    assert "<title>Activations by depth at initialization" in (folder / "report.html").read_text()
    assert len((folder / "results.csv").read_text().splitlines()) == 5
    assert list((folder / "figures").glob("*.png"))


def test_a_wrong_measure_ends_before_anything_is_written(runner, tmp_path):
    outcome = runner(STUDY, *QUICK, "seed=0,1", "sweep.measures=[test/acuracy]")
    assert outcome.code == 2
    assert "test/acuracy" in outcome.err
    assert not (tmp_path / "outputs").exists()


def test_one_row_of_a_study_is_a_run(runner):
    outcome = runner(STUDY, *QUICK, "model=resnet20", "norm=none", "seed=1", "name=row")
    assert outcome.code == 0, outcome.err + outcome.out
    assert (Path("outputs/runs/row/probes") / "activation_statistics.png").is_file()
    assert "sweep" not in outcome.out
