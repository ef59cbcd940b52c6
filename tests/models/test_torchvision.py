"""model=torchvision: any of its models by its own name, beside torchvision itself."""

import json

import pytest
import torch
import torchvision

from runner import load_run
from runner.experiment.builders import build_model
from runner.models.pretrained import PretrainedWeights, load_weights
from runner.models.torchvision import torchvision_model


def test_it_is_what_torchvision_makes():
    torch.manual_seed(0)
    ours = torchvision_model(7, architecture="mobilenet_v3_small", settings={"dropout": 0.4})
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v3_small(num_classes=7, dropout=0.4)
    assert str(ours) == str(theirs)
    for (name, value), (key, expected) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == key
        assert torch.equal(value, expected)


@pytest.mark.parametrize("architecture", ["fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_a_model_for_segmentation_gives_logits(architecture):
    torch.manual_seed(0)
    ours = torchvision_model(5, architecture=architecture).eval()
    theirs = torchvision.models.get_model(architecture, weights=None, weights_backbone=None, num_classes=5).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images)["out"])


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3"])
def test_in_training_too_it_gives_logits_alone(architecture):
    with torch.device("meta"):
        model = torchvision_model(5, architecture=architecture)
        assert model(torch.empty(2, 3, 96, 96)).shape == (2, 5)


@pytest.mark.parametrize("architecture", ["regnet_y_400mf", "swin_t"])
def test_a_model_that_reads_values_while_it_is_built_is_built_on_the_meta_device_too(architecture):
    with torch.device("meta"):
        model = torchvision_model(5, architecture=architecture)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 5)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"architecture": "efficientnet_b9"}, ["model.architecture=efficientnet_b9", "Did you mean efficientnet_b7?"]),
        ({"architecture": "fasterrcnn_resnet50_fpn"}, ["torchvision has no model of that name"]),
        ({"settings": {"weights": "DEFAULT"}}, ["model.settings.weights=DEFAULT", "choose model.pretrained"]),
        ({"settings": {"sundry": 1}}, ["model.settings={sundry:1}", "cannot make a resnet50", "'sundry'"]),
    ],
)
def test_what_torchvision_does_not_have_is_refused(settings, parts):
    with torch.device("meta"), pytest.raises(ValueError, match=r"^model\.") as refusal:
        torchvision_model(10, **settings)
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_an_auxiliary_classifier_in_weights_is_left_out():
    with torch.device("meta"):
        whole = torchvision.models.get_model(
            "fcn_resnet50", weights=None, weights_backbone=None, num_classes=21, aux_loss=True
        )
        model = torchvision_model(5, architecture="fcn_resnet50")
    weights = {key: torch.ones(value.shape, dtype=value.dtype) for key, value in whole.state_dict().items()}
    fit = load_weights(model.to_empty(device="cpu"), PretrainedWeights("file.pt", weights))
    assert fit.notes == (
        "the auxiliary classifier aux_classifier is left out",
        "the classifier classifier.4 is initialized anew: 21 classes in the weights, 5 here",
    )
    assert torch.equal(model.backbone.conv1.weight, torch.ones(64, 3, 7, 7))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.architecture=fcn_resnet50"], "an output of shape (2, 10, 8, 8) for images of shape (2, 3, 8, 8)"),
        (["model.architecture=vit_b_16"], "it does not take images of 8x8 pixels (Wrong image height!"),
    ],
)
def test_a_model_that_does_not_suit_the_data_is_refused(tiny, tmp_path, words, message):
    outcome = tiny("model=torchvision", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "outputs").exists()


def test_an_argument_may_be_a_list(composed):
    word = "++model.settings={replace_stride_with_dilation:[false,true,true]}"
    config = composed("model=torchvision", "model.architecture=resnet50", word)
    with torch.device("meta"):
        model = build_model(config.model, num_classes=3)
    assert [layer[0].conv2.stride[0] for layer in (model.layer2, model.layer3, model.layer4)] == [2, 1, 1]


def test_a_mapping_of_settings_is_open_on_the_command_line(tiny, tmp_path):
    settings = ["model=torchvision", "model.architecture=shufflenet_v2_x0_5", "train.epochs=1"]
    outcome = tiny(*settings, "model.settings={sundry:1}")
    assert outcome.code == 2
    assert "model.settings={sundry:1}: torchvision cannot make a shufflenet_v2_x0_5" in outcome.err
    assert tiny(*settings, "model.settings.stages_repeats=3").code == 2
    outcome = tiny(*settings)
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "outputs/runs/random-torchvision-shufflenet_v2_x0_5-batchnorm"
    assert json.loads((folder / "summary.json").read_text())["model"]["name"] == "torchvision-shufflenet_v2_x0_5"


@pytest.mark.slow
def test_a_model_for_segmentation_trains(runner, make_scenes, tmp_path):
    make_scenes(tmp_path / "scenes", training=8, validation=4)
    outcome = runner(
        *["model=torchvision", "model.architecture=lraspp_mobilenet_v3_large", "dataset=mask_folder"],
        *["dataset.root=scenes", "dataset.image_size=32", "dataset.num_workers=0", "dataset.num_classes=3"],
        *["train.epochs=1", "train.global_batch_size=4", "train.device=cpu", "wandb.mode=disabled", "name=run"],
    )
    assert outcome.code == 0, outcome.err
    model, _ = load_run(tmp_path / "outputs/runs/run")
    assert model(torch.zeros(1, 3, 32, 48)).shape == (1, 3, 32, 48)


@pytest.mark.parametrize(
    ("architecture", "first"), [("efficientnet_b0", "features.0.0"), ("fcn_resnet50", "backbone.conv1")]
)
def test_the_first_convolution_takes_the_channels_of_the_images(architecture, first):
    torch.manual_seed(0)
    plain = torchvision_model(3, architecture=architecture).get_submodule(first).weight
    torch.manual_seed(0)
    model = torchvision_model(3, architecture=architecture, in_channels=5).eval()
    assert torch.equal(model.get_submodule(first).weight, plain[:, [0, 1, 2, 0, 1]])
    assert model(torch.zeros(2, 5, 32, 32)).shape[:2] == (2, 3)
