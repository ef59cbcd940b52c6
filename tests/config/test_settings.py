"""Validated settings: read by key or attribute, never changed, the same in another process."""

import copy
import pickle

import pytest

from runner.config.settings import Settings

PLAIN = {"train": {"epochs": 3, "ema": None}, "probe_at": [0, 100], "agc": {"groups": {"layer4.0": 0.02}}}


def test_settings_give_what_they_were_made_of():
    settings = Settings(PLAIN)
    assert settings.plain() == PLAIN
    assert settings == PLAIN | {"probe_at": (0, 100)}
    assert settings.train.epochs == settings["train"]["epochs"] == settings.select("train.epochs") == 3
    assert settings.agc.groups == {"layer4.0": 0.02}
    assert settings.get("norm", "none") == "none"
    with pytest.raises(AttributeError, match="no setting epoch; there are epochs, ema"):
        _ = settings.train.epoch


def test_settings_are_not_changed_in_place():
    settings = Settings(PLAIN)
    with pytest.raises(TypeError, match=r"changed\(\{'epochs': \.\.\.\}\)"):
        settings.train.epochs = 5
    with pytest.raises(TypeError):
        settings["seed"] = 1
    settings.plain()["train"]["epochs"] = 5
    longer = settings.changed({"train.epochs": 5, "name": "a"})
    assert settings == Settings(PLAIN)
    assert longer.plain() == PLAIN | {"train": {"epochs": 5, "ema": None}, "name": "a"}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_is_equal_and_has_the_same_hash(copied):
    settings = Settings(PLAIN)
    other = copied(settings)
    assert (other, hash(other), repr(other)) == (settings, hash(settings), repr(settings))
    assert other != settings.changed({"train.epochs": 5})
