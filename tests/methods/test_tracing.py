"""Converted models under torch.fx, torch.jit.script, torch.export and torch.compile, beside the models themselves."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import BasicBlock

from runner.methods import (
    apply_batch_channel_norm,
    apply_ghost_batchnorm,
    apply_instance_norm,
    apply_stochastic_depth,
    apply_weight_standardization,
    fold_batch_channel_norm,
    fold_ghost_batchnorm,
    fold_stochastic_depth,
    fold_weight_standardization,
)
from runner.models.resnet import ScaledResNet

CONVERSIONS = {
    "ghost_batchnorm": partial(apply_ghost_batchnorm, ghost_batch_size=2),
    "weight_standardization": apply_weight_standardization,
    "batch_channel_norm": partial(apply_batch_channel_norm, num_groups=4),
    "estimated": partial(apply_batch_channel_norm, num_groups=4, estimate=True),
    "instancenorm": apply_instance_norm,
    "block": partial(apply_stochastic_depth, drop_rate=0.5),
    "sample": partial(apply_stochastic_depth, drop_rate=0.5, stochastic_method="sample"),
}
FOLDS = {
    "ghost_batchnorm": fold_ghost_batchnorm,
    "weight_standardization": fold_weight_standardization,
    "batch_channel_norm": fold_batch_channel_norm,
    "estimated": fold_batch_channel_norm,
    "block": fold_stochastic_depth,
    "sample": fold_stochastic_depth,
}


class OwnBlock(nn.Module):
    """s(x) + f(x), s a convolution where the number of channels changes."""

    def __init__(self, channels, width):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x):
        return self.shortcut(x) + self.norm(self.conv(x))


def converted(name):
    """Half a ResNet-18 of half its channels, with statistics and affine parameters of no special value."""
    torch.manual_seed(0)
    model = ScaledResNet(0.5, BasicBlock, [1, 1, 1, 1], num_classes=10)
    CONVERSIONS[name](model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 1 and tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return model


def images(size=5):
    return torch.randn(size, 3, 48, 48, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_symbolic_trace_computes_what_the_model_does_in_each_step(name, training):
    model = converted(name).train(training)
    twin = copy.deepcopy(model)
    traced = torch.fx.symbolic_trace(model)
    assert set(traced.state_dict()) == set(twin.state_dict())
    for step in range(4):  # batches of two sizes; stochastic depth draws anew
        torch.manual_seed(step)
        ours = traced(images(4 + step % 2))
        torch.manual_seed(step)
        assert torch.equal(ours, twin(images(4 + step % 2)))
    for key, value in traced.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


@pytest.mark.filterwarnings("ignore:The nodes obtained by tracing the model in train mode")  # a gated block is one node
@pytest.mark.parametrize("name", CONVERSIONS)
def test_torchvisions_feature_extractor_gives_the_features_of_the_model(name):
    model = converted(name).eval()
    expected = []
    model.layer2.register_forward_hook(lambda module, args, out: expected.append(out))
    model(images())
    features = create_feature_extractor(model, ["layer2", "layer4"])(images())
    assert torch.equal(features["layer2"], expected[0])
    assert features["layer4"].shape == (5, 256, 2, 2)


@pytest.mark.parametrize("layer", ["conv1", "bn1"])
@pytest.mark.parametrize("name", ["ghost_batchnorm", "weight_standardization", "batch_channel_norm"])
def test_a_single_layer_is_a_node_that_can_be_asked_for(name, layer):
    model = converted(name).eval()
    feature = create_feature_extractor(model, [layer])(images())[layer]
    out = model.conv1(images())
    assert torch.equal(feature, out if layer == "conv1" else model.bn1(out))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("name", [*FOLDS, "instancenorm"])
def test_a_model_that_torchscript_does_not_take_says_what_makes_it_one_of_torchs_layers(name):
    model = converted(name).eval()
    expected = model(images())
    if name in FOLDS:
        with pytest.raises(ValueError, match=f"torch.jit.script does not compile.*{FOLDS[name].__name__}"):
            torch.jit.script(model)
        assert torch.equal(model(images()), expected)  # the refusal changed nothing
        assert FOLDS[name](model) > 0
        with pytest.raises(ValueError, match="nothing to change"):
            FOLDS[name](model)
    torch.testing.assert_close(torch.jit.script(model)(images()), expected)
    outside = (ScaledResNet, BasicBlock)
    assert {type(module).__module__.partition(".")[0] for module in model.modules() if type(module) not in outside} == {
        "torch"
    } or name not in FOLDS


def test_folded_ghost_batch_norm_is_torchs_with_the_same_parameters():
    model = converted("ghost_batchnorm").train()
    state, parameters = model.state_dict(), dict(model.named_parameters())
    plain = ScaledResNet(0.5, BasicBlock, [1, 1, 1, 1], num_classes=10)
    plain.load_state_dict(state)
    assert fold_ghost_batchnorm(model) == 12
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert torch.equal(model(images()), plain(images()))
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


@pytest.mark.parametrize(("rescale", "factor"), [("inference", 0.75), ("training", 1.0)])
def test_folded_stochastic_depth_is_torchvisions_block_with_a_smaller_last_norm(rescale, factor):
    torch.manual_seed(0)
    model = nn.Sequential(BasicBlock(4, 4)).double().eval()
    plain = copy.deepcopy(model)
    apply_stochastic_depth(model, drop_rate=0.25, rescale=rescale)
    nn.init.ones_(plain[0].bn2.bias)
    nn.init.ones_(model[0].bn2.bias)
    assert fold_stochastic_depth(model) == 1
    assert type(model[0]) is BasicBlock
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    branch = plain[0].bn2(plain[0].conv2(plain[0].bn1(plain[0].conv1(x)).relu()))
    torch.testing.assert_close(model(x), (x + factor * branch).relu())


def test_a_factor_that_no_norm_can_take_up_is_refused_and_nothing_changes():
    own = nn.Sequential(OwnBlock(4, 4))
    for model, name in (own, "OwnBlock"), (converted("batch_channel_norm"), None):
        apply_stochastic_depth(model, drop_rate=0.5, target_layer_name=name)
        before = [type(module) for module in model.modules()]
        with pytest.raises(ValueError, match='rescale="training", which has none'):
            fold_stochastic_depth(model)
        assert [type(module) for module in model.modules()] == before
    apply_stochastic_depth(own, drop_rate=0.5, target_layer_name="OwnBlock", rescale="training")
    assert fold_stochastic_depth(own) == 1
    assert type(own[0]) is OwnBlock
    with pytest.raises(ValueError, match="nothing to change"):
        fold_stochastic_depth(own)


def test_folded_batch_channel_norm_keeps_its_batch_norm_and_follows_the_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(6, eps=1e-3)).double()
    apply_batch_channel_norm(model, num_groups=2)
    norm = model[0]
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    fold_batch_channel_norm(model.eval())
    assert [type(layer) for layer in model[0]] == [nn.BatchNorm2d, nn.GroupNorm]
    assert model[0][0].weight is norm.weight
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)

    def column(values):
        return values.detach().view(1, -1, 1, 1)

    z = (x - column(norm.running_mean)) / (column(norm.running_var) + 1e-3).sqrt()
    groups = (z * column(norm.weight) + column(norm.bias)).view(2, 2, -1)
    y = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + 1e-3).sqrt()
    y = y * norm.group_weight.detach().view(1, 2, 1) + norm.group_bias.detach().view(1, 2, 1)
    torch.testing.assert_close(model(x), y.view_as(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["ghost_batchnorm", "weight_standardization", "batch_channel_norm", "estimated"])
def test_a_model_in_training_mode_is_exported_with_its_statistics(name, strict):
    model = converted(name)
    twin = copy.deepcopy(model)
    exported = torch.export.export(model, (images(4),), strict=strict).module()
    torch.testing.assert_close(exported(images(4)), twin(images(4)))
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(exported.state_dict()[key], value)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["block", "sample"])
def test_gates_cannot_be_exported_and_an_evaluation_can(name, strict):
    model = converted(name)
    with pytest.raises(Exception, match=r"torch.export cannot record: call model.eval\(\) before the export"):
        torch.export.export(model, (images(4),), strict=strict)
    exported = torch.export.export(model.eval(), (images(4),), strict=strict).module()
    torch.testing.assert_close(exported(images(4)), model(images(4)))


@pytest.mark.parametrize(
    ("stochastic_method", "find_unused_parameters", "trains"),
    [("block", False, False), ("block", True, True), ("sample", False, True)],
)
def test_under_ddp_gates_of_blocks_need_find_unused_parameters(
    stochastic_method, find_unused_parameters, trains, tmp_path
):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), BasicBlock(4, 4), BasicBlock(4, 4), BasicBlock(4, 4))
    apply_stochastic_depth(model, drop_rate=0.9, stochastic_method=stochastic_method)
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=find_unused_parameters)

        def steps():
            for _ in range(4):
                parallel(torch.randn(2, 4, 5, 5)).sum().backward()

        if trains:
            steps()
        else:
            with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
                steps()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own look at it
@pytest.mark.parametrize("stochastic_method", ["block", "sample"])
def test_gates_in_blocks_of_ones_own_class_compile_one_graph_for_each_shape(stochastic_method):
    """The compiler's own limit of 8 graphs of one function is not reached, nor a graph made after the first steps."""
    torch.manual_seed(0)
    widths = [4, 4, 4, 6, 6, 6, 8, 8, 8, 10, 10, 10]
    model = nn.Sequential(
        *(OwnBlock(channels, width) for channels, width in zip([4, *widths[:-1]], widths, strict=True))
    )
    apply_stochastic_depth(model, drop_rate=0.5, target_layer_name="OwnBlock", stochastic_method=stochastic_method)
    twin = copy.deepcopy(model)
    graphs = []
    torch.compiler.reset()
    compiled = torch.compile(model, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    x = torch.randn(2, 4, 6, 6)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for step in range(12):
            for block in (*model, *twin):
                block.stochastic_depth.warm_up(step / 11)
            torch.manual_seed(step)
            ours = compiled(x)
            torch.manual_seed(step)
            torch.testing.assert_close(ours, twin(x))
            if step == 7:
                early = len(graphs)
    assert len(graphs) == early <= 10
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("name", ["ghost_batchnorm", "batch_channel_norm"])
def test_timms_norms_with_an_activation_are_folded_with_it(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    block = timm.create_model("efficientnet_b0").blocks[0]
    plain_keys = set(block.state_dict())
    CONVERSIONS[name](block)
    block.eval()
    x = torch.randn(2, 32, 6, 6)
    expected = block(x)
    FOLDS[name](block)
    assert torch.equal(block(x), expected)
    assert not any(module._forward_hooks for module in block.modules())
    assert name != "ghost_batchnorm" or set(block.state_dict()) == plain_keys
    torch.testing.assert_close(torch.jit.script(block)(x), expected)
