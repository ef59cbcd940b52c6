"""What becomes of overrides before Hydra composes them: mappings are open, options are chosen in one place."""

import pytest

from runner.config.overrides import as_typed, prepare_overrides
from runner.config.text import SettingError


@pytest.mark.parametrize(
    "word",
    [
        "agc.groups={layer4:0.02}",
        "agc.groups={layer4.1.conv1:0.02}",
        "agc.groups={layer4:0.02},{layer4:0.04}",
        "agc.groups.layer4=0.02",
    ],
)
def test_a_setting_whose_default_is_a_mapping_is_open(word):
    prepared = prepare_overrides(["norm=agc", word])
    assert prepared == ["norm=agc", f"++{word}"]
    assert as_typed(prepared) == ["norm=agc", word]


@pytest.mark.parametrize(
    "word", ["agc.clip=0.1", "agc.exclude=[fc]", "train.epochs=3", "norm=agc", "++agc.groups={a:1}", "agc=3", "-m", "x"]
)
def test_other_words_stay(word):
    assert prepare_overrides([word]) == [word]


def test_a_mapping_of_a_method_that_is_not_chosen_stays():
    assert prepare_overrides(["agc.groups={layer4:0.02}"]) == ["agc.groups={layer4:0.02}"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["norm=[agc,batchnorm]", "+norm=clip_by_norm"], "+norm=clip_by_norm: options of a group are chosen in one"),
        (["norm=[agc,batchnorm]", "+norm=clip_by_norm"], "write 'norm=[agc,batchnorm,clip_by_norm]'."),
        (["+regularization=[mixup]"], "write regularization=mixup."),
        (["++norm=agc"], "write 'norm=[batchnorm,agc]'."),
        (["+optimizer=adamw"], "+optimizer=adamw: options of a group are chosen in one place; write optimizer=adamw."),
        (["norm@foo=agc"], "norm@foo=agc: options of a group are chosen in one place; write norm=agc."),
        (["norm=[agc,batchnorm]", "~agc"], "~agc: a method is left out where it is chosen; write 'norm=[batchnorm]'."),
        (["~mixup"], "~mixup: a method is left out where it is chosen; write 'regularization=[]'."),
    ],
)
def test_an_option_added_or_moved_or_a_method_deleted_is_refused(words, message):
    with pytest.raises(SettingError) as refusal:
        prepare_overrides(words)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "seed=1,2", "sweep.name=" + "x" * 300], ": it names a folder; use up to 120 letters"),
        (["norm=[null]"], "norm=[null]: a list of options has names alone; write an empty list: norm=[]."),
        (["model='" + 150 * "ä" + "'"], "ä': model has no option ä"),
        (["model=${oc.create:[1]}"], "model=${oc.create:[1]}: model has no option ${oc.create:[1]}."),
        (["norm=[agc,'${seed}']"], "norm has no option ${seed}."),
        (["norm=[[agc]]"], "norm=[[agc]]: name one of the group's options."),
        (["probe=[{a:1}]"], "probe=[{a:1}]: name one of the group's options."),
        (["model=18"], "model=18: name one of the group's options."),
        (["model=" + "x" * 300], "model has no option xxx"),
        (["x" * 300 + "=1"], "there is no such setting."),
        (["-m", "seed=range(0,100000000)"], "seed=range(0,100000000): 100,000,000 jobs; a sweep has at most 10,000."),
        (["-m", "seed=range(0,200)", "train.epochs=range(1,101)"], "train.epochs=range(1,101): 20,000 jobs;"),
        (["-m", "seed=range(0,1,0)"], "seed=range(0,1,0): this range never ends"),
        (["-m", "seed=range(0,inf)"], "this range never ends"),
        (["-m", "seed=range(0,nan)"], "this range never ends"),
        (["-m", "seed=range(0,1,1e-9)"], "1,000,000,000 jobs"),
        (["-m", "train.ema=interval(0.1,0.9)"], "train.ema=interval(0.1,0.9): a sweep takes single values, not an int"),
        (["-m", "train.ema=tag(a,interval(0.1,0.9))"], "write train.ema=VALUE,VALUE or train.ema=range("),
    ],
)
def test_options_without_a_file_and_sweeps_without_an_end_are_refused(words, message):
    with pytest.raises(SettingError) as refusal:
        prepare_overrides(words)
    assert message in str(refusal.value)


def test_a_sweep_of_as_many_jobs_as_may_be_is_prepared():
    assert prepare_overrides(["-m", "seed=range(0,5000)", "norm=agc,none"])


def test_names_of_a_sweeps_values_can_be_typed():
    words = ["-m", "seed=0,1", "sweep.names.seed={0:zero}", "sweep.names={norm:{agc:AGC}}"]
    assert prepare_overrides(words) == [*words[:2], *(f"++{word}" for word in words[2:])]
