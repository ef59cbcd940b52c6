from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock, Bottleneck

from runner.layers.stochastic_depth import StochasticDepth
from runner.methods.stochastic_depth import StochasticDepthMethod, apply_stochastic_depth
from runner.models import NFResBlock, nf_resnet26, resnet18, resnet50


class UserBlock(nn.Module):
    """relu(x + f(x)), or relu(f(x)) of half the size."""

    def __init__(self, channels, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.stride = stride

    def forward(self, x):
        out = self.norm(self.conv(x))
        return F.relu(out + x) if self.stride == 1 else F.relu(out)


class LinearBlock(nn.Module):
    """x + f(x) without a non-linearity behind."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, scale=1.0):
        return x + scale * self.linear(x)


class TwoOutputs(LinearBlock):
    def forward(self, x):
        return super().forward(x), x


def basic_block(**kwargs):
    return BasicBlock(8, 8, **kwargs)


def bottleneck(**kwargs):
    return Bottleneck(16, 4, **kwargs)


def downsampling_bottleneck():
    return Bottleneck(8, 4, stride=2, downsample=nn.Sequential(nn.Conv2d(8, 16, 1, stride=2), nn.BatchNorm2d(16)))


def nf_block():
    block = NFResBlock(8, 8, beta=1.1)
    nn.init.ones_(block.skipinit_gain)
    return block


def nf_transition():
    block = NFResBlock(8, 16, stride=2)
    nn.init.ones_(block.skipinit_gain)
    return block


BLOCKS = [basic_block, bottleneck, downsampling_bottleneck, nf_block, nf_transition]


def channels_of(block):
    conv = getattr(block, "conv0", None) or block.conv1
    return conv.in_channels


def gates_of(model):
    return [module for module in model.modules() if isinstance(module, StochasticDepth)]


def rates_of(model):
    return [gate.drop_rate for gate in gates_of(model)]


def force(model, *, keep):
    """Make every draw of the gates come out the same."""
    for gate in gates_of(model):
        gate._draw = lambda num_gates: torch.full((num_gates,), keep)


def shortcut_of(block, x):
    """What a dropped block computes, in its own words."""
    if isinstance(block, NFResBlock):
        return x if block.shortcut is None else block.shortcut(1.7139588594436646 * F.relu(x) / block.beta)
    return F.relu(x if block.downsample is None else block.downsample(x))


# ---- which blocks, which rates


def test_linear_rates():
    model = resnet50(num_classes=2)
    assert apply_stochastic_depth(model, drop_rate=0.32) == 16
    assert rates_of(model) == pytest.approx([0.32 * block / 16 for block in range(1, 17)])
    assert model.layer1[0].stochastic_depth.drop_rate == pytest.approx(0.02)
    assert model.layer4[2].stochastic_depth.drop_rate == 0.32


def test_uniform_rates():
    model = nf_resnet26(num_classes=2)
    assert apply_stochastic_depth(model, drop_rate=0.1, drop_distribution="uniform") == 8
    assert rates_of(model) == [0.1] * 8


def test_expected_number_of_active_blocks_is_huangs():
    """40.25 of ResNet-110's 54 blocks at p_L = 0.5 (arXiv 1603.09382, section 3)."""
    model = nn.Sequential(*(BasicBlock(1, 1) for _ in range(54)))
    apply_stochastic_depth(model, drop_rate=0.5)
    assert sum(1 - rate for rate in rates_of(model)) == pytest.approx(40.25)


@pytest.mark.parametrize("name", ["Bottleneck", "ResNetBottleneck"])
def test_target_layer_name_restricts_and_counts_its_own_blocks(name):
    model = nn.Sequential(basic_block(), bottleneck(), nf_block(), bottleneck())
    assert apply_stochastic_depth(model, drop_rate=0.2, target_layer_name=name) == 2
    assert rates_of(model) == [0.1, 0.2]
    assert not hasattr(model[0], "stochastic_depth")
    assert model[2].stochastic_depth is None


def test_applying_again_updates_the_rates():
    model = nn.Sequential(basic_block(), bottleneck(), nf_block(), LinearBlock())
    assert apply_stochastic_depth(model, drop_rate=0.3) == 3
    assert apply_stochastic_depth(model, drop_rate=0.5, target_layer_name="LinearBlock") == 1
    classes = [type(block) for block in model]
    assert apply_stochastic_depth(model, drop_rate=0.1, drop_distribution="uniform", stochastic_method="sample") == 4
    assert rates_of(model) == [0.1] * 4
    assert {gate.method for gate in gates_of(model)} == {"sample"}
    assert [type(block) for block in model] == classes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_rate": 1}, r"^drop_rate=1:"),
        ({"drop_rate": -0.5}, r"^drop_rate=-0\.5:"),
        ({"drop_distribution": "Linear"}, r"^drop_distribution=Linear: .*Did you mean linear\?"),
        ({"stochastic_method": "batch"}, r"^stochastic_method=batch"),
        ({"rescale": "never"}, r"^rescale=never"),
        ({"target_layer_name": "BasicBlok"}, r"target_layer_name=BasicBlok: .*found: BasicBlock, .*mean BasicBlock\?"),
    ],
)
def test_refuses_settings_and_leaves_the_model(settings, message):
    model = nn.Sequential(basic_block(), downsampling_bottleneck())
    with pytest.raises(ValueError, match=message):
        apply_stochastic_depth(model, **settings)
    assert gates_of(model) == []
    if "target_layer_name" not in settings:
        with pytest.raises(ValueError, match=message):
            StochasticDepthMethod(**settings)


def test_a_model_without_residual_blocks_is_refused_with_what_was_looked_for():
    with pytest.raises(ValueError, match=r"BasicBlock and Bottleneck .*target_layer_name=CLASS; found: LinearBlock\."):
        apply_stochastic_depth(nn.Sequential(nn.Linear(2, 2), LinearBlock()))


# ---- what a converted block computes


@pytest.mark.parametrize("make", BLOCKS)
def test_a_dropped_block_is_its_shortcut_and_its_branch_is_not_computed(make):
    torch.manual_seed(0)
    block = make()
    x = torch.randn(2, channels_of(block), 6, 6)
    expected = shortcut_of(copy.deepcopy(block), x)
    apply_stochastic_depth(block, drop_rate=0.5)
    force(block, keep=False)
    ran = []
    for name, module in block.named_modules():
        module.register_forward_hook(lambda module, args, out, name=name: ran.append(name))
    before = {name: buffer.clone() for name, buffer in block.named_buffers() if "downsample" not in name}
    kept_x = x.clone()
    out = block(x.requires_grad_())
    torch.testing.assert_close(out, expected)
    assert torch.equal(x, kept_x)
    assert not [name for name in ran if name.startswith(("conv", "bn"))]
    assert all(torch.equal(buffer, before[name]) for name, buffer in block.named_buffers() if name in before)

    out.sum().backward()
    for name, parameter in block.named_parameters():
        assert (parameter.grad is not None) == name.startswith(("shortcut", "downsample")), name


@pytest.mark.parametrize("make", BLOCKS)
@pytest.mark.parametrize(("rescale", "training", "scale"), [
    ("inference", True, 1.0), ("inference", False, 0.75), ("training", True, 4 / 3), ("training", False, 1.0),
])  # fmt: skip
def test_a_kept_block_scales_its_branch(make, rescale, training, scale):
    """Against float64 and the block's own layers: shortcut + scale * branch."""
    torch.manual_seed(0)
    block = make().double().train(training)
    twin = copy.deepcopy(block)
    apply_stochastic_depth(block, drop_rate=0.25, rescale=rescale)
    force(block, keep=True)
    x = torch.randn(2, channels_of(block), 6, 6, dtype=torch.float64)
    if isinstance(twin, NFResBlock):
        with torch.no_grad():
            twin.skipinit_gain.fill_(scale)
        expected = twin(x)
    else:
        last = twin.bn3 if isinstance(twin, Bottleneck) else twin.bn2
        with torch.no_grad():  # the last batch norm scales the branch
            last.weight.fill_(scale)
        expected = twin(x)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("make", [basic_block, bottleneck, downsampling_bottleneck, nf_block, nf_transition])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes_by_a_bit_where_nothing_is_dropped(make, training):
    torch.manual_seed(0)
    block = make().train(training)
    twin = copy.deepcopy(block)
    apply_stochastic_depth(block, drop_rate=0.5 if training else 0.0)
    force(block, keep=True)
    x = torch.randn(2, channels_of(block), 6, 6)
    ours, theirs = block(x), twin(x)
    assert torch.equal(ours, theirs)
    for module, out in ((block, ours), (twin, theirs)):
        out.square().sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
    for ours, theirs in zip(block.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert all(torch.equal(a, b) for a, b in zip(block.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("make", BLOCKS)
def test_sample_mode_drops_the_samples_whose_gates_are_shut(make):
    torch.manual_seed(0)
    block = make()
    twin = copy.deepcopy(block)
    apply_stochastic_depth(block, drop_rate=0.5, stochastic_method="sample", generator=torch.Generator().manual_seed(7))
    kept = torch.rand(6, generator=torch.Generator().manual_seed(7)) >= 0.5
    assert 0 < kept.sum() < 6
    x = torch.randn(6, channels_of(block), 6, 6)
    expected = torch.where(kept[:, None, None, None], twin(x), shortcut_of(copy.deepcopy(twin), x))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_gate_takes_up_the_mode_of_its_block(training):
    model = nn.Sequential(basic_block(), nf_block()).train(training)
    apply_stochastic_depth(model)
    assert [gate.training for gate in gates_of(model)] == [training] * 2


# ---- blocks of a user's class


def test_a_users_block_is_dropped_where_it_keeps_the_shape():
    torch.manual_seed(0)
    model = nn.Sequential(UserBlock(4), UserBlock(4, stride=2), UserBlock(4))
    twin = copy.deepcopy(model)
    assert apply_stochastic_depth(model, drop_rate=0.5, target_layer_name="UserBlock") == 3
    force(model, keep=False)
    x = torch.rand(2, 4, 8, 8)
    torch.testing.assert_close(model(x), twin[1](x))  # a ReLU leaves x >= 0 as it is
    assert model[0].norm.num_batches_tracked == 0  # looking at the shape left no trace
    assert model[0].training
    assert model[0].norm.training
    force(model, keep=True)
    torch.testing.assert_close(model(x), twin(x))


@pytest.mark.parametrize(
    ("rescale", "training", "scale"),
    [("inference", True, 1.0), ("inference", False, 0.75), ("training", True, 4 / 3), ("training", False, 1.0)],
)
@pytest.mark.parametrize("stochastic_method", ["block", "sample"])
def test_a_users_block_x_plus_f_of_x_has_its_branch_scaled(rescale, training, scale, stochastic_method):
    torch.manual_seed(0)
    block = LinearBlock().double().train(training)
    apply_stochastic_depth(
        block,
        drop_rate=0.25,
        rescale=rescale,
        stochastic_method=stochastic_method,
        target_layer_name="LinearBlock",
    )
    force(block, keep=True)
    x = torch.randn(3, 4, dtype=torch.float64)
    branch = x @ block.linear.weight.T + block.linear.bias
    torch.testing.assert_close(block(x), x + scale * branch)
    torch.testing.assert_close(block(x, scale=2.0), x + scale * 2 * branch)


def test_a_users_block_with_two_outputs_is_refused():
    block = TwoOutputs()
    apply_stochastic_depth(block, target_layer_name="TwoOutputs")
    with pytest.raises(ValueError, match=r"target_layer_name=TwoOutputs: the block returns a tuple"):
        block(torch.randn(2, 4))


def test_a_subclass_of_torchvisions_block_keeps_its_own_forward():
    class Doubled(BasicBlock):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(BasicBlock):
        pass

    model = nn.Sequential(Doubled(4, 4), Renamed(4, 4)).eval()
    twin = copy.deepcopy(model)
    assert apply_stochastic_depth(model, drop_rate=0) == 1
    assert isinstance(model[1], Renamed)
    x = torch.rand(1, 4, 5, 5)
    assert torch.equal(model(x), twin(x))


# ---- together with everything else


@pytest.mark.parametrize("build", [resnet18, nf_resnet26])
def test_keys_parameters_hooks_and_an_optimizer_made_before_stay(build):
    torch.manual_seed(0)
    model = build(num_classes=2, stem="small")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen = []
    model.layer1[0].register_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
    keys, ids = list(model.state_dict()), [id(parameter) for parameter in model.parameters()]
    class_name = type(model.layer1[0]).__name__
    apply_stochastic_depth(model, drop_rate=0.5, drop_distribution="uniform")
    assert list(model.state_dict()) == keys
    assert [id(parameter) for parameter in model.parameters()] == ids

    force(model.layer4, keep=False)
    force(model.layer1, keep=True)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert seen == [class_name]
    assert torch.equal(after["layer4.0.conv1.weight"], before["layer4.0.conv1.weight"])
    assert not torch.equal(after["fc.weight"], before["fc.weight"])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_converted_model_can_be_copied_and_pickled(clone):
    torch.manual_seed(0)
    model = nn.Sequential(basic_block(), nf_block(), UserBlock(8))
    apply_stochastic_depth(model, drop_rate=0.5, generator=torch.Generator().manual_seed(0))
    apply_stochastic_depth(model[2], target_layer_name="UserBlock", generator=model[0].stochastic_depth.generator)
    x = torch.randn(2, 8, 6, 6)
    model(x)
    other = clone(model)
    assert [type(block) for block in other] == [type(block) for block in model]
    generators = {id(gate.generator) for gate in gates_of(other)}
    assert len(generators) == 1
    assert generators != {id(model[0].stochastic_depth.generator)}
    for _ in range(5):
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


def test_modules_replaced_in_a_converted_block_are_used():
    torch.manual_seed(0)
    block = basic_block()
    twin = copy.deepcopy(block)
    apply_stochastic_depth(block, drop_rate=0.5)
    force(block, keep=True)
    for changed in (block, twin):
        changed.bn1 = nn.GroupNorm(2, 8)
        changed.bn2 = nn.Identity()
        changed.relu = nn.GELU()
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block(x), twin(x), rtol=0, atol=0)
    force(block, keep=False)
    torch.testing.assert_close(block(x), F.gelu(x))


@pytest.mark.parametrize("stochastic_method", ["block", "sample"])
def test_a_converted_model_trains_in_channels_last_and_bf16(stochastic_method):
    torch.manual_seed(0)
    model = resnet18(num_classes=3, stem="small").to(memory_format=torch.channels_last)
    apply_stochastic_depth(
        model, drop_rate=0.5, drop_distribution="uniform", stochastic_method=stochastic_method,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    formats = []
    for layer in (model.layer1, model.layer2):
        layer.register_forward_hook(
            lambda module, args, out: formats.append((out.dtype, out.is_contiguous(memory_format=torch.channels_last)))
        )
    x = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).float().square().mean()
        loss.backward()
    assert formats == [(torch.bfloat16, True)] * 6


# ---- in a run


def test_method_refuses_a_warm_up_longer_than_training():
    with pytest.raises(ValueError, match=r"^drop_warmup=1\.5"):
        StochasticDepthMethod(drop_warmup=1.5)


def test_warm_up_grows_linearly_and_reaches_the_rates():
    model = nn.Sequential(basic_block(), nf_block())
    method = StochasticDepthMethod(drop_rate=0.4, drop_warmup=0.3)
    assert method.apply(model, torch.zeros(1, 8, 6, 6)) == 2

    def current():
        return [gate.current_rate for gate in gates_of(model)]

    assert current() == [0.2, 0.4]  # a model that is only loaded
    shares = {0.0: 0.0, 0.1: 1 / 3, 0.15: 0.5, 0.3: 1.0, 0.7: 1.0, 1.0: 1.0}
    for progress, share in shares.items():
        method.on_step(progress)
        assert current() == pytest.approx([0.2 * share, 0.4 * share])
    method.on_step(3 / 10)
    assert current() == [0.2, 0.4]


def published_schedule(mode, schedule, *, rate, epochs, cutoff):
    """The rates of a run of one step an epoch (Liu et al. 2023, arXiv 2303.01500, section 4)."""
    early = np.full(cutoff, rate) if schedule == "constant" else np.linspace(rate, 0, cutoff + 1)[:-1]
    rest = epochs - cutoff
    return [*early, *np.zeros(rest)] if mode == "early" else [*np.zeros(cutoff), *np.full(rest, rate)]


@pytest.mark.parametrize(
    ("mode", "schedule", "window"),
    [
        ("early", "constant", {"drop_until": 0.3}),
        ("early", "linear", {"drop_until": 0.3, "drop_cooldown": 0.3}),
        ("late", "constant", {"drop_from": 0.3}),
    ],
)
def test_early_and_late_stochastic_depth_have_the_published_rates(mode, schedule, window):
    model = nn.Sequential(basic_block())
    method = StochasticDepthMethod(drop_rate=0.5, **window)
    method.apply(model, torch.zeros(1, 8, 6, 6))
    rates = []
    assert gates_of(model)[0].current_rate == (0.5 if mode == "late" else 0)  # of a model that is only loaded
    for step in range(20):
        method.on_step(step / 20)
        rates.append(gates_of(model)[0].current_rate)
    assert rates == pytest.approx(published_schedule(mode, schedule, rate=0.5, epochs=20, cutoff=6))


def test_a_window_has_a_warm_up_and_a_cooldown_of_its_own():
    model = nn.Sequential(basic_block())
    method = StochasticDepthMethod(drop_rate=0.4, drop_from=0.2, drop_until=0.8, drop_warmup=0.2, drop_cooldown=0.1)
    method.apply(model, torch.zeros(1, 8, 6, 6))
    for progress, rate in {0.1: 0, 0.2: 0, 0.3: 0.2, 0.5: 0.4, 0.7: 0.4, 0.75: 0.2, 0.8: 0, 1.0: 0}.items():
        method.on_step(progress)
        assert gates_of(model)[0].current_rate == pytest.approx(rate)


def test_a_window_that_ends_before_it_begins_is_refused(tiny):
    settings = ("regularization=stochastic_depth", "stochastic_depth.drop_from=0.5", "stochastic_depth.drop_until=0.4")
    tiny(*settings).assert_refused("stochastic_depth.drop_from=0.5", "stochastic_depth.drop_until=0.4", "Choose")


def test_without_warm_up_the_rates_are_full_from_the_first_step():
    model = nn.Sequential(basic_block())
    method = StochasticDepthMethod(drop_rate=0.4)
    method.apply(model, torch.zeros(1, 8, 6, 6))
    method.on_step(0.0)
    assert gates_of(model)[0].current_rate == 0.4


@pytest.mark.parametrize("make", [basic_block, nf_block, nf_transition])
@pytest.mark.parametrize("dropped_update", ["rest", "continue"])
def test_the_update_of_a_dropped_block_rests_or_continues(make, dropped_update):
    """One step with the block open, one with it shut, against SGD by hand: v <- 0.9 v + g + 0.1 w, w <- w - 0.5 v."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), make(), nn.Conv2d(16 if make is nf_transition else 8, 4, 1))
    method = StochasticDepthMethod(drop_rate=0.5, drop_distribution="uniform", dropped_update=dropped_update)
    method.apply(model, torch.zeros(1, 8, 6, 6))
    model[1].requires_grad_(True)
    frozen = next(model[1].parameters()).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)

    def step(keep):
        force(model, keep=keep)
        optimizer.zero_grad()
        model(torch.randn(4, 8, 6, 6)).square().mean().backward()
        method.transform_gradients(model)
        optimizer.step()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    weights = [p.detach().clone() for p in model.parameters()]
    momenta = [torch.zeros_like(p) for p in weights]
    shut_without_gradient = 0
    for keep in (True, False):
        grads = step(keep)
        for w, v, g, p in zip(weights, momenta, grads, model.parameters(), strict=True):
            if p is frozen or (g is None and dropped_update == "rest"):
                shut_without_gradient += p is not frozen
                continue
            if not keep and dropped_update == "continue" and not g.any():
                shut_without_gradient += 1
            v.copy_(0.9 * v + g + 0.1 * w)
            w.sub_(0.5 * v)
        torch.testing.assert_close(list(model.parameters()), weights)
    assert shut_without_gradient >= 4  # the branch's parameters, in the second step


def test_a_block_that_drops_its_branch_in_its_own_way_is_not_one_of_the_dropped_blocks():
    """A module of another kind under the same attribute: nothing that is not gated here is updated."""
    theirs = nn.Sequential(nn.Conv2d(8, 8, 1))
    theirs.stochastic_depth = nn.Dropout(0.5)
    model = nn.Sequential(basic_block(), theirs)
    method = StochasticDepthMethod(drop_rate=0.5, dropped_update="continue")
    assert method.apply(model, torch.zeros(1, 8, 6, 6)) == 1
    assert isinstance(theirs.stochastic_depth, nn.Dropout)
    method.transform_gradients(model)
    assert all(parameter.grad is not None for parameter in model[0].parameters())
    assert all(parameter.grad is None for parameter in theirs.parameters())


def test_an_averaged_copy_is_evaluated_with_the_rates_of_the_step():
    model = nn.Sequential(basic_block())
    method = StochasticDepthMethod(drop_rate=0.4, drop_warmup=0.5)
    method.apply(model, torch.zeros(1, 8, 6, 6))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    method.on_step(0.25)
    assert gates_of(averaged)[0].current_rate == 0.4
    method.before_evaluation(averaged, lambda: iter(()))
    assert gates_of(averaged)[0].current_rate == 0.2


@pytest.mark.parametrize("stochastic_method", ["block", "sample"])
def test_a_resumed_run_draws_the_same_gates(stochastic_method):
    x = torch.randn(4, 8, 6, 6)

    def fresh(seed):
        torch.manual_seed(0)
        model = nn.Sequential(*(basic_block() for _ in range(6)))
        method = StochasticDepthMethod(
            drop_rate=0.8, drop_from=0.2, drop_warmup=0.5, drop_until=0.6, stochastic_method=stochastic_method
        )
        method.apply(model, x, seed=seed)
        return model, method

    def step(model, method, progress):
        method.on_step(progress)
        return model(x)

    model, method = fresh(seed=3)
    for progress in (0.1, 0.2, 0.3):
        step(model, method, progress)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "method": method.state_dict()}, file)
    rates = [gate.current_rate for gate in gates_of(model)]
    straight_on = [step(model, method, progress) for progress in (0.4, 0.5, 0.6)]

    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    model, method = fresh(seed=4)
    model.load_state_dict(checkpoint["model"])
    method.load_state_dict(checkpoint["method"])
    assert [gate.current_rate for gate in gates_of(model)] == rates
    resumed = [step(model, method, progress) for progress in (0.4, 0.5, 0.6)]
    assert all(torch.equal(a, b) for a, b in zip(straight_on, resumed, strict=True))


def test_the_seed_gives_the_gates_whatever_torchs_own_state():
    def outputs(seed, torch_seed):
        torch.manual_seed(0)
        model = nn.Sequential(*(basic_block() for _ in range(8)))
        StochasticDepthMethod(drop_rate=0.8).apply(model, torch.zeros(1, 8, 4, 4), seed=seed)
        torch.manual_seed(torch_seed)
        state = torch.get_rng_state()
        out = model(torch.ones(2, 8, 4, 4).cumsum(-1))
        assert torch.equal(torch.get_rng_state(), state)
        return out

    assert torch.equal(outputs(1, 1), outputs(1, 2))
    assert not torch.equal(outputs(1, 1), outputs(2, 1))


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        ({}, False),
        ({"use_same_gpu_seed": False}, True),
        ({"stochastic_method": "sample"}, True),
    ],
)
def test_processes_share_their_gates_or_their_generator(settings, differs, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    model = nn.Sequential(basic_block())
    StochasticDepthMethod(**settings).apply(model, torch.zeros(1, 8, 4, 4))
    gate = gates_of(model)[0]
    assert (gate.rank, gate.world_size) == ((1, 4) if differs else (0, 1))


class ListedResidual(nn.Sequential):
    """A user's block that is the list of its layers."""

    def forward(self, x):
        return x + super().forward(x)


def test_a_users_block_that_is_a_list_of_its_layers():
    torch.manual_seed(0)
    model = nn.Sequential(ListedResidual(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))).eval()
    x = torch.randn(2, 4, 5, 5)
    expected = model(x)
    keys = list(model.state_dict())
    assert apply_stochastic_depth(model, drop_rate=0.5, target_layer_name="ListedResidual") == 1
    assert list(model.state_dict()) == keys
    assert len(model[0]) == 2
    assert isinstance(model[0][-1], nn.BatchNorm2d)
    torch.testing.assert_close(model(x), x + 0.5 * (expected - x))
    model.train()
    force(model, keep=False)
    assert torch.equal(model(x), x)
    assert model[0].stochastic_depth.training


def test_a_block_that_drops_by_itself_and_a_single_layer_are_refused():
    model = nn.Sequential(UserBlock(4))
    model[0].stochastic_depth = nn.Dropout(0.5)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"UserBlock has an attribute stochastic_depth of another kind, a Dropout"):
        apply_stochastic_depth(model, target_layer_name="UserBlock")
    assert [type(module) for module in model.modules()] == classes
    with pytest.raises(ValueError, match=r"target_layer_name=Conv2d: that is a single layer"):
        apply_stochastic_depth(resnet18(), target_layer_name="Conv2d")


def test_the_share_of_multiply_adds_that_a_step_computed():
    """Beside torch's count of the training pass itself, over two micro-batches."""
    torch.manual_seed(0)
    model, images = resnet18(num_classes=10), torch.randn(2, 3, 32, 32)
    with FlopCounterMode(display=False) as whole:
        model(images)
    method = StochasticDepthMethod(drop_rate=0.8)
    state = copy.deepcopy(model.state_dict())
    method.apply(model, images[:1])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    shares = []
    for _ in range(3):
        with FlopCounterMode(display=False) as counter:
            model(images), model(images)
        shares.append(counter.get_total_flops() / (2 * whole.get_total_flops()))
        measured = method.transform_gradients(model)
        assert measured["active_multiply_adds"].item() == pytest.approx(shares[-1])
    assert min(shares) < 0.8
    model.eval()(images)
    assert method.transform_gradients(model)["active_multiply_adds"] == 1
