"""What the shapes of the dry run show before a run begins: norms of a single value. torch itself is the reference."""

import pytest
import torch
from torch import nn

from runner.config.text import SettingError
from runner.data import digit_scenes
from runner.experiment import builders
from runner.experiment.dry_run import check_values, watched
from runner.layers.sync_batch_norm import SyncBatchNorm
from runner.methods import BatchChannelNorm2d, GhostBatchNorm2d
from runner.methods.instancenorm import InstanceNorm2d

ONE = {"global_batch_size": 1, "accumulation_steps": 1, "num_devices": 1}


def train_settings(batch, steps=1, devices=1):
    return {"global_batch_size": batch, "accumulation_steps": steps, "num_devices": devices}


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        GhostBatchNorm2d(4, ghost_batch_size=1),
        GhostBatchNorm2d(4, ghost_batch_size=2),
        BatchChannelNorm2d(4, num_groups=2),
        BatchChannelNorm2d(4, num_groups=2, estimate=True),
        SyncBatchNorm(4),
        InstanceNorm2d(4),
    ],
    ids=str,
)
def test_what_torch_refuses_in_training_is_refused_before(norm, batch, size):
    x = torch.randn(batch, 4, size, size)
    try:
        norm.train()(x)
        fails = False
    except ValueError:
        fails = True
    if fails:
        with pytest.raises(SettingError, match=r"layer \("):
            check_values("layer", norm, tuple(x.shape), train_settings(batch))
    else:
        check_values("layer", norm, tuple(x.shape), train_settings(batch))


@pytest.mark.parametrize("norm", [nn.GroupNorm(4, 4), BatchChannelNorm2d(4, num_groups=4)], ids=str)
def test_a_group_of_one_value_which_is_always_0_is_refused(norm):
    x = torch.randn(3, 4, 1, 1)
    assert norm(x).abs().max() < 1e-3
    with pytest.raises(SettingError, match="num_groups=4: layer"):
        check_values("layer", norm, tuple(x.shape), train_settings(3))
    check_values("layer", norm, (3, 4, 2, 1), train_settings(3))


@pytest.mark.parametrize(
    ("norm", "settings", "words"),
    [
        (nn.BatchNorm2d(4), (1,), "train.global_batch_size=1: layer (BatchNorm2d)"),
        (nn.BatchNorm2d(4), (8, 8), "train.accumulation_steps=8: layer"),
        (nn.BatchNorm2d(4), (8, 8), "Choose train.global_batch_size=16 or more"),
        (nn.BatchNorm2d(4), (2, 1, 2), "train.num_devices=2: layer"),
        (nn.BatchNorm2d(4), (2, 1, 2), "Choose train.global_batch_size=4 or more"),
        (SyncBatchNorm(4), (2, 2, 1), "Choose train.global_batch_size=4 or more"),
        (GhostBatchNorm2d(4, ghost_batch_size=1), (64,), "ghost_batchnorm.ghost_batch_size=1: layer"),
        (GhostBatchNorm2d(4, ghost_batch_size=2), (5,), "Choose ghost_batchnorm.ghost_batch_size=3,"),  # 2, 2 and 1
        (GhostBatchNorm2d(4, ghost_batch_size=3), (7,), None),  # 3 and 4
        (SyncBatchNorm(4), (2, 1, 2), None),
    ],
)
def test_the_images_that_are_normalized_together(norm, settings, words):
    if words is None:
        check_values("layer", norm, (2, 4, 1, 1), train_settings(*settings))
        return
    with pytest.raises(SettingError) as refusal:
        check_values("layer", norm, (2, 4, 1, 1), train_settings(*settings))
    assert words in str(refusal.value)


def test_what_a_step_keeps_is_counted_and_the_module_named():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))
    with watched(model, train_settings(2)) as kept:
        model(torch.zeros(2, 3, 5, 5))
    assert kept.numbers == 8 * 25 + 8
    with pytest.raises(SettingError, match=r"3 \(BatchNorm2d\)"), watched(model, ONE):
        model.eval()(torch.zeros(2, 3, 5, 5))
    model(torch.zeros(2, 3, 5, 5))  # no hook is left


@pytest.fixture
def few_scenes(monkeypatch):
    """The digit scenes are drawn for each process; fewer take less time."""
    monkeypatch.setattr(digit_scenes, "NUM_TRAIN", 40)
    monkeypatch.setattr(digit_scenes, "NUM_TEST", 20)
    builders._load_data.cache_clear()
    yield
    builders._load_data.cache_clear()


SCENES = ("dataset=digit_scenes", "model=deeplabv3plus_resnet18")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["model.stem=imagenet", "train.global_batch_size=1"], ["train.global_batch_size=1: layer3.0.bn1 (Batch"]),
        (
            ["model.stem=imagenet", "train.global_batch_size=4", "train.accumulation_steps=4"],
            ["train.accumulation_steps=4: layer3.0.bn1", "train.global_batch_size=8 or more"],
        ),
        (
            ["model.stem=imagenet", "norm=ghost_batchnorm", "ghost_batchnorm.ghost_batch_size=1"],
            ["ghost_batchnorm.ghost_batch_size=1: layer3.0.bn1 (Ghost", "ghost_batch_size=2,"],
        ),
        (["model.stem=imagenet", "norm=instancenorm"], ["norm=instancenorm: layer3.0.bn1 (InstanceNorm2d)"]),
        ([*SCENES, "train.global_batch_size=8", "train.accumulation_steps=8"], ["pool", "global_batch_size=16 or"]),
        ([*SCENES, "norm=ghost_batchnorm", "ghost_batchnorm.ghost_batch_size=1"], ["pool", "ghost_batch_size=2"]),
    ],
)
def test_a_run_is_refused_before_it_begins(runner, tmp_path, few_scenes, arguments, parts):
    outcome = runner("wandb.mode=disabled", "train.max_steps=1", *arguments)
    assert outcome.code == 2, outcome.err
    assert len(outcome.err.splitlines()) == 1
    for part in parts:
        assert part in outcome.err
    assert list(tmp_path.iterdir()) == []
