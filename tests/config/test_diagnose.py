"""What is said of an override that Hydra cannot compose."""

import pytest

from runner.config.diagnose import diagnose


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["norm=agx"], "norm=agx: norm has no option agx. Did you mean agc? Options: agc, batch"),
        (["norm=[agc,foo]"], "norm=[agc,foo]: norm has no option foo."),
        (["norm=agc,foo"], "norm=agc,foo: norm has no option foo."),
        (["norm=null"], "norm=null: name one of the group's options."),
        (["model=resnet17"], "Did you mean resnet1"),
        (["model=[resnet18,resnet34]"], "model takes one option, not a list."),
        (["norm=batchnorm,agc"], "several options make a sweep; add -m, or write a list: 'norm=[a,b]'."),
        (["train.epochs=1,2"], "several values make a sweep; add -m"),
        (["agc.clip=0.1"], "agc.clip=0.1: agc is not part of this run; add norm=agc."),
        (["stochastic_depth.drop_rate=0.1"], "add regularization=stochastic_depth."),
        (["norm=agc", "agc.clp=0.1"], "agc.clp=0.1: there is no such setting. Did you mean clip?"),
        (["norm=[agc]", "agc.clp=0.1"], "Did you mean clip?"),
        (["norm=agc", "++agc.groups=[layer4]"], "agc.groups=[layer4]: it must be a mapping, as in {layer4: 0.02}."),
        (["norm=agc", "agc.exclude={a:1}"], "agc.exclude={a:1}: it must be a list, as in [a,b]."),
        (["norm=agc", "agc=[1]"], "agc=[1]: this is a group of settings; set agc.KEY=VALUE."),
        (["train.epoch=3"], "train.epoch=3: there is no such setting. Did you mean epochs?"),
        (["train.zzz=3"], "Settings of train: epochs, max_steps,"),
        (["optimizer=adamw", "optimizer.momentum=0.9"], "optimizer.momentum=0.9: there is no such setting."),
        (["nrm=agc"], "nrm=agc: there is no such setting. Did you mean norm?"),
        (["zzz=1"], "See python -m runner --cfg job."),
        (["train.epochs=[1"], "this is not of the form KEY=VALUE"),
        (["foo"], "foo: this is not of the form KEY=VALUE"),
    ],
)
def test_the_override_at_fault_is_named_with_a_remedy(overrides, message):
    assert message in str(diagnose(overrides, Exception("Hydra's words")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["norm=agc,foo"], "norm has no option foo."),
        (["train.epochs=1,2", "train.epoch=3"], "train.epoch=3: there is no such setting. Did you mean epochs?"),
    ],
)
def test_in_a_sweep_several_values_are_no_fault(overrides, message):
    assert message in str(diagnose(overrides, Exception("Hydra's words"), sweeping=True))


def test_a_setting_that_not_every_job_of_a_sweep_has():
    job, sweep = ["norm=batchnorm", "agc.clip=0.1"], ["norm=agc,batchnorm", "agc.clip=0.1,0.2"]
    refusal = str(diagnose(job, Exception("Hydra's words"), sweep=sweep))
    assert refusal.startswith("agc.clip=0.1: not every job of norm=agc,batchnorm has agc. Make a sweep of the options ")
    elsewhere = ["norm=none,batchnorm", "agc.clip=0.1,0.2"]
    assert "add norm=agc" in str(diagnose(job, Exception("Hydra's words"), sweep=elsewhere))


def test_an_entry_of_a_mapping_is_no_fault():
    assert str(diagnose(["norm=agc", "++agc.groups.layer4=0.1"], Exception("Hydra's words"))) == "Hydra's words"


def test_without_a_known_fault_the_first_line_of_the_cause_is_given():
    assert str(diagnose(["seed=1"], Exception("first line\nsecond"))) == "first line"
