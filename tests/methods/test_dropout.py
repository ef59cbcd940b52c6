"""Dropout before the classifier: what torch's own dropout there computes, on any model, without a change of keys."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from runner.methods import (
    StdConv2d,
    apply_dropout,
    apply_weight_standardization,
    fold_weight_standardization,
)
from runner.methods.dropout import DropoutMethod
from runner.models import nf_resnet26


def linear_head():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(27, 8), nn.ReLU(), nn.Linear(8, 5))


def convolutional_head():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1))


HEADS = {"linear": linear_head, "convolution": convolutional_head}


@pytest.mark.parametrize("head", HEADS)
def test_training_is_torchs_dropout_before_the_classifier_and_evaluation_is_unchanged(head):
    model, plain = HEADS[head](), HEADS[head]()
    x = torch.randn(6, 3, 3, 3)
    assert apply_dropout(model, rate=0.3) == 1
    torch.manual_seed(7)
    out = model(x)
    torch.manual_seed(7)
    expected = plain[-1](F.dropout(plain[:-1](x), 0.3))
    assert torch.equal(out, expected)
    assert not torch.equal(out, plain(x))
    assert torch.equal(model.eval()(x), plain(x))


def test_the_share_of_dropped_inputs_is_the_rate():
    model = nn.Sequential(nn.Linear(20000, 20000, bias=False, device="meta"))
    apply_dropout(model, rate=0.3)
    [hook] = model[0]._forward_pre_hooks.values()
    torch.manual_seed(0)
    x, *_ = hook(model[0], (torch.ones(20000),))
    assert (x == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(x.unique(), torch.tensor([0, 1 / 0.7]))


@pytest.mark.parametrize("head", HEADS)
def test_keys_parameters_and_classes_stay(head):
    model = HEADS[head]()
    before, kinds = dict(model.named_parameters()), [type(module) for module in model.modules()]
    keys = list(model.state_dict())
    apply_dropout(model)
    assert list(model.state_dict()) == keys
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert [type(module) for module in model.modules()] == kinds


def test_applied_again_it_sets_the_rate_and_does_not_drop_twice():
    model, plain = linear_head(), linear_head()
    assert apply_dropout(model, rate=0.5) == 1
    assert apply_dropout(model, rate=0.5) == 0
    assert apply_dropout(model, rate=0.2) == 1
    x = torch.randn(4, 27)
    torch.manual_seed(1)
    out = model(x)
    torch.manual_seed(1)
    assert torch.equal(out, plain[3](F.dropout(plain[:3](x), 0.2)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_drop_too(copied):
    model = linear_head()
    apply_dropout(model, rate=0.5)
    twin = copied(model)
    x = torch.randn(4, 27)
    outputs = []
    for one in (model, twin):
        torch.manual_seed(2)
        outputs.append(one(x))
    assert torch.equal(*outputs)
    apply_dropout(twin, rate=0.0)
    assert torch.equal(twin(x), model.eval()(x))


def test_a_compiled_model_draws_anew():
    model = linear_head()
    apply_dropout(model, rate=0.5)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(4, 3, 3, 3)
    torch.manual_seed(3)
    first, second = compiled(x), compiled(x)
    torch.manual_seed(3)
    assert torch.equal(first, model(x))
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(compiled(x), compiled(x))


@pytest.mark.parametrize("first", ["dropout", "weight standardization"])
def test_a_convolutional_classifier_is_standardized_before_or_after(first):
    model, twin, x = convolutional_head(), convolutional_head(), torch.randn(2, 3, 6, 6)
    apply_weight_standardization(twin)
    surgery = [lambda: apply_dropout(model, rate=0.4), lambda: apply_weight_standardization(model)]
    for apply in surgery if first == "dropout" else reversed(surgery):
        apply()
    assert type(model[2]) is StdConv2d
    torch.manual_seed(4)
    out = model(x)
    torch.manual_seed(4)
    assert torch.equal(out, twin[2](F.dropout(twin[:2](x), 0.4)))
    fold_weight_standardization(model)
    torch.manual_seed(4)
    torch.testing.assert_close(model(x), out)


def test_models_of_torchvision_and_of_the_runner():
    with torch.device("meta"):
        for model in (resnet18(), nf_resnet26(num_classes=5)):
            assert apply_dropout(model) == 1
            assert len(model.fc._forward_pre_hooks) == 1


class Own(nn.Module):
    """A head of its own with a dropout layer in it."""

    def __init__(self, p):
        super().__init__()
        self.features = nn.Linear(8, 8)
        self.head = nn.Sequential(nn.Dropout(p), nn.Linear(8, 3))

    def get_classifier(self):
        return self.head[1]


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (lambda: nf_resnet26(dropout=0.3), r"dropout is a Dropout with p=0\.3"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.4), nn.Linear(8, 3)), r"1 is a Dropout with p=0\.4"),
        (lambda: Own(0.1), r"head\.0 is a Dropout with p=0\.1"),
    ],
)
def test_a_model_that_drops_there_already_is_refused(model, place):
    with torch.device("meta"):
        model = model()
    with pytest.raises(ValueError, match=f"drops before its classifier already: {place}; set that to 0"):
        apply_dropout(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_dropout_that_is_off_or_elsewhere_is_no_obstacle():
    assert apply_dropout(Own(0.0)) == 1
    assert apply_dropout(nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), nn.Linear(8, 3))) == 1


def test_a_classifier_that_cannot_be_told_is_refused():
    class Headless(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    with pytest.raises(ValueError, match=r"which layer of the Headless is its classifier.*get_classifier\(\)"):
        apply_dropout(Headless())


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_out_of_range_is_refused(rate):
    for call in (lambda: apply_dropout(linear_head(), rate=rate), lambda: DropoutMethod(rate=rate)):
        with pytest.raises(ValueError, match=r"^rate=.*\[0, 1\)"):
            call()
