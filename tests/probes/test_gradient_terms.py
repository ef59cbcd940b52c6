"""The terms of a convolution's gradient, against the sum written out term by term."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runner.layers.scaled_std_conv import ScaledStdConv2d
from runner.methods import apply_ghost_batchnorm, remove_batchnorm
from runner.models import resnet32
from runner.probes.gradient_terms import gradient_terms

CONVOLUTIONS = {
    "plain": dict(kernel_size=3, bias=False),
    "strided": dict(kernel_size=3, stride=2, padding=1),
    "dilated": dict(kernel_size=3, dilation=2, padding=(2, 1)),
    "grouped": dict(kernel_size=(3, 1), groups=2, padding="same"),
    "reflected": dict(kernel_size=3, padding=1, padding_mode="reflect"),
}


class Net(nn.Module):
    """A convolution between others, with a ReLU that writes into its output."""

    def __init__(self, conv):
        super().__init__()
        self.before = nn.Conv2d(3, conv.in_channels, 1)
        self.conv = conv
        self.after = nn.Conv2d(conv.out_channels, 5, 1)

    def forward(self, x, shift=0.0):
        return self.after(F.relu_(self.conv(self.before(x)) + shift)).mean((2, 3))


class InPlaceNet(Net):
    def forward(self, x):
        return self.after(F.relu_(self.conv(self.before(x)))).mean((2, 3))


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 3, 7, 6, generator=generator), torch.arange(n) % 5) for n in sizes]


def terms(net, images, targets):
    """Each term of dL/dw, (samples, positions, *weight), from patches of the padded input; for stride and so on."""
    conv, x = net.conv, net.before(images).detach().double()
    shift = torch.zeros_like(net.conv(net.before(images)), requires_grad=True)
    d = torch.autograd.grad(F.cross_entropy(Net.forward(net, images, shift), targets), shift)[0].double()
    if conv.padding == "same":
        kernel, stride, size = (np.array(v) for v in (conv.kernel_size, conv.stride, x.shape[2:]))
        total = np.maximum((np.ceil(size / stride) - 1) * stride + kernel - size, 0).astype(int)
        pads = [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    else:
        pads = [conv.padding[1]] * 2 + [conv.padding[0]] * 2
    x = F.pad(x, [int(pad) for pad in pads], mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
    patches = F.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride)  # (B, C * kernel, positions)
    patches = patches.view(len(x), conv.groups, -1, patches.shape[-1])
    d = d.reshape(len(d), conv.groups, -1, patches.shape[-1])
    products = torch.einsum("bgop,bgkp->bpgok", d, patches)
    return products.reshape(*products.shape[:2], *conv.weight.shape)


@pytest.mark.parametrize("chunk_size", [2, 16])
@pytest.mark.parametrize("kind", [*CONVOLUTIONS, "scaled_std"])
def test_sums_are_those_of_the_terms(kind, chunk_size):
    torch.manual_seed(0)
    if kind == "scaled_std":
        conv = ScaledStdConv2d(4, 6, 3, stride=2, padding="same")
    else:
        conv = nn.Conv2d(4, 6, **CONVOLUTIONS[kind])
    net = InPlaceNet(conv)
    data = batches(5, 4)
    measured = gradient_terms(net, data, F.cross_entropy, layers=["conv"], chunk_size=chunk_size).arrays
    written_out = [terms(net, *batch) for batch in data]
    a = torch.stack([each.abs().sum((0, 1)) for each in written_out])
    b = torch.stack([each.sum((0, 1)).abs() for each in written_out])
    np.testing.assert_allclose(measured["sum_of_abs"], [a.mean()], rtol=1e-5)
    np.testing.assert_allclose(measured["abs_of_sum"], [b.mean()], rtol=1e-5)
    np.testing.assert_allclose(measured["ratio"], [a.mean() / b.mean()], rtol=1e-5)
    np.testing.assert_allclose(measured["median_ratio"], [(a[a > 0] / b[a > 0]).median()], rtol=1e-4)
    if kind == "plain":
        gradient = torch.autograd.grad(F.cross_entropy(net(data[0][0]), data[0][1]), conv.weight)[0]
        torch.testing.assert_close(written_out[0].sum((0, 1)).float(), gradient)


def test_terms_of_one_sign_have_a_ratio_of_1():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    images = torch.rand(4, 3, 5, 5)
    measured = gradient_terms(net, [(images, None)], lambda logits, _: logits.sum(), layers=[0])
    assert measured.numbers == {"ratio": pytest.approx(1), "ratio/0": pytest.approx(1)}


def test_what_cannot_be_measured():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="layer=1: a ReLU is not a convolution"):
        gradient_terms(net, batches(2), F.cross_entropy, layers=["1"])
    twice = nn.Conv2d(3, 3, 1)
    net = nn.Sequential(twice, twice, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="layer=0: runs 2 times"):
        gradient_terms(net, batches(2), F.cross_entropy, layers=["0"])


def test_a_frozen_net_is_measured():
    net = InPlaceNet(nn.Conv2d(4, 6, 3))
    trained = gradient_terms(net, batches(4), F.cross_entropy, layers=["conv"]).numbers
    net.requires_grad_(False)
    assert gradient_terms(net, batches(4), F.cross_entropy, layers=["conv"]).numbers == trained


def test_terms_cancel_more_with_batch_norm():
    """The claim of table 1, for ResNet-32 and noise."""
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for convert in (lambda model: apply_ghost_batchnorm(model, ghost_batch_size=32), remove_batchnorm):
        torch.manual_seed(0)
        model = resnet32()
        convert(model)
        found.append(gradient_terms(model, [(images, torch.arange(32) % 10)], F.cross_entropy))
    normalized, plain = found
    assert (normalized.arrays["ratio"] > 3 * plain.arrays["ratio"]).all()
