"""Weights from files and from torchvision: every layout, converted models, other classes, what does not fit."""

import copy
from collections import OrderedDict
from functools import cache
from urllib.error import URLError

import pytest
import torch
import torchvision
from timm.models import adapt_input_conv
from torch import nn
from torchvision.models import ResNet18_Weights, get_model_weights

from runner.methods import (
    apply_batch_channel_norm,
    apply_ghost_batchnorm,
    apply_group_norm,
    apply_weight_standardization,
    remove_batchnorm,
)
from runner.models import DeepLabV3Plus, deeplabv3plus_resnet18, nf_resnet26, resnet18, resnet20
from runner.models.pretrained import PretrainedWeights, check_weights, fits, load_weights, read_weights


def with_statistics(model):
    """Running statistics and gains that are not those of a new model, so that one left behind shows."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
            else:
                tensor.fill_(7)
    return model


@cache
def _resnet18():
    return resnet18(num_classes=10)


def new_resnet18():
    """A copy of one and the same model, which takes less time than to draw its weights."""
    return copy.deepcopy(_resnet18())


@pytest.fixture(scope="module")
def source():
    """torchvision's ResNet-18 with weights of its own."""
    torch.manual_seed(0)
    return with_statistics(torchvision.models.resnet18(weights=None, num_classes=10)).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def weights_of(model, **changes):
    """Its state dict as if it had been read; `changes` put other tensors in, or None for one that is to be missing."""
    state = {**model.state_dict(), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    return PretrainedWeights("file.pt", {name: tensor for name, tensor in state.items() if tensor is not None})


def same_outputs(model, other, images):
    with torch.no_grad():
        return torch.equal(model.eval()(images), other.eval()(images))


def prefixed(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


# ---- files


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "layout",
    [
        lambda state: state,
        lambda state: {"model": state, "methods": {"agc": {}}, "about": {"num_classes": 10}, "optimizer": {"a": [1]}},
        lambda state: {"state_dict": state, "epoch": 3},
        prefixed,
        lambda state: {"epoch": 3, "state_dict": prefixed(state)},
    ],
    ids=["plain", "checkpoint", "state_dict", "module", "module_in_state_dict"],
)
def test_every_layout_of_a_file_gives_the_model_that_was_saved(source, images, tmp_path, layout, zipped):
    path = tmp_path / "weights.pt"
    torch.save(layout(source.state_dict()), path, _use_new_zipfile_serialization=zipped)
    model = new_resnet18()
    loaded = load_weights(model, read_weights(path, "resnet18"))
    assert (len(loaded.tensors), loaded.notes) == (122, ())
    assert same_outputs(model, source, images)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_file_may_go_once_its_weights_are_loaded(source, images, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(source.state_dict(), path)
    model = new_resnet18()
    load_weights(model, read_weights(str(path), "resnet18"))
    path.write_bytes(bytes(path.stat().st_size))
    assert same_outputs(model, source, images)


@pytest.mark.parametrize("build", [lambda: nf_resnet26(num_classes=3, stem="small", se=True), resnet20])
def test_other_models_load_their_own_files(build, tmp_path):
    saved, model = with_statistics(build()), build()
    torch.save({"model": saved.state_dict(), "methods": {}}, tmp_path / "best.pt")
    loaded = load_weights(model, read_weights(tmp_path / "best.pt", "resnet20"))
    assert loaded.notes == ()
    assert same_outputs(model, saved, torch.randn(2, 3, 16, 16))


def changed_bytes(data):
    """In the pickle, which says what the tensors are."""
    return data[:200] + bytes(byte ^ 0xFF for byte in data[200:400]) + data[400:]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"<html>404: Not Found</html>\n",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-300],
        changed_bytes,
    ],
    ids=["empty", "a_page", "half", "cut", "changed"],
)
def test_a_damaged_file_is_named(tmp_path, damage, zipped):
    path = tmp_path / "weights.pt"
    torch.save(nn.Conv2d(3, 16, 3).state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.pretrained=.*weights\.pt: it (is damaged|cannot be read)"):
        read_weights(path, "resnet18")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(2, 2), "holds more than tensors; give a file that torch.save"),
        ({"epoch": 3, "loss": 0.5}, "holds no state dict"),
        ({0: torch.zeros(2)}, "holds no state dict"),
        ([torch.zeros(2)], "holds no state dict"),
    ],
)
def test_a_file_of_other_things_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "weights.pt", "resnet18")


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"model\.pretrained=.*: this is a folder; give a file in it"):
        read_weights(tmp_path, "resnet18")


# ---- torchvision's weights


@pytest.fixture
def downloads(monkeypatch, source):
    """What torchvision was asked for; in the place of a download it gives the source's weights."""
    asked = []

    def get_state_dict(weights, *args, **kwargs):
        asked.append((weights, kwargs))
        return OrderedDict(source.state_dict())

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", get_state_dict)
    return asked


@pytest.mark.parametrize(
    ("name", "model_name"),
    [
        ("IMAGENET1K_V1", "resnet18"),
        ("DEFAULT", "resnet18"),
        ("IMAGENET1K_V1", "deeplabv3plus_resnet18"),
    ],
)
def test_torchvisions_weights_by_name(downloads, source, name, model_name):
    weights = read_weights(name, model_name)
    assert downloads == [(ResNet18_Weights.IMAGENET1K_V1, {"check_hash": True, "weights_only": True})]
    assert weights.source == name
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in weights.tensors.items())


@pytest.mark.usefixtures("downloads")
def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(1)}, "IMAGENET1K_V1")
    assert list(read_weights("IMAGENET1K_V1", "resnet18").tensors) == ["weight"]


@pytest.mark.parametrize(
    ("model_name", "message"),
    [
        (
            "resnet50",
            "model.pretrained=IMAGENET: there is no such file, and torchvision has no weights of that name for "
            "resnet50; it has IMAGENET1K_V1, IMAGENET1K_V2.",
        ),
        ("deeplabv3plus_resnet18", "of that name for deeplabv3plus_resnet18; it has IMAGENET1K_V1."),
        ("resnet20", "there is no such file, and torchvision has no weights for resnet20."),
        ("nf_resnet50", "there is no such file, and torchvision has no weights for nf_resnet50."),
    ],
)
def test_neither_a_file_nor_a_name(model_name, message):
    with pytest.raises(ValueError, match="there is no such file") as refusal:
        read_weights("IMAGENET", model_name)
    assert str(refusal.value).endswith(message)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (URLError("no route"), "no route"),
        (TimeoutError(), "TimeoutError"),
        (RuntimeError('invalid hash value (expected "37f81f2d")'), "invalid hash value"),
    ],
)
def test_without_a_network_the_message_says_what_to_put_where(monkeypatch, tmp_path, error, reason):
    def no_network(*args, **kwargs):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    weights = get_model_weights("resnet50").IMAGENET1K_V2
    with pytest.raises(ValueError, match=reason) as refusal:
        read_weights("IMAGENET1K_V2", "resnet50")
    place = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    assert str(refusal.value).startswith("model.pretrained=IMAGENET1K_V2: the weights could not be downloaded")
    assert f"Put {weights.url} at {place}, or give a file." in str(refusal.value)
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.ones(3)}, place)
    assert torch.equal(read_weights("IMAGENET1K_V2", "resnet50").tensors["weight"], torch.ones(3))


def test_a_damaged_download_is_to_be_deleted(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    place.parent.mkdir(parents=True)
    place.write_bytes(b"half a file")
    with pytest.raises(ValueError, match=rf"{place.name} is damaged; delete it"):
        read_weights("DEFAULT", "resnet18")


# ---- into models


@pytest.mark.filterwarnings("ignore:weight_standardization. the ResNet was trained before")
@pytest.mark.parametrize("convert", [apply_ghost_batchnorm, apply_weight_standardization])
def test_a_method_that_keeps_the_names_may_come_before_or_after(source, images, convert):
    before, after = new_resnet18(), new_resnet18()
    load_weights(before, weights_of(source))
    assert convert(before) == convert(after) == 20
    assert fits(after, weights_of(source))
    load_weights(after, weights_of(source))
    assert same_outputs(before, after, images)
    plain = new_resnet18()
    load_weights(plain, weights_of(after))
    assert same_outputs(plain, source, images)


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda model: apply_group_norm(model, num_groups=8), r"40 tensors missing: bn1\.running_mean"),
        (lambda model: apply_batch_channel_norm(model, num_groups=8), "40 tensors of no use: bn1.group_weight"),
        (lambda model: remove_batchnorm(model, skipinit=True), "80 tensors missing: .* 8 tensors of no use"),
    ],
    ids=["groupnorm", "batch_channel_norm", "skipinit"],
)
def test_weights_of_a_model_with_other_names_fit_after_the_method_alone(source, images, convert, message):
    plain, converted = new_resnet18(), with_statistics(new_resnet18())
    convert(converted)
    theirs = weights_of(converted)
    assert (fits(plain, theirs), fits(converted, theirs)) == (False, True)
    with pytest.raises(ValueError, match=message):
        load_weights(plain, theirs)
    assert (fits(plain, weights_of(source)), fits(converted, weights_of(source))) == (True, False)
    convert(plain)
    load_weights(plain, theirs)
    assert same_outputs(plain, converted, images)


def test_parameters_stay_the_objects_they_are(source):
    model = new_resnet18()
    objects = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    load_weights(model, weights_of(source))
    assert all(objects[name] is parameter for name, parameter in model.named_parameters())
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize("build", [resnet18, nf_resnet26], ids=["resnet18", "nf_resnet26"])
def test_another_number_of_classes_leaves_the_classifier_as_it_was_initialized(build):
    saved, model = with_statistics(build(num_classes=1000)), build(num_classes=10)
    fresh = {name: tensor.clone() for name, tensor in model.fc.state_dict().items()}
    loaded = load_weights(model, weights_of(saved))
    assert loaded.notes == ("the classifier fc is initialized anew: 1000 classes in the weights, 10 here",)
    assert len(loaded.tensors) == len(saved.state_dict()) - 2
    for name, tensor in model.state_dict().items():
        expected = fresh[name.removeprefix("fc.")] if name.startswith("fc.") else saved.state_dict()[name]
        assert torch.equal(tensor, expected), name


def test_a_resnets_weights_go_into_the_backbone_of_deeplab(source):
    model = deeplabv3plus_resnet18(num_classes=3, head_channels=8)
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    loaded = load_weights(model, weights_of(source))
    assert len(loaded.tensors) == 120
    assert loaded.notes == ("the weights are those of a ResNet: its fc is left out, the head is initialized anew",)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.backbone.state_dict().items())
    assert all(torch.equal(tensor, head[name]) for name, tensor in model.head.state_dict().items())


@pytest.mark.parametrize("num_classes", [3, 5])
def test_a_whole_deeplab_loads(num_classes, images):
    saved = with_statistics(deeplabv3plus_resnet18(num_classes=3, head_channels=8))
    model = deeplabv3plus_resnet18(num_classes=num_classes, head_channels=8, output_stride=8)
    classifier = model.head.classifier.weight.clone()
    loaded = load_weights(model, weights_of(saved))
    assert isinstance(model, DeepLabV3Plus)
    if num_classes == 3:
        assert loaded.notes == ()
        other_stride = deeplabv3plus_resnet18(num_classes=3, head_channels=8, output_stride=8)
        other_stride.load_state_dict(saved.state_dict())
        assert same_outputs(model, other_stride, images)
    else:
        note = "the classifier head.classifier is initialized anew: 3 classes in the weights, 5 here"
        assert loaded.notes == (note,)
        assert torch.equal(model.head.classifier.weight, classifier)
        assert torch.equal(model.head.low_level[0].weight, saved.head.low_level[0].weight)


def test_old_files_without_the_number_of_batches(source, images):
    old = {name: None for name in source.state_dict() if name.endswith("num_batches_tracked")}
    model = new_resnet18()
    loaded = load_weights(model, weights_of(source, **old))
    assert len(loaded.tensors) == 102
    assert same_outputs(model, source, images)
    assert model.bn1.num_batches_tracked == 0


# ---- what does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc__bias": None}, "1 tensor missing: fc.bias."),
        (
            {"conv1__weight": None, "bn1__weight": None, "bn1__bias": None, "bn1__running_mean": None},
            "4 tensors missing: conv1.weight, bn1.weight, bn1.bias and 1 more.",
        ),
        ({"extra": torch.ones(1)}, "1 tensor of no use: extra."),
        (
            {"layer4__1__bn2__bias": torch.ones(3)},
            "1 tensor of another shape: layer4.1.bn2.bias (3,) instead of (512,). Choose the model they are of",
        ),
        (
            {"fc__weight": torch.ones(1000, 2048), "fc__bias": torch.ones(1000)},
            "2 tensors of another shape: fc.weight (1000, 2048) instead of (10, 512), fc.bias (1000,) instead of",
        ),
        (
            {"fc__weight": torch.ones(10, 2048), "more": torch.ones(1), "bn1__bias": None},
            "1 tensor of another shape: fc.weight (10, 2048) instead of (10, 512); 1 tensor missing: bn1.bias; "
            "1 tensor of no use: more. Choose",
        ),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_does_not_fit_is_named_and_nothing_is_loaded(source, changes, message, device):
    with torch.device(device):
        model = new_resnet18()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = weights_of(source, **changes)
    assert not fits(model, weights)
    for function in (check_weights, load_weights):
        with pytest.raises(ValueError, match="these weights do not fit the model") as refusal:
            function(model, weights)
        assert f"model.pretrained=file.pt: these weights do not fit the model: {message}" in str(refusal.value)
    if device == "cpu":
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("build", "there", "here", "remedy"),
    [
        (resnet18, "imagenet", "small", "conv1.weight (64, 3, 7, 7) instead of (64, 3, 3, 3). That is another stem: "
         "set model.stem=imagenet or wide."),
        (resnet18, "small", "imagenet", "set model.stem=strided or small."),
        (nf_resnet26, "imagenet", "strided", "set model.stem=imagenet or wide."),
    ],
)  # fmt: skip
def test_another_stem_is_told(build, there, here, remedy):
    with torch.device("meta"):
        weights, model = weights_of(build(stem=there)), build(stem=here)
    with pytest.raises(ValueError, match=r"model\.stem=") as refusal:
        check_weights(model, weights)
    assert str(refusal.value).endswith(remedy)


def test_a_model_of_another_kind_is_no_matter_of_stems(source):
    with pytest.raises(ValueError, match=r"of another shape: conv1\.weight .*Choose the model they are of"):
        check_weights(resnet20(), weights_of(source))


def test_a_check_on_the_meta_device_says_what_loading_would(source):
    with torch.device("meta"):
        models = [resnet18(num_classes=7), deeplabv3plus_resnet18(num_classes=7)]
    real = [resnet18(num_classes=7), deeplabv3plus_resnet18(num_classes=7)]
    for model, other in zip(models, real, strict=True):
        checked, loaded = check_weights(model, weights_of(source)), load_weights(other, weights_of(source))
        assert (checked.tensors.keys(), checked.notes) == (loaded.tensors.keys(), loaded.notes)
        assert model.state_dict().keys() == other.state_dict().keys()
        assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_without_a_classifier_every_shape_has_to_fit():
    saved, model = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(3, 5, 3))
    with pytest.raises(
        ValueError, match=r"2 tensors of another shape: 0\.weight \(4, 3, 3, 3\) instead of \(5, 3, 3, 3\)"
    ):
        load_weights(model, weights_of(saved))


def behind(prefix):
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "layout",
    [
        behind("_orig_mod."),
        behind("module._orig_mod."),
        behind("_orig_mod.module."),
        behind("backbone."),
        lambda state: {"state_dict": behind("model.")(state), "epoch": 3, "hyper_parameters": {"lr": 0.1}},
        lambda state: {"state_dict": {**behind("model.")(state), "criterion.weight": torch.ones(3)}},
        lambda state: {"model": state, "model_ema": {**behind("module.")(state), "n_averaged": torch.tensor(3)}},
        lambda state: {"model_ema": {**behind("module.")(state), "n_averaged": torch.tensor(3)}, "epoch": 1},
        lambda state: {"model_state": state, "optimizer": {"state": {}, "param_groups": []}},
        lambda state: {"net": behind("module.")(state), "acc": 0.9},
        lambda state: {"whatever_it_is_called": state, "epoch": 1},
    ],
)
def test_weights_as_others_save_them_are_recognised(tmp_path, source, images, layout):
    torch.save(layout(source.state_dict()), tmp_path / "file.pt")
    model = resnet18(num_classes=10, stem="imagenet")
    load_weights(model, read_weights(tmp_path / "file.pt", "resnet18"))
    assert same_outputs(model, source, images)


def test_weights_outside_the_wrapper_are_told(tmp_path, source):
    state = {**behind("model.")(source.state_dict()), "criterion.weight": torch.ones(3)}
    loaded = load_weights(resnet18(num_classes=10, stem="imagenet"), PretrainedWeights("file.pt", state))
    assert loaded.notes == ("of the weights 1 outside model are left out",)


def test_several_state_dicts_without_a_known_name_are_refused(tmp_path, source):
    torch.save({"a": source.state_dict(), "b": source.state_dict()}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="it has several, a, b; give one"):
        read_weights(tmp_path / "file.pt", "resnet18")


@pytest.mark.parametrize("load", [load_weights, check_weights])
def test_weights_that_are_not_finite_are_refused(source, load):
    wrong = weights_of(source, fc__weight=torch.full((10, 512), torch.nan))
    with pytest.raises(ValueError, match=r"1 tensor with values that are not finite: fc\.weight"):
        load(resnet18(num_classes=10, stem="imagenet"), wrong)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_the_first_layer_takes_images_of_other_channels_by_timms_rule(channels):
    torch.manual_seed(0)
    plain, model = resnet18(num_classes=3).eval(), resnet18(num_classes=3, in_channels=channels).eval()
    fit = load_weights(model, PretrainedWeights("file.pt", plain.state_dict()))
    assert fit.notes == (f"the first layer conv1 had 3 channels of images, and has {channels} here",)
    expected = adapt_input_conv(channels, plain.conv1.weight.detach())
    torch.testing.assert_close(model.conv1.weight.detach(), expected)
    grey = torch.randn(2, 1, 32, 32)
    if channels in (1, 6):
        torch.testing.assert_close(model(grey.expand(-1, channels, -1, -1)), plain(grey.expand(-1, 3, -1, -1)))


def test_the_first_layer_of_another_width_is_refused():
    weights = PretrainedWeights("file.pt", resnet18(num_classes=3, width=0.5).state_dict())
    with pytest.raises(ValueError, match=r"of another shape: conv1\.weight"):
        load_weights(resnet18(num_classes=3, in_channels=1), weights)
