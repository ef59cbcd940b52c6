"""Which methods go together: what is refused, with which words, and what composes."""

import json

import pytest
from omegaconf import OmegaConf

from runner.config.compatibility import check_combinations, choose_portions
from runner.config.options import options_of_kind
from runner.config.text import SettingError
from runner.config.validation import validate

NORMALIZATIONS = options_of_kind("norm", "normalization")
GBN = ("norm=[ghost_batchnorm,weight_standardization,agc]", "regularization=stochastic_depth")
SCENES = ("dataset=digit_scenes", "model=deeplabv3plus_resnet18")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["norm=[none,groupnorm]"], ["norm=[none,groupnorm]", "a model has one of these; choose one"]),
        (["norm=[batchnorm,ghost_batchnorm]"], ["norm=[batchnorm,ghost_batchnorm]", "a model has one"]),
        (["norm=[layernorm,instancenorm]"], ["norm=[layernorm,instancenorm]", "a model has one"]),
        (["norm=[batch_channel_norm,groupnorm]"], ["norm=[batch_channel_norm,groupnorm]", "a model has one"]),
        (["norm=[agc,clip_by_norm]"], ["norm=[agc,clip_by_norm]", "clipped once", "choose one"]),
        (["norm=[clip_by_value,clip_by_norm]"], ["norm=[clip_by_value,clip_by_norm]", "clipped once"]),
        *(
            (
                [f"norm=[{name},precise_batchnorm]"],
                [f"norm=[{name},precise_batchnorm]", f"norm={name} leaves none", "Leave"],
            )
            for name in ("none", "groupnorm", "layernorm", "instancenorm")
        ),
        (
            ["norm=[batch_channel_norm,precise_batchnorm]", "batch_channel_norm.estimate=true"],
            ["batch_channel_norm.estimate=true", "norm=precise_batchnorm", "Set batch_channel_norm.estimate=false"],
        ),
        *(
            (
                [f"norm={name}", "train.sync_batchnorm=true"],
                ["train.sync_batchnorm=true", f"norm={name} leaves none", "Set train.sync_batchnorm=false"],
            )
            for name in NORMALIZATIONS
            if name != "batchnorm"
        ),
        (["norm=none", "none.skipinit=true", "none.fixup=true"], ["none.skipinit=true", "none.fixup=true", "to false"]),
        (
            ["norm=ghost_batchnorm", "ghost_batchnorm.ghost_batch_size=65"],
            ["ghost_batchnorm.ghost_batch_size=65", "the batch on a device, 64", "Choose at most 64"],
        ),
        (
            ["norm=ghost_batchnorm", "train.accumulation_steps=4"],
            ["ghost_batchnorm.ghost_batch_size=32", "train.accumulation_steps=4", "Choose at most 16"],
        ),
        (
            ["norm=[none,weight_standardization]", "none.fixup=true"],
            ["none.fixup=true", "norm=weight_standardization", "undoes", "Set none.fixup=false"],
        ),
        (
            ["norm=agc", "agc.exclude=[layer4]", "++agc.groups={layer4:0.02}"],
            ["agc.exclude and agc.groups both name layer4", "Name it in one of them"],
        ),
        *(
            (
                [f"regularization={name}", "train.global_batch_size=1"],
                ["train.global_batch_size=1", f"{name}.portion=all", "two images to mix", "Choose at least 2"],
            )
            for name in ("mixup", "cutmix")
        ),
        (
            ["model=nf_resnet26", "model.dropout=0.25", "regularization=dropout"],
            ["regularization=dropout", "model.dropout=0.25", "nf_resnet26", "Set model.dropout=0"],
        ),
        (
            ["regularization=[mixup,cutmix]", "cutmix.portion=all"],
            ["mixup.portion=first_half and cutmix.portion=all", "mixed once", "Set mixup.portion=auto and cutmix"],
        ),
        (
            ["regularization=[mixup,cutmix]", "mixup.portion=all", "cutmix.portion=second_half"],
            ["mixup.portion=all and cutmix.portion=second_half", "mixed once"],
        ),
        (
            ["regularization=[mixup,cutmix]", "mixup.portion=first_half", "cutmix.portion=first_half"],
            ["mixup.portion=first_half and cutmix.portion=first_half", "mixed once"],
        ),
        (
            ["regularization=[mixup,cutmix]", "train.global_batch_size=3"],
            ["train.global_batch_size=3", "two images in each half", "Choose at least 4"],
        ),
        (
            ["regularization=cutmix", "cutmix.portion=second_half", "train.global_batch_size=3"],
            ["train.global_batch_size=3", "cutmix.portion=second_half", "Choose at least 4"],
        ),
        (
            ["norm=none", "none.fixup=true", "model.initialization=xavier_normal"],
            ["none.fixup=true", "model.initialization=xavier_normal", "Set none.fixup=false"],
        ),
        (
            ["norm=none", "none.fixup=true", "model.pretrained=weights.pt"],
            ["none.fixup=true", "model.pretrained=weights.pt"],
        ),
        (["model.initialized_layers=all"], ["model.initialized_layers=all", "Set model.initialization"]),
        (["dataset=digit_scenes"], ["model=resnet18", "each pixel", "Choose a model that segments"]),
        (["model=deeplabv3plus_resnet18"], ["dataset=digits", "an image", "Choose a data set with masks"]),
        (["train.dice_weight=1"], ["train.dice_weight=1.0", "dataset=digits has no masks"]),
        ([*SCENES, "train.cross_entropy_weight=0"], ["no loss is left"]),
        ([*SCENES, "train.dice_squared=false"], ["train.dice_squared=false", "set train.dice_weight"]),
        (["train.dice_squared=false"], ["train.dice_squared=false"]),
        ([*SCENES, "regularization=mixup"], ["regularization=mixup", "digit_scenes has masks", "Leave mixup out"]),
    ],
)
def test_what_does_not_go_together_is_refused(composed, overrides, parts):
    with pytest.raises(SettingError) as refusal:
        composed(*overrides)
    for part in parts:
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    "overrides",
    [
        GBN,
        ("norm=[groupnorm,weight_standardization]",),
        ("norm=[batch_channel_norm,weight_standardization]", "batch_channel_norm.estimate=true"),
        ("norm=[batch_channel_norm,precise_batchnorm]",),
        ("norm=[ghost_batchnorm,precise_batchnorm]",),
        ("norm=[precise_batchnorm,clip_by_norm]",),
        ("norm=[batchnorm,agc]", "train.sync_batchnorm=true"),
        ("norm=[]", "train.sync_batchnorm=true"),
        ("norm=none", "none.skipinit=true"),
        ("norm=none", "none.fixup=true"),
        ("norm=[none,weight_standardization]", "none.skipinit=true"),
        ("norm=agc", "agc.exclude=[layer4.0]", "++agc.groups={layer4:0.02}"),
        ("model=nf_resnet26", "model.dropout=0", "regularization=dropout"),
        ("model=nf_resnet26", "norm=agc", "regularization=[stochastic_depth,label_smoothing,mixup,cutmix]"),
        ("regularization=[mixup,cutmix]", "train.global_batch_size=4"),
        ("regularization=mixup", "train.global_batch_size=2"),
        ("norm=ghost_batchnorm", "ghost_batchnorm.ghost_batch_size=64"),
        ("norm=ghost_batchnorm", "train.accumulation_steps=2"),
        (*SCENES, "train.dice_weight=1", "regularization=[stochastic_depth,label_smoothing]"),
        (*SCENES, "norm=groupnorm", "train.global_batch_size=1"),
    ],
)
def test_what_goes_together_composes(composed, overrides):
    assert composed(*overrides)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({"mixup": "auto"}, {"mixup": "all"}),
        ({"cutmix": "auto"}, {"cutmix": "all"}),
        ({"cutmix": "first_half"}, {"cutmix": "first_half"}),
        ({"mixup": "auto", "cutmix": "auto"}, {"mixup": "first_half", "cutmix": "second_half"}),
        ({"mixup": "second_half", "cutmix": "auto"}, {"mixup": "second_half", "cutmix": "first_half"}),
        ({"mixup": "auto", "cutmix": "first_half"}, {"mixup": "second_half", "cutmix": "first_half"}),
        ({"mixup": "auto", "cutmix": "second_half"}, {"mixup": "first_half", "cutmix": "second_half"}),
        ({}, {}),
    ],
)
def test_the_part_of_a_batch_that_each_mixes(composed, asked, chosen):
    assert choose_portions({name: {"portion": portion} for name, portion in asked.items()}) == chosen
    settings = [f"{name}.portion={portion}" for name, portion in asked.items()]
    config = composed(f"regularization=[{','.join(asked)}]", *settings)
    assert {name: config[name].portion for name in asked} == chosen
    assert validate(OmegaConf.create(config.plain())) == config  # as load_run reads config.yaml


def test_the_kinds_are_those_of_the_papers():
    norms = "batch_channel_norm batchnorm ghost_batchnorm groupnorm instancenorm layernorm none"
    assert norms.split() == NORMALIZATIONS
    assert options_of_kind("norm", "clip") == ["agc", "clip_by_norm", "clip_by_value"]
    assert options_of_kind("dataset", "segmentation") == [
        "ade20k",
        "digit_scenes",
        "fashion_scenes",
        "mask_folder",
        "torchvision",
    ]


def test_a_kind_is_no_setting(composed):
    with pytest.raises(SettingError, match=r"dataset\._kind_=\[a\]: this is no setting; leave it out"):
        composed("+dataset._kind_=[a]")
    assert "_kind_" not in composed("norm=agc").agc


def test_plain_data_are_enough():
    train = {"global_batch_size": 8, "accumulation_steps": 2, "cross_entropy_weight": 1.0, "dice_weight": 0.0}
    others = {"model": {"name": "x"}, "train": train, "dataset": {"name": "y"}, "optimizer": {}}
    check_combinations({"ghost_batchnorm": {"ghost_batch_size": 4}}, **others)
    with pytest.raises(ValueError, match="Choose at most 4"):
        check_combinations({"ghost_batchnorm": {"ghost_batch_size": 5}}, **others)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model=nf_resnet26", f"norm={name}"], [f"norm={name}", "batch norm", "model=nf_resnet26"])
        for name in (*(name for name in NORMALIZATIONS if name != "batchnorm"), "precise_batchnorm")
    ]
    + [
        (["model=nf_resnet26", "train.sync_batchnorm=true"], ["train.sync_batchnorm=true", "batch norm"]),
        (
            ["model=nf_resnet26", "norm=weight_standardization"],
            ["norm=weight_standardization", "have scaled weight standardization already", "leave weight_standard"],
        ),
    ],
)
def test_what_the_model_lacks_is_said(small, tmp_path, overrides, parts):
    outcome = small("ghost_batchnorm.ghost_batch_size=4", *overrides) if "ghost" in overrides[1] else small(*overrides)
    assert outcome.code == 2, outcome.err
    assert len(outcome.err.splitlines()) == 1
    for part in parts:
        assert part in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "methods",
    [
        ("norm=[groupnorm,weight_standardization]",),
        ("norm=[batch_channel_norm,weight_standardization]", "batch_channel_norm.estimate=true"),
        ("norm=[batch_channel_norm,precise_batchnorm]",),
        ("norm=[layernorm,weight_standardization,clip_by_norm]", "regularization=[dropout,stochastic_depth]"),
        ("norm=none", "none.fixup=true", "regularization=[mixup,label_smoothing]"),
        ("norm=[weight_standardization,precise_batchnorm]", "train.sync_batchnorm=true"),
    ],
)
def test_what_goes_together_trains(small, methods):
    outcome = small(*methods, "train.max_steps=1")
    assert outcome.code == 0, outcome.out + outcome.err


def test_methods_act_in_their_order_whatever_the_list_says(small, tmp_path):
    """The documented order, seen in the counts of a run that has one method of each kind."""
    norms = "norm=[agc,weight_standardization,ghost_batchnorm]"
    methods = (norms, "ghost_batchnorm.ghost_batch_size=4", "regularization=[mixup,stochastic_depth,cutmix]")
    outcome = small(*methods, "train.max_steps=1", "name=run")
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())
    order = ["ghost_batchnorm", "weight_standardization", "stochastic_depth", "agc", "cutmix", "mixup"]
    assert list(summary["methods"]) == order
