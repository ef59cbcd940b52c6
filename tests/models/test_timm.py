"""model=timm: any classification model of timm by its own name, beside timm itself."""

import sys

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from runner import load_run
from runner.layers.classifier import find_classifier
from runner.models.pretrained import load_weights, read_weights
from runner.models.timm import timm_model


def test_it_is_what_timm_makes():
    torch.manual_seed(0)
    ours = timm_model(7, architecture="resnet18d", settings={"drop_path_rate": 0.1, "act_layer": "silu"})
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18d", num_classes=7, drop_path_rate=0.1, act_layer="silu")
    assert str(ours) == str(theirs)
    for (name, value), (key, expected) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == key
        assert torch.equal(value, expected)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"architecture": "resnet50dd"}, ["model.architecture=resnet50dd", "Did you mean resnet50d?"]),
        ({"architecture": "zzz"}, ["model.architecture=zzz", "timm has no model of that name", "It has 1"]),
        (
            {"architecture": "resnet50.a1_in1k"},
            ["model.architecture=resnet50.a1_in1k", "model.architecture=resnet50, and model.pretrained=a1_in1k"],
        ),
        ({"settings": {"num_classes": 3}}, ["model.settings.num_classes=3", "the data set gives it"]),
        ({"settings": {"checkpoint_path": "x.pt"}}, ["model.settings.checkpoint_path=x.pt", "choose model.pretrained"]),
        ({"settings": {"sundry": 1}}, ["model.settings={sundry:1}", "cannot make a resnet50", "'sundry'"]),
    ],
)
def test_what_timm_does_not_have_is_refused(settings, parts):
    with torch.device("meta"), pytest.raises(ValueError, match=r"^model\.") as refusal:
        timm_model(10, **settings)
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_without_timm_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm is not installed\. Install it: pip install '\.\[timm\]'"):
        timm_model(10)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""

    def no_network(*arguments, **settings):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)
    return tmp_path / "hub"


def test_weights_that_lie_in_the_cache_of_the_hub_are_loaded(hub):
    torch.manual_seed(1)
    published = timm.create_model("resnet18d")
    folder = hub / "models--timm--resnet18d.ra2_in1k"
    (folder / "snapshots/0123").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0123")
    save_file(published.state_dict(), folder / "snapshots/0123/model.safetensors")
    model = timm_model(7, architecture="resnet18d")
    fit = load_weights(model, read_weights("ra2_in1k", "timm", "resnet18d"))
    assert fit.notes == ("the classifier fc is initialized anew: 1000 classes in the weights, 7 here",)
    for key, value in published.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(model.state_dict()[key], value), key
    assert read_weights("DEFAULT", "timm", "resnet18d").tensors.keys() == published.state_dict().keys()


def test_without_a_network_the_message_says_where_the_weights_would_lie(hub):
    with pytest.raises(ValueError, match=r"could not be downloaded \(no network\)") as refusal:
        read_weights("ra2_in1k", "timm", "resnet18d")
    assert f"copy this to {hub}/models--timm--resnet18d.ra2_in1k" in str(refusal.value)
    assert "hf download timm/resnet18d.ra2_in1k" in str(refusal.value)


def test_unknown_weights_are_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"model\.pretrained=nowhere: .*; it has .*ra2_in1k.*, DEFAULT"):
        read_weights("nowhere", "timm", "resnet18d")


@pytest.mark.slow
def test_a_run_is_resumed_and_loaded(tiny, runner, tmp_path):
    """From the command line to load_run and evaluate, with a norm that has an activation."""
    settings = ["model=timm", "model.architecture=test_efficientnet", "model.settings={drop_rate:0.1}"]
    settings += ["norm=ghost_batchnorm", "ghost_batchnorm.ghost_batch_size=4", "dataset.image_size=32"]
    first = tiny(*settings, "train.epochs=1", "name=run")
    assert first.code == 0, first.err
    assert "model: timm-test_efficientnet;" in first.out
    again = runner("resume=outputs/runs/run", "train.epochs=2")
    assert again.code == 0, again.err
    folder = tmp_path / "outputs/runs/run"
    model, config = load_run(folder, "last")
    assert config.model.settings.plain() == {"drop_rate": 0.1}
    assert type(model).__name__ == "EfficientNet"
    saved = torch.load(folder / "checkpoints/last.pt", weights_only=True)["model"]
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    evaluated = runner("evaluate", str(folder), "--checkpoint", "last", "train.device=cpu")
    assert evaluated.code == 0, evaluated.err


def test_a_file_of_safetensors_is_read_and_a_damaged_one_is_named(tmp_path):
    published = timm.create_model("test_resnet", num_classes=7)
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    model = timm_model(7, architecture="test_resnet")
    assert load_weights(model, read_weights(tmp_path / "model.safetensors", "timm", "test_resnet")).notes == ()
    assert all(torch.equal(value, published.state_dict()[key]) for key, value in model.state_dict().items())
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"model\.pretrained=.*model\.safetensors: it is damaged"):
        read_weights(tmp_path / "model.safetensors", "timm", "test_resnet")


@pytest.mark.parametrize("architecture", ["resnet18", "efficientnet_b0", "regnety_002", "convnext_atto", "densenet121"])
def test_agc_leaves_the_classifier_that_timm_names(architecture):
    with torch.device("meta"):
        model = timm_model(7, architecture=architecture)
    assert find_classifier(model) is model.get_classifier()
    assert model.get_classifier().out_features == 7
