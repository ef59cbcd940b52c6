"""Jobs that share nothing with the sweep in whose folder they would go."""

import pytest

from runner.results.arms import arms_of
from runner.results.runs import Run, read_runs, read_sweep
from runner.results.strays import strays

pytestmark = pytest.mark.usefixtures("without_figures")


def run(name, *overrides, dataset="fashion_mnist", model="resnet20"):
    return Run(name, "completed", overrides, resolved={"dataset": {"name": dataset}, "model": {"name": model}})


def test_a_stray_shares_no_override_and_has_other_data_or_another_model():
    words = ("dataset=fashion_mnist", "norm=agc")
    runs = [run(seed, *words, f"seed={seed}") for seed in range(3)]
    for overrides, options, is_stray in (
        (["train.max_steps=1"], {"dataset": "digits", "model": "resnet18"}, True),
        (["seed=0"], {"dataset": "digits"}, True),  # a seed is no setting
        (["seed=0"], {"model": "resnet18"}, True),
        (["norm=batchnorm"], {}, False),  # a baseline
        (["norm=agc", "dataset=digits"], {"dataset": "digits"}, False),
    ):
        assert bool(strays([run("new", *overrides, **options)], runs)) == is_stray, overrides
    assert strays([run("new", "a=1", dataset="digits")], []) == []


def test_the_rest_of_a_command_was_forgotten(small, runner, tmp_path):
    sweep = tmp_path / "outputs/sweeps/s"
    assert small("-m", "train.max_steps=1", "sweep.name=s", "norm=agc", "agc.clip=0.01,0.02").code == 0
    before = sorted(sweep.iterdir())
    words = ("-m", "train.max_steps=2", "wandb.mode=disabled", "sweep.name=s")
    refused = runner(*words)
    refused.assert_refused("sweep.name=s: its jobs share dataset=random ", "train.max_steps=2 has none of it")
    refused.assert_refused("sweep.mix=true")
    assert sorted(sweep.iterdir()) == before
    assert runner(*words, "sweep.mix=true").code == 0
    runs = read_runs([sweep])
    axes, arms = arms_of(runs, read_sweep(sweep))
    assert [axis.key for axis in axes] == ["agc.clip"]
    assert len(runs) == 3
    assert sum(len(arm.runs) for arm in arms) == 2
    assert "Not compared, since they share no setting with the others: " in (sweep / "report.md").read_text()
