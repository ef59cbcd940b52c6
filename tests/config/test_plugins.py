"""Launchers and sweepers that are not there."""

import pytest

from runner.config import plugins


@pytest.mark.parametrize("flags", [["-m", "seed=0,1"], []])
@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("hydra/launcher=joblb", ["there is no such launcher. Did you mean joblib?"]),
        ("hydra/launcher=x", ["Choose one of basic, joblib, submitit_local"]),
        ("hydra/sweeper=optuna", ["no other sweeper than basic", "-m agc.clip=0.01,0.02"]),
        ("hydra/sweeper=[a,b]", ["no other sweeper than basic"]),
    ],
)
def test_one_that_does_not_exist_is_refused_with_the_remedy(runner, tmp_path, flags, word, parts):
    outcome = runner(*flags, word)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"Wrong setting. {word}: ")
    assert outcome.err.count("\n") == 1
    assert all(part in outcome.err for part in parts)
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_not_installed_is_named_with_its_package(runner, monkeypatch):
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    assert plugins.plugin_fault("hydra/launcher", "basic") is None
    for option, package in (("joblib", "joblib"), ("submitit_slurm", "submitit"), ("ray", "ray")):
        fault = plugins.plugin_fault("hydra/launcher", option)
        assert fault == f"it is not installed; pip install hydra-{package}-launcher."


def test_another_fault_is_not_blamed_on_a_launcher(runner):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert "trian.epochs=1: there is no such setting" in runner("-m", "hydra/launcher=joblib", "trian.epochs=1,2").err
