"""The schema, and the rules between fields. A wrong setting is refused with its key, its value and a remedy."""

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from runner.config import validation as config_module
from runner.config.options import SINGLE_GROUPS, options_of_kind
from runner.config.text import SettingError
from runner.config.validation import CONF, method_nodes


def options(group):
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("group", ["model", "optimizer", "schedule", "dataset", "norm", "regularization"])
def test_every_option_composes_and_validates(composed, group):
    for option in options(group):
        other = {"model": "dataset=digit_scenes", "dataset": "model=deeplabv3plus_resnet18"}.get(group, "seed=0")
        segments = option in options_of_kind(group, "segmentation")
        config = composed(f"{group}={option}", *([other] if segments else []))
        if group in SINGLE_GROUPS:
            assert config[group].name == option
        else:
            assert option in method_nodes(config)


def test_the_defaults_are_those_of_the_yaml_files(composed):
    config = composed()
    raw = OmegaConf.load(CONF / "config.yaml")
    assert config.train.plain() == OmegaConf.to_container(raw.train)
    assert list(method_nodes(config)) == ["batchnorm"]


def test_several_methods_each_with_its_own_node(composed):
    config = composed(
        "norm=[ghost_batchnorm,weight_standardization,agc]", "regularization=[stochastic_depth]", "agc.clip=0.02"
    )
    assert set(method_nodes(config)) == {"ghost_batchnorm", "weight_standardization", "agc", "stochastic_depth"}
    assert config.agc.clip == 0.02


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epochs=abc"], "train.epochs=abc: it must be a whole number."),
        (["train.epochs=1.5"], "train.epochs=1.5: it must be a whole number."),
        (["train.epochs=null"], "train.epochs=null: it must be a whole number."),
        (["train.epochs=0"], "train.epochs=0: it must be a whole number in [1, 10^9]."),
        (["train.max_steps=x"], "train.max_steps=x: it must be a whole number, or null."),
        (["train.channels_last=3"], "train.channels_last=3: it must be true or false, or null."),
        (["optimizer.lr=true"], "optimizer.lr=true: it must be a number."),
        (["optimizer.lr=nan"], "optimizer.lr=nan: it must lie in (0, 10^9]."),
        (["wandb.tags=a"], "wandb.tags=a: it must be a list, as in [a,b]."),
        (["wandb.mode=onlin"], "wandb.mode=onlin: it must be one of offline, online, disabled. Did you mean online?"),
        (["norm=agc", "agc.clip=abc"], "agc.clip=abc: it must be a number."),
        (["norm=agc", "agc.clip=0"], "agc.clip=0.0: it must lie in (0, 10^9]."),
        (["norm=agc", "agc.exclude=fc"], "agc.exclude=fc: it must be a list, as in [a,b]."),
        (["norm=agc", "agc.exclude=[1]"], "agc.exclude=[1]: it must be a list of names, as in [a,b]"),
        (["norm=agc", "agc.exclude=[[layer1]]"], "agc.exclude=[[layer1]]: it must be a list of names"),
        (["norm=agc", "agc.groups=0.1"], "agc.groups=0.1: it must be a mapping, as in {layer4: 0.02}."),
        (["norm=agc", "agc.groups=null"], "agc.groups=null: it must be a mapping, as in {layer4: 0.02}."),
        (["norm=agc", "++agc.groups={4:0.1}"], "agc.groups={4:0.1}: it must be a mapping that gives each name one"),
        (["norm=agc", "++agc.groups={layer4:null}"], "agc.groups={layer4:null}: it must be a mapping that gives"),
        (["norm=agc", "++agc.groups.layer4.0=1"], "as in {layer4: 0.02, layer3.0.conv1: 0.01}."),
        (["norm=weight_standardization", "weight_standardization.ignore=[3]"], "weight_standardization.ignore=[3]: it"),
        (
            ["norm=weight_standardization", "weight_standardization.ignore=[null]"],
            "ignore=[null]: it must be a list of",
        ),
        (
            ["regularization=stochastic_depth", "stochastic_depth.target_layer_name=[a]"],
            "stochastic_depth.target_layer_name=[a]: it must be text, or null.",
        ),
        (["norm=agc", "agc=3"], "agc=3: this is a group of settings, not a value; set agc.KEY=VALUE."),
        (["+agc.clip=1"], "agc.clip=1: agc is not part of this run; add norm=agc."),
        (["+norm.agc.clip=1"], "norm: the first line of an option's YAML file must be # @package _global_."),
        (["+foo=1"], "foo=1: there is no such setting."),
        (["+trian.epochs=1"], "trian=...: there is no such setting. Did you mean train?"),
        (["+train.epoch=2"], "train.epoch=2: there is no such setting. Did you mean epochs?"),
        (["~train.epochs"], "train.epochs: this setting is missing; it needs a value."),
        (["~train"], "train: this setting is missing; it needs a value."),
        (["train=3"], "train=3: this is a group of settings, not a value; set train.KEY=VALUE."),
        (
            ["regularization=stochastic_depth", "stochastic_depth.drop_rate=1"],
            "stochastic_depth.drop_rate=1.0: it must",
        ),
        (["regularization=stochastic_depth", "stochastic_depth.drop_rate=-0.1"], "it must lie in [0, 1)."),
        (["train.accumulation_steps=3"], "train.accumulation_steps=3 micro-batches must divide it."),
        (["optimizer.momentum=0"], "set optimizer.nesterov=false."),
        (["schedule=multistep", "schedule.milestones=[0.7,0.5]"], "they must rise"),
        (["schedule=plateau", "schedule.milestones=[0.5,1]"], "they must rise"),
        (["schedule=plateau", "schedule.patience=0"], "schedule.patience=0: it must be a whole number in [1, 10^9]."),
        (["schedule=plateau", "schedule.max_doublings=-1"], "schedule.max_doublings=-1: it must be a whole number in"),
        (["probe=gradient_histogram", "probe.gradient_histogram.layer=[1]"], "layer=[1]: it must be a depth from 0.0"),
        (["probe=gradient_terms", "probe.gradient_terms.layers=0.5"], "layers=0.5: it must be a list, as in [a,b]."),
        (["probe=gradient_terms", "probe.gradient_terms.layers=[true]"], "layers=[true]: each entry must be a depth"),
        *(
            (["probe=loss_landscape", f"probe.loss_landscape.exponents={wrong}"], f"exponents={wrong}: it must be two")
            for wrong in ("[]", "[1.0]", "[1.0,1.0]", "[1.0,0.0]", "[0.0,1.0,2.0]")
        ),
        (["optimizer.lr=1e400"], "optimizer.lr=inf: it must lie in (0, 10^9]."),
        (["seed=" + "9" * 30], ": it must be a whole number in [-2147483648, 4294967295]."),
        (["model.pretrained=" + "x" * 300], ": it must be a path of at most 4095 bytes, 255 in each of its parts."),
        (["paths.extensions=" + "x" * 300], ": there is no such folder."),
        (["schedule=poly", "schedule.power=0"], "schedule.power=0.0: it must lie in (0, 10^9]."),
        (["schedule=onecycle", "schedule.pct_start=0"], "schedule.pct_start=0.0: it must lie in (0, 1]."),
        (["schedule=onecycle", "schedule.div_factor=1"], "schedule.div_factor=1.0: it must lie in (1, 10^9]."),
        (
            ["schedule=onecycle", "schedule.final_div_factor=0.5"],
            "schedule.final_div_factor=0.5: it must lie in [1, 10^9]",
        ),
        (["schedule=onecycle", "schedule.anneal=cosine"], "schedule.anneal=cosine: it must be one of cos, linear."),
        (
            ["optimizer=lars", "optimizer.trust_coefficient=0"],
            "optimizer.trust_coefficient=0.0: it must lie in (0, 10^9]",
        ),
        (["optimizer=lars", "optimizer.nesterov=true", "optimizer.momentum=0"], "set optimizer.nesterov=false."),
        (["optimizer.lr_batch_size=0"], "optimizer.lr_batch_size=0: it must be a whole number in [1, 10^9]."),
        (["train.ema=1"], "train.ema=1.0: it must lie in (0, 1)."),
        (["train.ema=true"], "train.ema=true: it must be a number, or null."),
        (["dataset.validation=0"], "dataset.validation=0.0: it must lie in (0, 1), or be test."),
        (["dataset.validation=2.0"], ": it must lie in (0, 1), or be test."),
        (["dataset.validation=tset"], ": it must lie in (0, 1), or be test."),
        (["name=../elsewhere"], "it names a folder"),
        (["norm=agc", "agc._target_=os.getcwd"], "add paths.allowed_packages=[os]."),
        (["norm=agc", "agc._target_=runner.methodsx.X"], "a method must come from runner.methods or from a package"),
        (["norm=agc", "agc._target_=a.b.C", "paths.allowed_packages=[a.c,b]"], "add paths.allowed_packages=[a]."),
        (["norm=agc", "agc._target_=AGC", "paths.allowed_packages=[AGC]"], "it must name a module and a class in it"),
        (["paths.allowed_packages=a"], "paths.allowed_packages=a: it must be a list, as in [a,b]."),
        (["paths.extensions=nowhere"], "paths.extensions=nowhere: there is no such folder."),
        (["model.name=resnet17"], "model.name=resnet17: choose an option of the group instead"),
    ],
)
def test_a_wrong_setting_is_refused(composed, overrides, message):
    with pytest.raises(SettingError) as refusal:
        composed(*overrides)
    assert message in str(refusal.value)


def test_a_package_or_a_part_of_one_may_be_allowed(composed):
    for allowed in ("a", "a.b"):
        assert composed("norm=agc", "agc._target_=a.b.C", f"paths.allowed_packages=[{allowed}]")


def test_a_mapping_takes_names_with_dots(composed):
    config = composed("norm=agc", "++agc.groups={layer4.1.conv1:0.02,fc:1}")
    assert config.agc.groups == {"layer4.1.conv1": 0.02, "fc": 1}


@pytest.mark.parametrize(
    ("default", "right", "wrong"),
    [("[0.5]", "[1,0.25]", "[a]"), ("[1,a]", "[null,2.5]", None), ("{a: 1}", "{a:2}", "{a:x}"), ("null", "[3]", None)],
)
def test_entries_are_of_the_kind_of_the_defaults(composed, tmp_path, default, right, wrong):
    """In a method from outside: entries of several kinds are not checked, nor is what is null by default."""
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm/own.yaml").write_text(f"# @package _global_\nown:\n  _target_: own.Own\n  entries: {default}\n")
    path = (f"hydra.searchpath=[file://{tmp_path}]", f"paths.extensions={tmp_path}", "paths.allowed_packages=[own]")
    assert composed(*path, "norm=own", f"own.entries={right}")
    if wrong:
        with pytest.raises(SettingError, match=r"own\.entries="):
            composed(*path, "norm=own", f"own.entries={wrong}")


def test_validation_on_the_test_split_is_a_choice(composed):
    assert composed("dataset.validation=test").dataset.validation == "test"


def test_a_list_of_models_is_refused():
    with pytest.raises(SettingError, match=r"model=\[...\]: this group takes one option"):
        config_module.one_option_each({"optimizer": "sgd", "schedule": "cosine", "dataset": "digits"})


def test_an_unknown_override_does_not_compose(composed):
    with pytest.raises(HydraException):
        composed("train.epoch=3")


def test_configurations_share_the_nodes_that_are_written_alike(composed):
    one, two = composed("seed=0", "norm=agc", "agc.clip=0.01"), composed("seed=1", "norm=agc", "agc.clip=0.02")
    assert all(one[node] is two[node] for node in ("train", "wandb", "paths", "sweep", "model", "optimizer", "dataset"))
    assert (one.seed, two.seed, one.agc.clip, two.agc.clip) == (0, 1, 0.01, 0.02)


def test_equal_values_of_another_type_are_told_apart(composed):
    assert composed("train.compile=true").train.compile is True
    with pytest.raises(SettingError, match=r"train\.compile=1: it must be true or false"):
        composed("train.compile=1")
