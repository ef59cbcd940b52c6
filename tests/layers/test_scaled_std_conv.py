import copy

import pytest
import torch
import torch.nn.functional as F

from runner.layers.same_padding import SamePadConv2d
from runner.layers.scaled_std_conv import ScaledStdConv2d, scaled_standardize
from runner.methods.weight_standardization import standardize


def reference(weight, gain, eps=1e-4):
    """The formula, filter by filter in float64."""
    filters = []
    for w, g in zip(weight.detach().double(), gain.detach().double(), strict=True):
        mean = w.sum() / w.numel()
        variance = ((w - mean) ** 2).sum() / w.numel()
        filters.append(g * (w - mean) / max(float(variance) * w.numel(), eps) ** 0.5)
    return torch.stack(filters)


def conv_with_gain(*args, **kwargs):
    conv = ScaledStdConv2d(*args, **kwargs)
    torch.nn.init.normal_(conv.gain)
    torch.nn.init.normal_(conv.bias)
    return conv


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_output_is_that_of_the_formula(groups, memory_format):
    torch.manual_seed(0)
    conv = conv_with_gain(6, 12, 3, stride=2, padding=1, dilation=2, groups=groups)
    conv = conv.to(memory_format=memory_format)
    x = torch.randn(2, 6, 11, 9).to(memory_format=memory_format)
    weight = reference(conv.weight, conv.gain)
    expected = F.conv2d(x.double(), weight, conv.bias.double(), 2, 1, 2, groups)
    torch.testing.assert_close(conv(x).double(), expected, rtol=1e-4, atol=1e-5)
    assert conv.standardized_weight().is_contiguous(memory_format=memory_format)


def test_eps_is_a_floor():
    torch.manual_seed(0)
    weight = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    weight[1] = 0.7  # no variance
    weight[2] = weight[2] * 1e-4  # sum of squares about 4.5e-7, below the floor
    gain = torch.tensor([1.0, 1.0, 1.0, -2.0], dtype=torch.float64)
    out = scaled_standardize(weight, gain)
    torch.testing.assert_close(out, reference(weight, gain))
    squares = out.square().sum((1, 2, 3))
    torch.testing.assert_close(squares[[0, 3]], torch.tensor([1.0, 4.0], dtype=torch.float64), rtol=1e-12, atol=0)
    assert squares[1] < 1e-20
    assert 1e-3 < squares[2] < 1e-2


def test_gradients_are_those_of_the_formula():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    weight[1] = 0.3  # at the floor
    weight[2] = 5 + 1e-3 * weight[2]  # at the floor, with a large mean
    weight.requires_grad_()
    gain = torch.tensor([1.0, 0.5, -2.0, 0.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scaled_standardize, (weight, gain), eps=1e-7, atol=1e-5)
    channels_last = weight.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(scaled_standardize, (channels_last, gain), eps=1e-7, atol=1e-5)


def test_plain_form_has_gradients_of_both_orders():
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardize, (weight,))
    assert torch.autograd.gradgradcheck(standardize, (weight,))


@pytest.mark.parametrize("gain_trains", [True, False])
def test_gradcheck_once_and_twice(gain_trains):
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 2, 1, dtype=torch.float64).requires_grad_()
    weight.data[1] *= 1e-3  # below the floor, where the gradient is another one
    gain = torch.rand(3, dtype=torch.float64, requires_grad=gain_trains)
    for eps in (1e-4, 0.0):
        assert torch.autograd.gradcheck(lambda w, g, eps=eps: scaled_standardize(w, g, eps), (weight, gain))
    assert torch.autograd.gradgradcheck(scaled_standardize, (weight, gain))


def test_two_forwards_before_one_backward():
    torch.manual_seed(0)
    conv = conv_with_gain(3, 4, 3)
    a, b = torch.randn(2, 1, 3, 5, 5)
    together = torch.autograd.grad((conv(a) + conv(b)).square().sum(), [conv.weight, conv.gain])
    weight = conv.weight.detach().double().requires_grad_()
    gain = conv.gain.detach().double().requires_grad_()
    mean = weight.mean((1, 2, 3), keepdim=True)
    norm = (weight - mean).square().sum((1, 2, 3), keepdim=True).sqrt()
    w_hat = gain.view(-1, 1, 1, 1) * (weight - mean) / norm
    out = sum(F.conv2d(x.double(), w_hat, conv.bias.double()) for x in (a, b))
    expected = torch.autograd.grad(out.square().sum(), [weight, gain])
    for got, want in zip(together, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def test_backward_keeps_no_copy_of_the_weight():
    conv = ScaledStdConv2d(16, 32, 3)
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        conv.standardized_weight()
    own = {conv.weight.data_ptr()}
    assert sum(t.numel() for t in kept if t.data_ptr() not in own) <= 4 * 32


def test_parameters_and_their_initial_values():
    torch.manual_seed(0)
    conv = ScaledStdConv2d(64, 256, 3, groups=2)
    assert {name: tuple(p.shape) for name, p in conv.named_parameters()} == {
        "weight": (256, 32, 3, 3),
        "bias": (256,),
        "gain": (256,),
    }
    assert conv.gain.eq(1).all()
    assert conv.bias.eq(0).all()
    assert conv.weight.var().item() == pytest.approx(1 / (32 * 9), rel=0.03)
    assert ScaledStdConv2d(3, 4, 3, bias=False).bias is None
    with torch.no_grad():
        conv.gain.fill_(3)
    conv.reset_parameters()
    assert conv.gain.eq(1).all()


@pytest.mark.parametrize("size", [(7, 10), (8, 9)])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (1, 2, 1), (7, 2, 1), (2, 1, 1), (3, 3, 2)]
)
def test_same_padding_is_that_of_tensorflow(kernel_size, stride, dilation, size):
    torch.manual_seed(0)
    conv = SamePadConv2d(1, 1, kernel_size, stride, "same", dilation, dtype=torch.float64)
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    out = conv(x)[0, 0]
    assert out.shape == tuple(-(-n // stride) for n in size)

    def starts(n):
        outputs = -(-n // stride)
        span = (outputs - 1) * stride + (kernel_size - 1) * dilation + 1
        first = -(max(span - n, 0) // 2)
        return [first + stride * i for i in range(outputs)]

    for i, top in enumerate(starts(size[0])):
        for j, left in enumerate(starts(size[1])):
            value = conv.bias[0].clone()
            for a in range(kernel_size):
                for b in range(kernel_size):
                    row, column = top + a * dilation, left + b * dilation
                    if 0 <= row < size[0] and 0 <= column < size[1]:
                        value += conv.weight[0, 0, a, b] * x[0, 0, row, column]
            torch.testing.assert_close(out[i, j], value)


def test_same_padding_of_a_rectangle():
    conv = SamePadConv2d(2, 4, (3, 5), (1, 2), "same", (2, 1), groups=2)
    assert conv(torch.randn(1, 2, 6, 9)).shape == (1, 4, 6, 5)


def test_same_padding_that_is_even_copies_no_input(monkeypatch):
    monkeypatch.setattr(F, "pad", None)
    conv = ScaledStdConv2d(2, 4, 3, padding="same")
    assert conv(torch.randn(1, 2, 6, 9)).shape == (1, 4, 6, 9)


def test_reflected_same_padding():
    conv = SamePadConv2d(1, 1, 3, 2, "same", padding_mode="reflect", bias=False)
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(conv(x), F.conv2d(F.pad(x, (0, 1, 0, 1), mode="reflect"), conv.weight, stride=2))


def test_autocast_standardizes_in_fp32():
    torch.manual_seed(0)
    conv = conv_with_gain(8, 8, 3)
    x = torch.randn(1, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv.standardized_weight().dtype == torch.float32
        out = conv(x)
    assert out.dtype == torch.bfloat16
    exact = reference(conv.weight, conv.gain).bfloat16()
    expected = F.conv2d(x.bfloat16(), exact, conv.bias.bfloat16())
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_have_fp32_statistics(dtype):
    torch.manual_seed(0)
    weight = (torch.randn(4, 64, 3, 3) + torch.tensor([0.0, 1.01, -3.3, 7.7]).view(4, 1, 1, 1)).to(dtype)
    gain = torch.rand(4).to(dtype)
    for got, want in [
        (scaled_standardize(weight, gain), reference(weight, gain)),
        (standardize(weight), reference(weight, torch.full((4,), (64 * 9) ** 0.5), eps=0)),
    ]:
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_weights_written_in_evaluation_are_seen_at_once():
    torch.manual_seed(0)
    conv = conv_with_gain(3, 4, 3).eval()
    x = torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        conv(x)
        conv.weight.data.copy_(torch.randn_like(conv.weight))
        expected = F.conv2d(x.double(), reference(conv.weight, conv.gain), conv.bias.double())
        torch.testing.assert_close(conv(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_copies_pickles_and_loads():
    conv = conv_with_gain(3, 4, 3, 2, "same")
    x = torch.randn(1, 3, 8, 8)
    fresh = ScaledStdConv2d(3, 4, 3, 2, "same")
    fresh.load_state_dict(conv.state_dict())
    for other in (copy.deepcopy(conv), fresh):
        assert torch.equal(other(x), conv(x))


def test_negative_eps_is_refused():
    with pytest.raises(ValueError, match="eps=-1"):
        ScaledStdConv2d(3, 4, 3, eps=-1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same():
    torch.manual_seed(0)
    conv = conv_with_gain(8, 16, 3)
    x = torch.randn(2, 8, 9, 9)
    expected = torch.autograd.grad(conv(x).square().mean(), [conv.weight, conv.gain, conv.bias])
    conv, x = conv.cuda(), x.cuda()
    got = torch.autograd.grad(conv(x).square().mean(), [conv.weight, conv.gain, conv.bias])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=2e-2, atol=2e-2)  # TF32 convolutions
