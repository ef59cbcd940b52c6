"""What the check of a configuration finds out of machine and settings: memory, GPUs."""

import pytest
import torch

from runner.data import memory
from runner.experiment import check as checked


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["dataset.num_images=1000000000", "dataset.image_size=224"],
            ["224: this takes about 841,", "fewer"],
        ),
        (["model.width=64"], ["model.width=64 and 10 classes: this takes about 5", "smaller model"]),
        (
            ["dataset.num_images=40000", "train.global_batch_size=40000", "dataset.image_size=32"],
            ["train.global_batch_size=40000 of 32x32 pixels: this takes about", "more train.accumulation_steps"],
        ),
    ],
)
def test_what_the_memory_cannot_hold_is_refused_with_the_figures(tiny, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.setattr(memory, "memory_of", lambda device: 32 * memory.GIB)
    outcome = tiny(*arguments)
    assert outcome.code == 2, outcome.err
    for part in (*parts, "this machine's CPU has 32 GiB."):
        assert part in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "gradient_histogram.layer=layr1",
            "probe.gradient_histogram.layer: layer=layr1: a ResNet has no",
        ),
        ("gradient_histogram.layer=1.5", "a depth is from 0.0 (first) to 1.0 (last)"),
        ("gradient_histogram.layer=nan", "a depth is from 0.0 (first) to 1.0 (last)"),
        ("gradient_terms.layers=[0.5,1000]", "probe.gradient_terms.layers: layer=1000: a ResNet has 17 convolutions"),
    ],
)
def test_a_layer_that_is_not_there_is_refused_before_the_run(tiny, tmp_path, settings, message):
    outcome = tiny(f"probe={settings.partition('.')[0]}", f"probe.{settings}")
    assert outcome.code == 2, outcome.out
    assert message in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_that_cannot_be_made_is_refused_before_the_run(tiny, tmp_path):
    outcome = tiny("schedule=plateau", "schedule.milestones=[]")
    assert outcome.code == 2
    assert "schedule.milestones=[]: at the first of them training may be doubled; name one." in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_digits_enlarged_beyond_the_memory_are_refused(runner):
    outcome = runner("dataset.image_size=16384")
    assert "dataset.image_size=16384: this takes about 10,782 GiB" in outcome.err  # 1797 * 16384^2 * 24 bytes


def test_the_memory_is_what_the_machine_has_and_a_container_may_take(monkeypatch, tmp_path):
    with open("/proc/meminfo") as file:
        total = 1024 * int(file.readline().split()[1])
    monkeypatch.setattr(memory, "CGROUP_LIMIT", tmp_path / "none")
    assert memory.memory_of(torch.device("cpu")) == pytest.approx(total, rel=0.01)
    monkeypatch.setattr(memory, "CGROUP_LIMIT", tmp_path / "limit")
    memory.CGROUP_LIMIT.write_text("max\n")
    assert memory.memory_of(torch.device("cpu")) == pytest.approx(total, rel=0.01)
    memory.CGROUP_LIMIT.write_text("1000000\n")
    assert memory.memory_of(torch.device("cpu")) == 1_000_000


@pytest.mark.parametrize(
    ("number", "local", "refused"), [(3, None, True), (2, None, False), (8, "2", False), (8, "4", True)]
)
def test_more_processes_than_gpus_are_refused_with_both_numbers(composed, monkeypatch, number, local, refused):
    monkeypatch.setattr(checked, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    config = composed("train.global_batch_size=24", f"train.num_devices={number}", "train.precision=fp32")
    monkeypatch.setattr(checked.builders, "build_data", _reached)
    if refused:
        with pytest.raises(ValueError, match=rf"train.num_devices={number}: torch sees 2 GPUs here. Choose at most 2"):
            checked.check(config)
    else:
        with pytest.raises(LookupError):
            checked.check(config)


def _reached(node):
    raise LookupError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["norm=groupnorm", "groupnorm.num_groups=7"], "groupnorm.num_groups=7 does not divide the "),
        (
            ["regularization=stochastic_depth", "stochastic_depth.target_layer_name=BasicBlok"],
            "stochastic_depth.target_layer_name=BasicBlok: the model has no block of that class",
        ),
        (
            ["norm=weight_standardization", "weight_standardization.n_last_layers_ignore=99"],
            "weight_standardization.n_last_layers_ignore=99: the ",
        ),
        (
            ["norm=weight_standardization", "weight_standardization.ignore=[layer11]"],
            "weight_standardization.ignore: the ",
        ),
        (["norm=agc", "agc.exclude=[layer11]"], "agc.exclude: no parameter or module is called 'layer11'"),
        (["norm=agc", "agc.groups={fc.weight: 0.5}"], "agc.groups.fc.weight=0.5: nothing in it is clipped"),
    ],
)
def test_a_method_that_does_not_suit_the_model_is_refused_by_its_key(tiny, tmp_path, words, message):
    """The library's own messages are of arguments, as num_groups=7."""
    outcome = tiny(*words)
    assert outcome.code == 2, outcome.out
    assert message in outcome.err
    assert list(tmp_path.iterdir()) == []
