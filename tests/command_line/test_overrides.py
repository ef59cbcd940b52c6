"""What becomes of overrides before Hydra composes them: mappings are open, options are chosen in one place."""

import pytest

from runner.command_line.overrides import as_typed, prepare_overrides
from runner.settings.text import SettingError


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
