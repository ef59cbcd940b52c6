"""Training normalization, the classifier or random weights alone: what changes, what stays, to the bit."""

import json
import shutil

import pytest
import torch
from torch import nn

from runner.layers.classifier import find_classifier
from runner.methods import apply_group_norm
from runner.methods.trained_parameters import TrainedParameters
from runner.models import nf_resnet26, resnet20
from runner.training.checkpoint import load_checkpoint

SETTINGS = ("optimizer.lr=0.1", "train.epochs=1")


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_norm(name):
    return "bn" in name or "downsample.1" in name


@pytest.mark.parametrize(
    ("trained", "number"), [("norm", 1376), ("classifier", 650), ("norm_and_classifier", 2026), ("random", 1376)]
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_requires_a_gradient_in_a_resnet20(trained, number, device):
    """Batch norms of 7 x 16, 6 x 32 and 6 x 64 features; a classifier of 64 inputs and 10 classes."""
    with torch.device(device):
        model = resnet20()
        assert TrainedParameters(trained).apply(model, torch.zeros(1, 3, 8, 8)) == number
    expected = {
        "norm": {name for name, _ in model.named_parameters() if is_norm(name)},
        "classifier": {"fc.weight", "fc.bias"},
        "random": {name for name, _ in model.named_parameters() if "conv" in name},
    }
    expected["norm_and_classifier"] = expected["norm"] | expected["classifier"]
    assert trained_names(model) == expected[trained]


def test_norms_that_took_batch_norms_place_are_trained():
    model = resnet20()
    apply_group_norm(model, num_groups=8)
    assert TrainedParameters("norm").apply(model, torch.zeros(1, 3, 8, 8)) == 1376


def test_random_weights_are_two_of_each_filter_and_those_of_the_seed():
    def changed(seed):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1))
        method = TrainedParameters("random")
        assert method.apply(model, torch.zeros(1, 3, 8, 8), seed=seed) == 2 * 9
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 6, 6)).square().sum().backward()
            method.transform_gradients(model)
            optimizer.step()
        return {name: parameter != before[name] for name, parameter in model.named_parameters()}

    first, again, other = changed(1), changed(1), changed(2)
    assert first["0.weight"].flatten(1).sum(1).tolist() == [2] * 4
    assert first["3.weight"].flatten(1).sum(1).tolist() == [2] * 5
    assert not any(first[name].any() for name in ("1.weight", "1.bias", "3.bias"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def last(tmp_path, name):
    return load_checkpoint(tmp_path / f"outputs/runs/{name}/checkpoints/last.pt")


def test_weight_decay_clipping_and_averages_leave_what_is_not_trained(small, tmp_path):
    """To the bit, under each optimizer; what two runs that train other parameters leave is the initialization."""
    extra = ("norm=agc", "train.ema=0.5", "optimizer.weight_decay=0.5")
    assert small(*SETTINGS, *extra, "train.trained_parameters=classifier", "name=classifier").code == 0
    initial = {name: value for name, value in last(tmp_path, "classifier")["model"].items() if "6." not in name}
    initial = {name: value for name, value in initial.items() if name.endswith(("weight", "bias"))}
    for optimizer in ("sgd", "adamw", "lars"):
        words = (f"optimizer={optimizer}", f"name={optimizer}", "train.trained_parameters=norm")
        outcome = small(*SETTINGS, *extra, *words)
        assert outcome.code == 0, outcome.err
        saved = last(tmp_path, optimizer)
        for state in (saved["model"], saved["ema"]["model"]):
            moved = {name for name in initial if not torch.equal(state[name], initial[name])}
            assert moved == {name for name in initial if name.startswith("1.") or is_norm(name)}
    summary = json.loads((tmp_path / "outputs/runs/sgd/summary.json").read_text())
    assert summary["methods"] == {"agc": 6, "trained_parameters": 192}
    assert "trained_parameters: 192 parameters to train" in outcome.out


@pytest.mark.parametrize("trained", ["norm", "random"])
def test_a_resumed_run_ends_with_the_same_bits(trained, small, runner, tmp_path):
    words = (f"train.trained_parameters={trained}", "optimizer.weight_decay=0", "train.epochs=2", "optimizer.lr=0.1")
    assert small(*words, "name=whole").code == 0
    whole, parts = (tmp_path / "outputs/runs" / name for name in ("whole", "parts"))
    shutil.copytree(whole, parts)
    (parts / "checkpoints/previous.pt").replace(parts / "checkpoints/last.pt")
    (parts / "summary.json").unlink()
    assert runner("resume=outputs/runs/parts").code == 0
    for key, value in last(tmp_path, "whole")["model"].items():
        assert torch.equal(value, last(tmp_path, "parts")["model"][key]), key


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.trained_parameters=norm", "norm=none"], ["train.trained_parameters: nothing to change", "(norm)"]),
        (["train.trained_parameters=bn"], ["train.trained_parameters=bn: it must be one of all, norm, classifier"]),
        (
            ["train.trained_parameters=random"],
            ["optimizer.weight_decay=0.0005 with train.trained_parameters=random", "Set optimizer.weight_decay=0."],
        ),
    ],
)
def test_refusals(words, message, small):
    small(*words).assert_refused(*message)


def test_a_normalizer_free_network_has_no_norm_to_train():
    with pytest.raises(ValueError, match=r"^nothing to change: looked for parameters to train \(norm\)"):
        TrainedParameters("norm").apply(nf_resnet26(), torch.zeros(1, 3, 32, 32))


def test_the_classifier_is_that_which_clipping_leaves_out():
    model = resnet20()
    TrainedParameters("classifier").apply(model, torch.zeros(1, 3, 8, 8))
    assert trained_names(model) == {f"fc.{name}" for name, _ in find_classifier(model).named_parameters()}
