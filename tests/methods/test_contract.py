"""What every method keeps to, found by its YAML file: a new method is under test from its first day."""

import copy
import json
import pickle
import shutil

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from runner.config.validation import CONF, METHOD_GROUPS
from runner.experiment.methods import build_methods
from runner.models.resnet import ScaledResNet

OPTIONS = sorted((group, path.stem) for group in METHOD_GROUPS for path in (CONF / group).glob("*.yaml"))
SETTINGS = {  # where the defaults do not suit batches of 8 images of 16x16
    "ghost_batchnorm": ["ghost_batchnorm.ghost_batch_size=4"],
    "precise_batchnorm": ["precise_batchnorm.num_batches=2"],
    "stochastic_depth": ["stochastic_depth.drop_rate=0.5"],
}
LOSE_KEYS = {"none", "groupnorm", "layernorm", "instancenorm"}  # they take batch norm's buffers, or all of it, away
GAIN_KEYS = {"batch_channel_norm"}  # the affine parameters of its groups

CONFIGURATIONS = {}  # by their overrides, so that each is composed once

each_precision = pytest.mark.parametrize("precision", ["fp32", "bf16"])  # the second with images in channels last
each_option = pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[option for _, option in OPTIONS])


@pytest.fixture
def method_of(composed):
    """`method_of(group, option)` makes the method as the command line does."""

    def make(group, option):
        words = (f"{group}=[{option}]", "train.global_batch_size=8", *SETTINGS.get(option, []))
        if words not in CONFIGURATIONS:
            CONFIGURATIONS[words] = composed(*words)
        return build_methods(CONFIGURATIONS[words])[option]

    return make


def plain_model():
    """Torchvision's, of half the blocks of a ResNet-18 and half their channels."""
    torch.manual_seed(0)
    return ScaledResNet(0.5, BasicBlock, [1, 1, 1, 1], num_classes=10)


def batch(size=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 48, 48, generator=generator), torch.randint(10, (size,), generator=generator)


def train_step(method, model, optimizer, progress=1.0, precision="fp32"):
    """One step as the loop makes it."""
    images, targets = batch()
    is_bf16 = precision == "bf16"
    images = images.contiguous(memory_format=torch.channels_last if is_bf16 else torch.contiguous_format)
    method.on_step(progress)
    optimizer.zero_grad()
    images, targets = method.transform_batch(images, targets, 10)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        logits = model(images).float()
    F.cross_entropy(logits, targets, **method.loss_options()).backward()
    metrics = method.transform_gradients(model)
    optimizer.step()
    return metrics


@each_option
def test_keys_and_parameters_stay_and_state_dicts_load_there_and_back(group, option, method_of):
    plain, model = plain_model(), plain_model()
    parameters = dict(model.named_parameters())
    method_of(group, option).apply(model, batch(2)[0])
    before, after = set(plain.state_dict()), set(model.state_dict())
    assert option in LOSE_KEYS or before <= after
    assert option in GAIN_KEYS or after <= before
    for name, parameter in model.named_parameters():
        assert name not in parameters or parameter is parameters[name]

    def random_like(state):
        return {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()}

    there = random_like(plain.state_dict())
    model.load_state_dict(there, strict=option not in LOSE_KEYS | GAIN_KEYS)
    assert all(torch.equal(model.state_dict()[key], there[key]) for key in before & after)
    back = random_like(model.state_dict())
    plain.load_state_dict(back, strict=option not in LOSE_KEYS | GAIN_KEYS)
    assert all(torch.equal(plain.state_dict()[key], back[key]) for key in before & after)


@each_precision
@each_option
def test_an_optimizer_made_before_the_surgery_trains_every_parameter(group, option, method_of, precision):
    model, method = plain_model(), method_of(group, option)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    known = {parameter for node in optimizer.param_groups for parameter in node["params"]}
    method.apply(model, batch(2)[0], seed=0)
    trained = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter in known}
    assert option in GAIN_KEYS or len(trained) == len(list(model.parameters()))
    still = set(trained)
    for _ in range(10):  # stochastic depth passes over some blocks in a step
        metrics = train_step(method, model, optimizer, precision=precision)
        assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
        still -= {name for name in still if not torch.equal(model.get_parameter(name), trained[name])}
        if not still:
            break
    assert not still


@each_option
def test_applied_twice_it_is_the_same_model_as_applied_once(group, option, method_of):
    once, twice = plain_model(), plain_model()
    method_of(group, option).apply(once, batch(2)[0])
    for _ in range(2):
        method_of(group, option).apply(twice, batch(2)[0])
    assert [type(module) for module in once.modules()] == [type(module) for module in twice.modules()]
    assert torch.equal(once.eval()(batch(3)[0]), twice.eval()(batch(3)[0]))


@each_option
def test_on_the_meta_device_it_changes_as_many_modules(group, option, method_of):
    with torch.device("meta"):
        model = plain_model()
        images = torch.empty(2, 3, 64, 64)
        count = method_of(group, option).apply(model, images)
        assert model.eval()(images).shape == (2, 10)
    assert count == method_of(group, option).apply(plain_model(), batch(2)[0])


@each_option
def test_copies_and_pickles_compute_the_same(group, option, method_of):
    model, method = plain_model(), method_of(group, option)
    method.apply(model, batch(2)[0])
    train_step(method, model, torch.optim.SGD(model.parameters(), lr=0.01))
    expected = model.eval()(batch(3)[0])
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(batch(3)[0]), expected)


@each_option
def test_channels_last_and_autocast_train(group, option, method_of):
    model, method = plain_model().to(memory_format=torch.channels_last), method_of(group, option)
    method.apply(model, batch(2)[0])
    images, targets = method.transform_batch(*batch(), 10)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images.contiguous(memory_format=torch.channels_last))
    F.cross_entropy(logits.float(), targets, **method.loss_options()).backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


@each_option
def test_autocast_on_a_gpu_moves_two_bytes_a_number(group, option, method_of, cuda_autocast, inputs_of_convolutions):
    """A layer whose output is float32 would double what the layers after it read and write."""
    with torch.device("meta"):
        model = plain_model()
        method_of(group, option).apply(model, batch(2)[0].to("meta"))
    model.train(option != "stochastic_depth")  # its gates are values, which fake tensors have not
    seen = inputs_of_convolutions(model)
    with cuda_autocast():
        assert model.to_empty(device="cuda")(torch.empty(8, 3, 48, 48, device="cuda")).dtype == torch.bfloat16
    assert len(seen) == 12
    assert {name for name, dtype in seen if dtype == torch.float32} == {"conv1"}  # which is given the images


@each_precision
@each_option
def test_its_state_is_plain_and_is_taken_up(group, option, method_of, tmp_path, precision):
    model, method = plain_model(), method_of(group, option)
    method.apply(model, batch(2)[0], seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for number in range(3):
        train_step(method, model, optimizer, number / 6, precision)
    torch.save({"model": model.state_dict(), "method": method.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)

    resumed, fresh = plain_model(), method_of(group, option)
    fresh.apply(resumed, batch(2)[0], seed=3)
    resumed.load_state_dict(saved["model"])
    fresh.load_state_dict(saved["method"])
    for of_method, of_model in ((method, model), (fresh, resumed)):
        optimizer = torch.optim.SGD(of_model.parameters(), lr=0.01)
        for number in range(3, 6):
            torch.manual_seed(number)
            train_step(of_method, of_model, optimizer, number / 6, precision)
    for key, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@each_precision
@each_option
def test_a_resumed_run_ends_with_the_same_bits(group, option, small, runner, tmp_path, precision):
    """From its checkpoint after the first of two epochs, as if it had been killed in the second."""
    settings = [f"{group}=[{option}]", *SETTINGS.get(option, []), "dataset.image_size=16", "schedule=constant"]
    settings += ["schedule.warmup_epochs=0", "train.log_every_steps=1", "train.epochs=2"]
    settings += [f"train.precision={precision}", f"train.channels_last={precision == 'bf16'}"]
    assert small(*settings, "name=whole").code == 0
    whole, parts = (tmp_path / "outputs" / "runs" / name for name in ("whole", "parts"))
    shutil.copytree(whole, parts)
    (parts / "checkpoints/previous.pt").replace(parts / "checkpoints/last.pt")
    (parts / "summary.json").unlink()
    assert torch.load(parts / "checkpoints/last.pt", weights_only=True)["progress"]["step"] == 4
    assert runner("resume=outputs/runs/parts").code == 0
    states = [torch.load(folder / "checkpoints" / "last.pt", weights_only=True) for folder in (whole, parts)]
    for key, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][key]), key
    rows = [
        [
            {key: value for key, value in json.loads(line).items() if key not in ("images_per_second", "seconds")}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (whole, parts)
    ]
    assert [row for row in rows[0] if row["split"] != "test"] == [row for row in rows[1] if row["split"] != "test"]
