import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.layers import matrix_conv
from runner.layers.matrix_conv import MatrixConv2d, use_matrix_products
from runner.layers.scaled_std_conv import ScaledStdConv2d

pytestmark = pytest.mark.usefixtures("seeded")

CASES = {  # size, kernel, stride, padding, dilation
    "3x3": ((3, 3), 3, 1, 1, 1),
    "3x3 on one position": ((1, 1), 3, 1, 1, 1),
    "3x3 on a line": ((1, 5), 3, 1, 1, 1),
    "3x3 of stride 2": ((4, 4), 3, 2, 1, 1),
    "3x3 of stride 2, odd": ((3, 5), 3, 2, 1, 1),
    "1x1": ((2, 3), 1, 1, 0, 1),
    "1x1 of stride 2": ((4, 5), 1, 2, 0, 1),
    "dilated": ((6, 5), 3, 1, 2, 2),
    "dilated beyond the map": ((4, 4), 3, 1, 6, 6),
    "uneven": ((5, 4), (3, 2), (2, 1), (0, 1), (1, 2)),
    "no padding": ((4, 4), 3, 1, 0, 1),
    "7x7": ((4, 4), 7, 2, 3, 1),
}


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def plain(layer):
    layer = copy.deepcopy(layer)
    layer.__class__ = nn.Conv2d
    return layer


def results(layer, x, grad, *, autocast=False):
    """The output, and the gradients at x and the parameters."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(x)
    layer.zero_grad()
    out.backward(grad.to(out.dtype))
    return [out.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


def exact_results(layer, x, grad):
    """Those of torch's convolution in float64."""
    return results(plain(layer).double(), x.double(), grad.double())


@pytest.fixture
def products(monkeypatch):
    """The number of convolutions that were products so far, in a list."""
    counted, original = [0], matrix_conv._Product.apply

    def apply(*arguments):
        counted[0] += 1
        return original(*arguments)

    monkeypatch.setattr(matrix_conv._Product, "apply", apply)
    return counted


def test_its_output_may_be_changed_in_place(products):
    layer = MatrixConv2d(5, 24, 3, padding=1).to(memory_format=torch.channels_last)
    x = channels_last(torch.randn(2, 5, 3, 3))
    nn.ReLU(inplace=True)(layer(x)).square().sum().backward()
    assert products == [1]
    exact = plain(layer).double()
    exact.zero_grad()
    F.relu(exact(x.double())).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad.double(), exact.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_it_computes_torchs_convolution_and_its_gradients(case, bias, products):
    size, kernel, *movement = CASES[case]
    layer = MatrixConv2d(5, 24, kernel, *movement, bias=bias).to(memory_format=torch.channels_last)
    x = channels_last(torch.randn(2, 5, *size))
    grad = torch.randn_like(layer(x))
    own = results(layer, x, grad)
    assert products == [2]
    assert own[0].is_contiguous(memory_format=torch.channels_last)
    for mine, theirs in zip(own, exact_results(layer, x, grad), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


def test_under_autocast_it_is_as_exact_as_torchs(products):
    x = channels_last(torch.randn(8, 64, 3, 3).bfloat16().float())
    layer = MatrixConv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    layer.weight.data.copy_(layer.weight.bfloat16())
    grad = torch.randn(8, 64, 3, 3).bfloat16().float()
    own = results(layer, x, grad, autocast=True)
    assert products == [1]
    assert (own[0].dtype, own[2].dtype) == (torch.bfloat16, torch.float32)
    for mine, theirs in zip(own, exact_results(layer, x, grad), strict=True):
        scale = theirs.square().mean().sqrt()
        assert (mine.double() - theirs).abs().max() < 2**-6 * scale
        assert (mine.double() - theirs).square().mean().sqrt() < 2**-8 * scale


def test_taps_that_meet_padding_alone_have_no_gradient():
    layer = MatrixConv2d(4, 16, 3, padding=1).to(memory_format=torch.channels_last)
    layer(channels_last(torch.randn(2, 4, 1, 1))).square().sum().backward()
    rest = layer.weight.grad.clone()
    assert rest[:, :, 1, 1].all()
    rest[:, :, 1, 1] = 0
    assert not rest.any()


def test_its_gradients_can_be_differentiated_again(monkeypatch, products):
    monkeypatch.setattr(matrix_conv, "DTYPES", (torch.float64,))
    layer = MatrixConv2d(2, 6, 3, stride=2, padding=1).double().to(memory_format=torch.channels_last)

    def convolved(x, weight, bias):
        formats = {"memory_format": torch.channels_last}
        return layer._conv_forward(x.contiguous(**formats), weight.contiguous(**formats), bias)

    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(convolved, (x, *layer.parameters()))
    assert products[0] > 0


@torch.no_grad()
def test_an_evaluation_may_come_first():
    matrix_conv.windows_of.cache_clear()
    layer = MatrixConv2d(4, 16, 3, padding=1).to(memory_format=torch.channels_last)
    x = channels_last(torch.randn(2, 4, 1, 1))
    with torch.inference_mode():
        before = layer(x)
    with torch.enable_grad():
        out = layer(x)
        out.sum().backward()
    assert torch.equal(before, out)


def test_other_convolutions_are_torchs(products):
    few = channels_last(torch.randn(2, 8, 3, 3))
    for layer, x in (
        (MatrixConv2d(8, 8, 3, padding=1), few),  # contiguous
        (MatrixConv2d(8, 8, 3, groups=2).to(memory_format=torch.channels_last), few),
        (MatrixConv2d(8, 8, 3, padding="same").to(memory_format=torch.channels_last), few),
        (MatrixConv2d(8, 8, 3, padding=1, padding_mode="circular").to(memory_format=torch.channels_last), few),
        (MatrixConv2d(8, 8, 3).to(memory_format=torch.channels_last), channels_last(torch.randn(2, 8, 9, 9))),
        (MatrixConv2d(8, 8, 3).to(memory_format=torch.channels_last), few[0]),
        (MatrixConv2d(8, 8, 3).double().to(memory_format=torch.channels_last), few.double()),
    ):
        assert torch.equal(layer(x), plain(layer)(x))
    wide = MatrixConv2d(8, 8, 3).to(memory_format=torch.channels_last)
    torch.func.grad(lambda weight: torch.func.functional_call(wide, {"weight": weight}, few).sum())(
        wide.weight.detach()
    )
    assert products == [0]


def test_same_padding_and_standardized_weights_are_products_too(products):
    layer = ScaledStdConv2d(4, 16, 3, stride=2, padding="same").to(memory_format=torch.channels_last)
    x = channels_last(torch.randn(2, 4, 4, 4))  # takes a row and a column of padding after it
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), layer.standardized_weight(), layer.bias, stride=2)
    torch.testing.assert_close(layer(x), expected)
    assert products == [1]


def test_a_model_keeps_its_parameters_and_its_other_layers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), ScaledStdConv2d(4, 4, 3), nn.Conv1d(4, 4, 3), nn.Linear(2, 2))
    kinds, parameters = [type(each) for each in model], list(model.parameters())
    use_matrix_products(model)
    assert [type(each) for each in model] == [MatrixConv2d, *kinds[1:]]
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert torch.fx.symbolic_trace(model[:2]).graph.find_nodes(op="call_module", target="0")
