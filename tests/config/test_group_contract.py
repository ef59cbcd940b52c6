"""What holds for every option of every group, ours and one from outside: its YAML file says all that is to be said."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from runner.config import extensions
from runner.config.limits import ranges_of
from runner.config.options import CONF, LIST_GROUPS, METHOD_GROUPS, SINGLE_GROUPS, TARGET, read_option
from runner.config.settings import Settings
from runner.config.targets import METHOD_PACKAGE, OWN_PACKAGES
from runner.config.text import SettingError
from runner.config.validation import _typed_settings as typed_settings
from runner.data import fashion_mnist
from runner.experiment import builders
from runner.experiment.targets import builder_of
from tests.config.test_open_groups import OPTIONS as OUTSIDE

GROUPS = (*SINGLE_GROUPS, *LIST_GROUPS)
OWN = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
FROM_OUTSIDE = [tuple(name.removesuffix(".yaml").split("/")) for name in OUTSIDE if name.endswith(".yaml")]
OPTIONS = [*OWN, *(each for each in FROM_OUTSIDE if each[0] in GROUPS)]
PACKAGES = ("mynet", "stripes", "sign_sgd", "halves", "weight_norms")
GIVEN = {  # what the runner itself acts on
    "model": {"name", "initialization", "initialized_layers", "pretrained", "methods_on"},
    "optimizer": {"name", "lr_batch_size", "weight_decay", "decay_norm_and_bias"},
    "schedule": {"name", "warmup_epochs"},
    "dataset": {"name"},
    "probe": {"num_batches"},
}
DOWNLOADED = ("cifar10", "cifar100", "fashion_mnist", "fashion_scenes", "torchvision")
IN_FILES = ("imagenet", "image_folder", "ade20k", "mask_folder", "huggingface", *DOWNLOADED)
SMALL = ("resnet18", "resnet20", "nf_resnet26", "deeplabv3plus_resnet18", "mynet")

each_option = pytest.mark.parametrize(("group", "name"), OPTIONS)


@pytest.fixture
def folders(tmp_path):
    """Our own folder and one with an option of each group."""
    for name, text in OUTSIDE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    extensions.use_folder(tmp_path)
    yield [CONF, tmp_path]
    extensions.use_folder(None)


def file_of(folders, group, name):
    return next(file for folder in folders if (file := Path(folder, group, f"{name}.yaml")).is_file())


def option_of(folders, group, name):
    return read_option(group, name, file_of(folders, group, name))


def settings_of(folders, group, name, /, **changes):
    """The settings of an option, checked as those of a run."""
    node = option_of(folders, group, name).settings | changes
    return typed_settings(group, name, node, folders, PACKAGES)


def prefix_of(group, name):
    return {"probe": f"probe.{name}"}.get(group, name if group in METHOD_GROUPS else group)


@each_option
def test_it_is_named_as_its_file_and_built_by_its_group(folders, group, name):
    settings = settings_of(folders, group, name)
    assert settings.get("name", name) == name
    assert ("name" in settings) == (group in SINGLE_GROUPS)
    if option_of(folders, group, name).is_own:
        assert settings[TARGET].startswith(f"{OWN_PACKAGES.get(group, METHOD_PACKAGE)}.")
    assert callable(builder_of(prefix_of(group, name), settings))


@each_option
def test_what_builds_it_takes_its_settings_and_needs_no_other(folders, group, name):
    settings = settings_of(folders, group, name)
    signature = inspect.signature(builder_of(prefix_of(group, name), settings))
    given = {key: value for key, value in settings.items() if key not in {TARGET, *GIVEN.get(group, ())}}
    first = {"model": 0, "dataset": 0, "optimizer": 1, "schedule": 2, "probe": ("num_batches" in settings and 2) or 1}
    extra = {"model": {"num_classes": 10}}.get(group, {})
    if "loss" in signature.parameters:
        extra = {"loss": None}
    bound = signature.bind(*[None] * first.get(group, 0), **extra, **given)
    assert given.keys() <= {*bound.arguments, *bound.kwargs}


@each_option
def test_every_number_and_word_has_a_range_that_holds_the_default(folders, group, name):
    settings = settings_of(folders, group, name)
    option = option_of(folders, group, name)
    ranges = ranges_of(group, option)
    for key, value in settings.items():
        if key not in (TARGET, "name") and not isinstance(value, (bool, tuple, Settings)) and option.is_own:
            assert key in ranges, key
        assert key not in ranges or value is None or value in ranges[key], key


@each_option
def test_a_value_of_another_type_is_refused_with_key_value_and_remedy(folders, group, name):
    settings = settings_of(folders, group, name)
    ranges = ranges_of(group, option_of(folders, group, name))
    for key, value in settings.items():
        if key == TARGET or key == "layer":  # which takes a depth, an index or a name
            continue
        wrong, shown = (["a"], "[a]") if isinstance(value, str) or value is None else ("wrong", "wrong")
        if value is None and (key not in ranges or key in ("layers", "mask_values")):
            wrong, shown = "wrong", "wrong"
        if key in ("validation", "ignore_label"):
            wrong, shown = ["a"], "[a]"
        with pytest.raises(SettingError) as refusal:
            settings_of(folders, group, name, **{key: wrong})
        message = str(refusal.value)
        if key != "name":
            assert message.startswith(f"{prefix_of(group, name)}.{key}={shown}: it must "), message


@each_option
def test_an_unknown_setting_and_one_that_is_missing_are_refused(folders, group, name):
    prefix = prefix_of(group, name)
    with pytest.raises(SettingError, match=rf"^{prefix}\.sundry=1: there is no such setting\."):
        settings_of(folders, group, name, sundry=1)
    node = option_of(folders, group, name).settings
    for key in node.keys() - {TARGET, "name"}:
        with pytest.raises(SettingError, match=rf"^{prefix}\.{key}: this setting is missing"):
            typed_settings(group, name, {k: v for k, v in node.items() if k != key}, folders, PACKAGES)


@each_option
def test_what_builds_it_is_no_setting(folders, group, name):
    target = "runner.models.resnet.resnet34" if group != "model" else "runner.data.digits.digits"
    with pytest.raises(SettingError, match=r"_target_=runner\..*is built by .*; leave it out\."):
        settings_of(folders, group, name, **{TARGET: target})


def of(group):
    return [name for kind, name in OPTIONS if kind == group]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in of("model")]
)
def test_a_model_is_built(folders, name):
    with torch.device("meta"):
        settings = settings_of(folders, "model", name)
        stem = {"stem": "small"} if "stem" in settings else {}
        model = builders.build_model(settings_of(folders, "model", name, **stem), num_classes=3).eval()
        size = 64 if name.startswith(("deeplab", "nf")) else 32
        logits = model(torch.empty(2, 3, size, size))
    assert logits.shape[:2] == (2, 3)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in of("model")]
)
def test_a_models_first_layer_takes_the_channels_of_the_images(folders, name):
    """Or what builds it says that it takes three: as a model from outside, which knows no others."""
    with torch.device("meta"):
        settings = settings_of(folders, "model", name)
        stem = {"stem": "small"} if "stem" in settings else {}
        settings = settings_of(folders, "model", name, **stem)
        if name == "mynet":
            with pytest.raises(SettingError, match=r"^model=mynet: it takes images of 3 channels only.* have 5\."):
                builders.build_model(settings, num_classes=3, in_channels=5)
            return
        model = builders.build_model(settings, num_classes=3, in_channels=5).eval()
        assert model(torch.empty(2, 5, 64, 64)).shape[:2] == (2, 3)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 5


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("cluttered_digits", "digit_scenes") else ())
        for name in of("dataset")
    ],
)
def test_a_data_set_is_built_or_says_what_is_missing(folders, name, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "PACKAGE_FOLDER", Path("nowhere"))
    key = "path" if name == "huggingface" else "root"
    root = {key: str(folders[1] / "nowhere")} if name in IN_FILES else {}
    root |= {"download": False} if name in DOWNLOADED else {}
    settings = settings_of(folders, "dataset", name, **root)
    if name in IN_FILES:
        with pytest.raises(SettingError, match=r"dataset\.root=|nowhere"):
            builders.build_data(settings)
        return
    data = builders.build_data(settings)
    assert data.name == name
    images, _ = next(iter(data.train_batches(batch_size=4, seed=0, device=torch.device("cpu")).epoch(0)))
    assert images.shape == (4, *data.image_shape)


@pytest.mark.parametrize("name", of("optimizer"))
def test_an_optimizer_is_built_and_steps(folders, name):
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    optimizer = builders.build_optimizer(settings_of(folders, "optimizer", name), model, global_batch_size=8)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("name", of("schedule"))
def test_a_schedule_is_built_and_never_rises_above_the_full_rate(folders, name):
    share = builders.build_schedule(settings_of(folders, "schedule", name), total_steps=20, steps_per_epoch=5)
    assert all(0 <= share(step) <= 1 for step in range(21))


def test_the_probes_are_built(folders):
    nodes = Settings({name: settings_of(folders, "probe", name) for name in of("probe")})
    probes = builders.build_probes(nodes)
    assert probes.keys() == nodes.keys()
    assert [name for name, probe in probes.items() if probe.num_batches is None] == ["learning_curves"]
