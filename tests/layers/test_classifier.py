import pytest
import timm
import torch
import torchvision
from torch import nn

from runner.layers.classifier import find_classifier


def on_meta(build, **kwargs):
    with torch.device("meta"):
        return build(**kwargs)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (torchvision.models.resnet18, "fc"),
        (torchvision.models.vgg11, "classifier.6"),
        (torchvision.models.mobilenet_v3_small, "classifier.3"),
        (torchvision.models.densenet121, "classifier"),
        (torchvision.models.squeezenet1_1, "classifier.1"),
        (torchvision.models.convnext_tiny, "classifier.2"),
        (torchvision.models.vit_b_16, "heads.head"),
        (torchvision.models.swin_t, "head"),
    ],
)
def test_torchvision_classifiers(build, name):
    model = on_meta(build)
    assert find_classifier(model) is model.get_submodule(name)


@pytest.mark.parametrize("name", ["resnet18", "seresnet18", "convnext_atto", "mobilenetv3_small_050", "nf_resnet26"])
def test_timm_classifiers(name):
    model = on_meta(timm.create_model, model_name=name)
    assert find_classifier(model) is model.get_classifier()


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "fcn_resnet50"])
def test_segmentation_head_ending_in_a_pointwise_convolution(name):
    model = on_meta(getattr(torchvision.models.segmentation, name), weights_backbone=None)
    last = list(model.classifier.children())[-1]
    assert isinstance(last, nn.Conv2d)
    assert find_classifier(model) is last


class Gate(nn.Module):
    """Squeeze and excitation with Linear layers."""

    def __init__(self):
        super().__init__()
        self.squeeze = nn.Linear(8, 2)
        self.excite = nn.Linear(2, 8)


class Net(nn.Module):
    """Modules in the order given, so that the classifier may stand anywhere."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def test_head_that_is_registered_first():
    model = Net(fc=nn.Linear(8, 3), body=nn.Conv2d(3, 8, 3), gate=Gate())
    assert find_classifier(model) is model.fc


def test_only_linear_layer_under_an_unusual_name():
    model = Net(decide=Net(norm=nn.BatchNorm1d(8), weigh=nn.Linear(8, 3)), body=nn.Conv2d(3, 8, 1))
    assert find_classifier(model) is model.decide.weigh


def test_unusual_name_beside_squeeze_layers():
    model = Net(decide=nn.Linear(8, 3), stage1=Net(conv=nn.Conv2d(3, 8, 3), gate=Gate()), stage2=Gate())
    assert find_classifier(model) is model.decide


def test_sequential_ending_in_linear():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.Softmax(1))
    assert find_classifier(model) is model[2]


def test_wrapped_models():
    inner = on_meta(torchvision.models.resnet18)
    assert find_classifier(nn.Sequential(nn.Identity(), inner)) is inner.fc
    assert find_classifier(torch.optim.swa_utils.AveragedModel(inner)).weight.shape == (1000, 512)
    assert find_classifier(torch.compile(inner)) is inner.fc


def test_own_method_decides():
    class Hinted(Net):
        def get_classifier(self):
            return self.b

    model = Hinted(a=nn.Linear(4, 4), b=nn.Linear(4, 4), fc=nn.Linear(4, 4))
    assert find_classifier(model) is model.b


@pytest.mark.parametrize(
    "model",
    [
        Net(a=nn.Linear(4, 4), b=nn.Linear(4, 3)),  # two of equal standing
        Net(fc=nn.Linear(4, 4), classifier=nn.Linear(4, 3)),  # two with a classifier's name
        Net(conv=nn.Conv2d(3, 8, 1), gate=Gate()),  # no classifier, only squeeze layers
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),  # ends in another kind of layer
        nn.Sequential(nn.Conv2d(3, 3, 3)),  # no pointwise convolution
        nn.ReLU(),
    ],
)
def test_a_model_that_does_not_tell_is_refused(model):
    with pytest.raises(ValueError, match=r"cannot tell.*exclude="):
        find_classifier(model)
