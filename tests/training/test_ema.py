"""The average of a model's weights against its recursion in float64."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from runner.methods import apply_ghost_batchnorm, apply_weight_standardization
from runner.methods.stochastic_depth import StochasticDepthMethod
from runner.training.ema import Ema


def small_model():
    torch.manual_seed(0)
    stem = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*stem, BasicBlock(8, 8), BasicBlock(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def steps(model, number, seed=1):
    """Yield after each of a few optimizer steps, in which running statistics and counts move as well."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(number):
        optimizer.zero_grad()
        model.train()(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        yield


def doubles(model):
    return {name: tensor.detach().double().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("decay", "warmup", "decays"),
    [
        (0.99999, True, [1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14]),
        (0.2, True, [1 / 10, 2 / 11, 0.2, 0.2, 0.2]),
        (0.9, False, [0.9] * 5),
    ],
)
def test_the_average_is_that_of_the_recursion(decay, warmup, decays):
    """From the initial values on, of parameters and running statistics; counts are copied."""
    model = small_model()
    ema, expected = Ema(model, decay=decay, warmup=warmup), doubles(model)
    for d, _ in zip(decays, steps(model, 5), strict=True):
        ema.update(model)
        expected = {name: d * expected[name] + (1 - d) * value for name, value in doubles(model).items()}
    for name, average in ema.model.state_dict().items():
        if average.is_floating_point():
            torch.testing.assert_close(average.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
        else:
            assert average == model.state_dict()[name] == 5


def test_the_average_is_a_model_of_its_own_for_evaluation():
    model = small_model()
    optimized = [parameter.data_ptr() for parameter in model.parameters()]
    ema = Ema(model)
    for _ in steps(model, 2):
        before = doubles(model)
        ema.update(model)
        assert all(torch.equal(value, before[name]) for name, value in doubles(model).items())
    assert model.training
    assert not any(module.training for module in ema.model.modules())
    assert list(ema.model.state_dict()) == list(model.state_dict())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not {parameter.data_ptr() for parameter in ema.model.parameters()} & set(optimized)


def test_a_resumed_average_goes_on_with_the_same_bits():
    """Another start and other settings of the new object leave no trace."""
    model = small_model()
    whole = Ema(model, decay=0.3)
    for number, _ in enumerate(steps(model, 6), start=1):
        whole.update(model)
        if number == 2:
            state = {"model": {name: value.clone() for name, value in whole.model.state_dict().items()}}
            state["updates"] = whole.state_dict()["updates"]
            resumed = Ema(model, decay=0.3)
            resumed.load_state_dict(state, model)
        elif number > 2:
            resumed.update(model)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.state_dict()["updates"] == 6


def test_the_average_of_a_converted_model_is_evaluated_as_the_model_with_these_values():
    """Ghost batches, standardized weights, and gates whose rates a warm-up has set since the copy was made."""
    model = small_model()
    apply_ghost_batchnorm(model, ghost_batch_size=2)
    apply_weight_standardization(model)
    method = StochasticDepthMethod(drop_rate=0.6, drop_distribution="uniform", drop_warmup=1.0)
    method.apply(model, torch.zeros(1, 3, 8, 8), seed=0)
    method.on_step(0.0)
    ema = Ema(model, decay=0.5, warmup=False)
    generator = method.generator.get_state()
    for number, _ in enumerate(steps(model, 4)):
        method.on_step((number + 1) / 8)
        ema.update(model)
    method.before_evaluation(ema.model, lambda: iter(()))
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        found = ema.model(images)
        model.load_state_dict(ema.model.state_dict())
        expected = model.eval()(images)
        assert torch.equal(found, expected)
        method.on_step(0.0)
        assert not torch.allclose(found, model(images))
    assert not torch.equal(method.generator.get_state(), generator)  # the model draws from it, not from a copy


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_a_decay_out_of_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=rf"^decay={decay}: it must lie in \(0, 1\)"):
        Ema(nn.Linear(1, 1), decay=decay)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_not_waited_for(no_host_sync):
    model = small_model().cuda()
    ema = Ema(model)
    with no_host_sync():
        for _ in range(2):
            ema.update(model)
