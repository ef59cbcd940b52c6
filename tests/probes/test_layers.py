"""How probes find layers."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from runner.probes.layers import convolutions, layers_by_depth, pick


class Reordered(nn.Module):
    """Registers a, b, c, spare; runs c, a, b, a."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.spare = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def forward(self, x):
        return self.a(self.b(self.a(self.c(x))))


IMAGES = torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize(("build", "number"), [(resnet18, 17), (resnet50, 49)])
def test_shortcuts_do_not_count_as_layers(build, number):
    model = build()
    assert len(convolutions(model)) == number
    assert list(layers_by_depth(model, torch.zeros(1, 3, 32, 32))) == list(convolutions(model))


def test_depth_is_the_order_of_the_first_run():
    model = Reordered()
    assert list(convolutions(model)) == ["a", "b", "c", "spare"]
    assert list(layers_by_depth(model, IMAGES)) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("layer", "images", "name"),
    [
        (0, None, "a"),
        (-1, None, "spare"),
        (0, IMAGES, "c"),
        (-1, IMAGES, "b"),
        (0.0, IMAGES, "c"),
        (0.5, IMAGES, "a"),
        (1.0, IMAGES, "b"),
        ("spare", IMAGES, "spare"),
    ],
)
def test_pick(layer, images, name):
    model = Reordered()
    picked, module = pick(model, layer, images)
    assert picked == name
    assert module is getattr(model, name)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (3, r"layer=3: a Reordered has 3 convolutions outside shortcuts\. Choose from -3 to 2\."),
        (-4, r"Choose from -3 to 2\."),
        (1.5, r"layer=1\.5: a depth is from 0\.0"),
        ("spar", r"no module of that name\. Choose from spare\."),
        ("layer9", r"Choose from a, b, c, spare\."),
        ("", r"no module of that name"),
    ],
)
def test_what_cannot_be_picked(layer, message):
    with pytest.raises(ValueError, match=message):
        pick(Reordered(), layer, IMAGES)


def test_a_model_without_convolutions():
    with pytest.raises(ValueError, match="looked for convolutions in a Linear and found none"):
        convolutions(nn.Linear(2, 2))
