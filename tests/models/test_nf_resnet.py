from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from runner import models
from runner.layers.normalizer_free import GAMMAS, ScaledActivation
from runner.layers.scaled_std_conv import ScaledStdConv2d
from runner.layers.stem import MaxPool2dSame
from runner.models import NFResBlock, nf_resnet26, nf_resnet50, nf_resnet101

# ---- the formulas of the paper, in float64 and without our layers


def reference_same_pad(x, kernel, stride, value=0.0):
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


def reference_conv(state, name, x, stride=1):
    weight, gain, bias = (state[f"{name}.{part}"] for part in ("weight", "gain", "bias"))
    flat = weight.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    fan_in_variance = (centred**2).mean(1, keepdim=True) * flat.shape[1]
    standardized = gain[:, None] * centred / fan_in_variance.clamp(min=1e-4).sqrt()
    x = reference_same_pad(x, weight.shape[2], stride)
    return F.conv2d(x, standardized.view_as(weight), stride=stride) + bias[:, None, None]


def reference_activation(name, x):
    if name == "relu":
        return 1.7139588594436646 * x.clamp(min=0)
    assert name == "gelu"
    return 1.7015043497085571 * 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def reference_block(state, prefix, x, *, stride, variance, alpha, activation, se=False):
    activated = reference_activation(activation, x) / math.sqrt(variance)
    shortcut = x
    if f"{prefix}shortcut.conv.weight" in state:
        shortcut = reference_conv(state, f"{prefix}shortcut.conv", activated, stride)
    out = reference_conv(state, f"{prefix}conv0", activated)
    out = reference_conv(state, f"{prefix}conv1", reference_activation(activation, out), stride)
    out = reference_conv(state, f"{prefix}conv2", reference_activation(activation, out))
    if se:
        pooled = out.mean((2, 3))
        hidden = (pooled @ state[f"{prefix}se.fc0.weight"].T + state[f"{prefix}se.fc0.bias"]).clamp(min=0)
        logits = hidden @ state[f"{prefix}se.fc1.weight"].T + state[f"{prefix}se.fc1.bias"]
        out = out * 2 / (1 + torch.exp(-logits))[:, :, None, None]
    return shortcut + alpha * state[f"{prefix}skipinit_gain"] * out


def randomized(module):
    """In float64, with skip gains at 1 and gains and biases that matter."""
    module = module.double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("skipinit_gain"):
                parameter.fill_(1)
            elif name.endswith("gain"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return module


def blocks_of(model):
    return [module for module in model.modules() if isinstance(module, NFResBlock)]


# ---- the block


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride", "size", "activation", "se"),
    [
        (32, 32, 1, 7, "relu", False),
        (16, 32, 1, 7, "gelu", False),
        (32, 32, 2, 8, "relu", False),
        (16, 32, 2, 9, "gelu", True),
        (32, 32, 1, 6, "relu", True),
    ],
)
def test_block_is_the_formula(in_channels, out_channels, stride, size, activation, se):
    torch.manual_seed(0)
    block = randomized(
        NFResBlock(in_channels, out_channels, stride=stride, beta=1.3, alpha=0.2, activation=activation, se=se)
    )
    x = torch.randn(3, in_channels, size, size, dtype=torch.float64)
    expected = reference_block(
        block.state_dict(), "", x, stride=stride, variance=1.3**2, alpha=0.2, activation=activation, se=se
    )
    torch.testing.assert_close(block(x), expected)
    assert block(x).shape == (3, out_channels, math.ceil(size / stride), math.ceil(size / stride))


@pytest.mark.parametrize(("in_channels", "stride"), [(32, 1), (16, 1), (32, 2)])
def test_block_starts_as_its_shortcut_and_the_gradient_reaches_its_skip_gain(in_channels, stride):
    torch.manual_seed(0)
    block = NFResBlock(in_channels, 32, stride=stride, beta=1.1)
    x = torch.randn(2, in_channels, 8, 8)
    shortcut = x if block.shortcut is None else block.shortcut(block.activation(x) * (1 / 1.1))
    out = block(x)
    torch.testing.assert_close(out, shortcut, rtol=0, atol=0)
    out.square().sum().backward()
    assert block.skipinit_gain.shape == ()
    assert block.skipinit_gain.grad.abs() > 1e-3
    assert block.conv2.weight.grad.abs().max() == 0


def test_a_projection_stands_where_width_or_stride_changes():
    shortcuts = {
        name: module.shortcut for name, module in nf_resnet26().named_modules() if isinstance(module, NFResBlock)
    }
    projections = {name: shortcut.conv for name, shortcut in shortcuts.items() if shortcut is not None}
    assert list(projections) == ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    assert [conv.stride[0] for conv in projections.values()] == [1, 2, 2, 2]
    assert all(isinstance(conv, ScaledStdConv2d) and conv.kernel_size == (1, 1) for conv in projections.values())


@pytest.mark.parametrize(("alpha", "tolerance"), [(0.2, 0.015), (0.5, 0.04)])
def test_variance_follows_the_bookkeeping(alpha, tolerance):
    """A branch falls short of variance 1 by up to 8 % here: its padding's zeros, and channels that are not Gaussian."""
    torch.manual_seed(0)
    layer = nf_resnet50(num_classes=2, alpha=alpha).layer2
    first_variance = 1 + 3 * alpha**2
    expected = [1 + alpha**2, 1 + 2 * alpha**2, 1 + 3 * alpha**2, 1 + 4 * alpha**2]
    assert [block.beta**2 for block in layer] == pytest.approx([first_variance, *expected[:-1]])
    x = first_variance**0.5 * torch.randn(4, 256, 32, 32)
    with torch.no_grad():
        for block, variance in zip(layer, expected, strict=True):
            block.skipinit_gain.fill_(1)
            x = block(x)
            channel_variance = x.var((0, 2, 3)).mean().item()
            assert channel_variance == pytest.approx(variance, rel=tolerance)


def test_block_agrees_with_timms_where_that_follows_the_official_code():
    torch.manual_seed(0)
    scaled_relu = timm.models.nfnet.act_with_gamma("relu", gamma=GAMMAS["relu"])
    theirs = timm.models.nfnet.NormFreeBlock(
        32, 32, alpha=0.2, beta=1 / 1.2, bottle_ratio=0.25, reg=False, skipinit=True, act_layer=scaled_relu
    )
    ours = NFResBlock(32, 32, beta=1.2, alpha=0.2)
    state = randomized(ours).state_dict()
    with torch.no_grad():
        for index in range(3):
            conv = getattr(theirs, f"conv{index + 1}")
            conv.eps = 1e-12
            conv.weight.copy_(state[f"conv{index}.weight"])
            conv.gain.copy_(state[f"conv{index}.gain"].view(-1, 1, 1, 1))
            conv.bias.copy_(state[f"conv{index}.bias"])
        theirs.skipinit_gain.fill_(1)
    x = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(ours.float()(x), theirs(x), rtol=1e-4, atol=1e-5)


# ---- the network


@pytest.fixture
def narrow(monkeypatch):
    """The same networks at an eighth of their width."""
    monkeypatch.setattr("runner.models.nf_resnet.WIDTHS", (32, 64, 128, 256))


def test_numbers_of_parameters_are_the_official_codes():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in build().parameters()) for build in (nf_resnet50, nf_resnet101)]
        timm_count = sum(p.numel() for p in timm.create_model("nf_resnet50", skipinit=True).parameters())
    assert counts == [25_557_048, 44_549_193]
    assert timm_count == 25_557_048


def test_depths():
    with torch.device("meta"):
        depths = {
            name: [len(getattr(model, f"layer{stage}")) for stage in (1, 2, 3, 4)]
            for name, model in (
                (name, getattr(models, name)()) for name in models.__all__ if name.startswith("nf_resnet")
            )
        }
    assert depths == {
        "nf_resnet26": [1, 2, 4, 1],
        "nf_resnet50": [3, 4, 6, 3],
        "nf_resnet101": [3, 4, 23, 3],
        "nf_resnet152": [3, 8, 36, 3],
        "nf_resnet200": [3, 24, 36, 3],
    }


def test_betas_of_nf_resnet50():
    with torch.device("meta"):
        betas = [block.beta for block in blocks_of(nf_resnet50())]
    expected = [1, 1.0198, 1.0392]
    expected += [1.0583, 1.0198, 1.0392, 1.0583]
    expected += [1.0770, 1.0198, 1.0392, 1.0583, 1.0770, 1.0954]
    expected += [1.1136, 1.0198, 1.0392]
    assert betas == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("stem", "kernel", "stride", "pool", "size"),
    [("imagenet", 7, 2, True, 18), ("strided", 3, 2, False, 9), ("small", 3, 1, False, 5)],
)
@pytest.mark.usefixtures("narrow")
def test_network_is_the_formula(stem, kernel, stride, pool, size):
    torch.manual_seed(0)
    model = randomized(nf_resnet26(num_classes=5, stem=stem, activation="gelu")).eval()
    state = model.state_dict()
    assert state["stem.conv.weight"].shape == (64, 3, kernel, kernel)

    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    x = reference_conv(state, "stem.conv", images, stride)
    if pool:
        padded = reference_same_pad(x, 3, 2, value=-math.inf)
        x = F.max_pool2d(padded, 3, 2)
    variance = 1.0
    for stage, depth in enumerate([1, 2, 4, 1], start=1):
        for index in range(depth):
            x = reference_block(
                state,
                f"layer{stage}.{index}.",
                x,
                stride=2 if stage > 1 and index == 0 else 1,
                variance=variance,
                alpha=0.2,
                activation="gelu",
            )
            variance = (1.0 if index == 0 else variance) + 0.2**2
    pooled = reference_activation("gelu", x).mean((2, 3))
    torch.testing.assert_close(model(images), pooled @ state["fc.weight"].T + state["fc.bias"])


@pytest.mark.usefixtures("narrow")
def test_initialization():
    torch.manual_seed(0)
    model = nf_resnet26(num_classes=100, se=True)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.fc.bias.abs().max() == 0
    for name, parameter in model.named_parameters():
        if name.endswith((".bias", ".skipinit_gain")):
            assert parameter.abs().max() == 0, name
        elif name.endswith(".gain"):
            assert (parameter == 1).all(), name
    squeeze = model.layer4[0].se.fc0.weight  # a normal distribution cut at 2 standard deviations has std 0.8796
    assert squeeze.std().item() == pytest.approx(0.8796 * 256**-0.5, rel=0.03)
    assert squeeze.abs().max() <= 2 * 256**-0.5
    assert [type(m) for m in model.modules() if isinstance(m, nn.Conv2d) and not isinstance(m, ScaledStdConv2d)] == []


@pytest.mark.usefixtures("narrow")
def test_dropout_acts_before_the_classifier_in_training_only():
    torch.manual_seed(0)
    model = nf_resnet26(num_classes=3, stem="small", activation="gelu", dropout=0.5)
    inputs = []
    model.fc.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model.eval()(x)
        model.train()(x)
    pooled, dropped = inputs
    zeroed = dropped == 0
    assert zeroed.float().mean().item() == pytest.approx(0.5, abs=0.1)
    torch.testing.assert_close(dropped, torch.where(zeroed, 0, 2 * pooled))


@pytest.mark.usefixtures("narrow")
def test_runs_in_channels_last_and_bf16():
    model = nf_resnet26(num_classes=3, stem="small", se=True).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    features = []
    model.layer4.register_forward_hook(lambda module, args, out: features.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    logits.float().sum().backward()
    assert logits.dtype == features[0].dtype == torch.bfloat16
    assert model.layer3(torch.randn(2, 64, 8, 8).to(memory_format=torch.channels_last)).is_contiguous(
        memory_format=torch.channels_last
    )
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"activation": "relu6"}, r"^activation=relu6"), ({"alpha": 0.0}, r"^alpha=0\.0")],
)
def test_refuses_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        nf_resnet26(**settings)


# ---- timm's nf_resnet50

# Where it departs from the official code, and what of a departure can be undone:
#   skipinit   there is no skip gain: the last gain of a branch starts at 0 instead    an option; also the same function
#   gamma      the activations' gamma stands in every convolution, the stem's too      an option; also the same function
#   eps        1e-5 added to the variance of a filter, no floor under its norm         an option; none for large weights
#   padding    symmetric, not TensorFlow's SAME                                        an option; none at 65 pixels
#   shortcut   a 2x2 average pool before a 1x1 convolution, no stride in it            the pool replaced by striding


def timms_nf_resnet50(departures):
    theirs = timm.create_model(
        "nf_resnet50",
        num_classes=10,
        skipinit="skipinit" not in departures,
        gamma_in_act="gamma" not in departures,
        std_conv_eps=1e-5 if "eps" in departures else 1e-12,
        same_padding="padding" not in departures,
    )
    if "padding" not in departures:
        theirs.stem.pool = MaxPool2dSame(3, 2)
    if "shortcut" not in departures:
        for stage in theirs.stages[1:]:
            assert isinstance(stage[0].downsample.pool, nn.AvgPool2d)
            stage[0].downsample.pool = nn.AvgPool2d(1, stride=2)
    return theirs.double().eval()


def their_name(name):
    """Where timm keeps what we call `name`."""
    stage, *parts = name.split(".")
    if not stage.startswith("layer"):
        return name.replace("fc.", "head.fc.")
    names = {"conv0": "conv1", "conv1": "conv2", "conv2": "conv3", "shortcut": "downsample"}
    return ".".join(["stages", str(int(stage[-1]) - 1), *(names.get(part, part) for part in parts)])


def carry_over(state, theirs, departures):
    """Give timm's model our weights, so that it is the same function but for departures that are more than names."""
    state = dict(state)
    if "skipinit" in departures:
        for name in [name for name in state if name.endswith("skipinit_gain")]:
            skip_gain, last = state.pop(name), name.replace("skipinit_gain", "conv2")
            for part in ("gain", "bias"):
                state[f"{last}.{part}"] = state[f"{last}.{part}"] * skip_gain
    if "gamma" in departures:
        state["stem.conv.gain"] = state["stem.conv.gain"] / GAMMAS["relu"]
        state["fc.weight"] = state["fc.weight"] * GAMMAS["relu"]
    parameters = dict(theirs.named_parameters())
    theirs.load_state_dict({their_name(n): p.view_as(parameters[their_name(n)]) for n, p in state.items()})


@pytest.fixture(scope="module")
def randomized_nf_resnet50():
    torch.manual_seed(0)
    model = randomized(nf_resnet50(num_classes=10)).eval()
    for block in blocks_of(model):
        nn.init.uniform_(block.skipinit_gain, 0.5, 1.5)
    return model


@pytest.mark.parametrize(
    ("departures", "size", "scale", "same"),
    [
        (set(), 64, 1, True),
        (set(), 96, 1, True),
        ({"skipinit"}, 64, 1, True),
        ({"gamma"}, 64, 1, True),
        ({"eps"}, 64, 1, False),
        ({"eps"}, 64, 1e4, True),
        ({"padding"}, 64, 1, False),
        ({"padding"}, 65, 1, True),
        ({"shortcut"}, 64, 1, False),
        ({"skipinit", "gamma", "eps", "padding"}, 65, 1e4, True),
        ({"skipinit", "gamma", "eps", "padding", "shortcut"}, 65, 1e4, False),
    ],
    ids=lambda value: "+".join(sorted(value)) or "none" if isinstance(value, set) else str(value),
)
def test_with_our_weights_timms_outputs_are_ours_but_for_its_departures(
    randomized_nf_resnet50, departures, size, scale, same
):
    ours, theirs = randomized_nf_resnet50, timms_nf_resnet50(departures)
    carry_over(ours.state_dict(), theirs, departures)
    images = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("weight") and parameter.dim() == 4:
                parameter.mul_(scale)  # which standardization takes out again
        expected, out = theirs(images), ours(images)
    error = ((out - expected).abs().max() / expected.abs().max()).item()
    assert error < 1e-6 if same else error > 1e-2


# ---- its layers


@pytest.mark.parametrize("name", GAMMAS)
def test_gamma_gives_variance_1(name):
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    y = ScaledActivation(name)(x)
    mean = torch.trapezoid(y * density, x)
    variance = torch.trapezoid((y - mean) ** 2 * density, x)
    assert variance.item() == pytest.approx(1, abs=3e-3)
    torch.testing.assert_close(ScaledActivation(name)(x), y)


def test_gelu_is_its_tanh_form():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    torch.testing.assert_close(ScaledActivation("gelu")(x), reference_activation("gelu", x))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (5, 3), (3, 3)])
@pytest.mark.parametrize("height", [5, 6, 7, 8])
def test_max_pool_pads_as_tensorflow_does(kernel, stride, height):
    torch.manual_seed(0)
    x = torch.randn(2, 3, height, 9) - 5  # negative, so that padding with zeros would show
    expected = F.max_pool2d(reference_same_pad(x, kernel, stride, value=-math.inf), kernel, stride)
    assert expected.shape[2:] == (math.ceil(height / stride), math.ceil(9 / stride))
    torch.testing.assert_close(MaxPool2dSame(kernel, stride)(x), expected, rtol=0, atol=0)


def test_width_multiplies_every_number_of_channels():
    plain, narrow = (dict(nf_resnet26(num_classes=10, width=width).named_parameters()) for width in (1.0, 0.25))
    assert list(narrow) == list(plain)
    for name, parameter in plain.items():
        fewer = [before / after for before, after in zip(parameter.shape, narrow[name].shape, strict=True)][:2]
        inputs = [] if parameter.ndim < 2 else [1 if "stem" in name else 4]
        outputs = [] if parameter.ndim == 0 else [1 if name.startswith("fc.") else 4]
        assert fewer == outputs + inputs, name
