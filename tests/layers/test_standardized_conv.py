import copy
import pickle

import pytest
import torch
from torch import nn

from runner.layers.scaled_std_conv import ScaledStdConv2d
from runner.layers.standardized_conv import cached_standardized_weights
from runner.methods.weight_standardization import StdConv2d

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture
def counted(monkeypatch):
    """The layers of which a standardized weight was computed, one entry each time."""
    calls = []
    for kind in (StdConv2d, ScaledStdConv2d):
        original = kind.standardized_weight

        def standardized_weight(self, original=original):
            calls.append(self)
            return original(self)

        monkeypatch.setattr(kind, "standardized_weight", standardized_weight)
    return calls


def model_of_both():
    return nn.Sequential(StdConv2d(3, 8, 3), nn.ReLU(), ScaledStdConv2d(8, 4, 3, padding="same"))


def test_an_evaluation_standardizes_once_and_computes_the_same(counted):
    model, images = model_of_both().eval(), torch.randn(6, 3, 9, 9)
    with torch.no_grad():
        expected = [model(image[None]) for image in images]
    assert len(counted) == 12
    counted.clear()
    with torch.inference_mode(), cached_standardized_weights(model):
        got = [model(image[None]) for image in images]
        assert len(counted) == 2
    assert len(counted) == 4  # the check at the end
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert not any("_weight_of_evaluation" in vars(layer) for layer in model)


def test_forwards_with_gradients_take_the_weight_itself():
    model, x = model_of_both(), torch.randn(2, 3, 9, 9)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with cached_standardized_weights(model):
        got = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("write", ["data", "fused optimizer", "load_state_dict"])
@torch.no_grad()
def test_after_the_context_nothing_is_stale_and_a_write_within_it_is_told(write):
    def written(model):
        other = model_of_both().state_dict()
        if write == "data":
            for name, parameter in model.named_parameters():
                parameter.data.copy_(other[name])
        elif write == "load_state_dict":
            model.load_state_dict(other)
        else:
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            torch.optim.SGD(model.parameters(), lr=0.1, fused=True).step()

    model, x = model_of_both().eval(), torch.randn(2, 3, 9, 9)
    with cached_standardized_weights(model):
        before = model(x)
    written(model)
    fresh = model_of_both().eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model(x), fresh(x))
    assert not torch.allclose(model(x), before)
    with pytest.raises(RuntimeError, match="written inside"), cached_standardized_weights(model):
        written(model)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model(x), fresh(x))


@torch.no_grad()
def test_weights_that_are_not_finite_and_errors_within_leave_no_cache():
    model, x = model_of_both().eval(), torch.randn(2, 3, 9, 9)
    with pytest.raises(KeyError), cached_standardized_weights(model):
        raise KeyError
    assert not any("_weight_of_evaluation" in vars(layer) for layer in model)
    model[0].weight.fill_(torch.nan)
    with cached_standardized_weights(model):
        assert model(x).isnan().all()
    with cached_standardized_weights(nn.Linear(2, 2)):  # nothing to keep
        pass


@torch.no_grad()
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_within_the_context_keeps_no_weight(clone):
    model, x = model_of_both().eval(), torch.randn(2, 3, 9, 9)
    with cached_standardized_weights(model):
        copied = clone(model)
    assert torch.equal(copied(x), model(x))
    copied[0].weight.data.normal_()
    assert not torch.allclose(copied(x), model(x))
