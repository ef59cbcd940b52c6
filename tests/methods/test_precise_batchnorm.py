"""Precise batch norm: the formula in float64, and what must not change while statistics are measured."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.layers.stochastic_depth import StochasticDepth
from runner.methods import apply_ghost_batchnorm, estimate_batchnorm_statistics
from runner.methods.precise_batchnorm import PreciseBatchNorm


class TwoLayers(nn.Sequential):
    """A class of its own: of a bare nn.Sequential torch 2.11 compiles nothing."""

    def forward(self, x):
        for module in self:
            x = module(x)
        return x


def two_layers():
    torch.manual_seed(0)
    model = TwoLayers(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4))
    for layer in (model[1], model[4]):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return model


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [3 + 2 * torch.randn(size, 3, 9, 7, generator=generator) for size in sizes]


def population(inputs):
    """Mean and biased variance by channel over a list of layer inputs, in float64."""
    values = torch.cat([x.double().transpose(0, 1).flatten(1) for x in inputs], 1)
    return values.mean(1), values.var(1, correction=0)


def assert_measured(layer, inputs):
    mean, var = population(inputs)
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(8,), (8, 8, 8), (8, 3, 5, 2)])
@pytest.mark.parametrize("ghost_batch_size", [None, 4])
def test_statistics_are_those_of_all_values(sizes, ghost_batch_size):
    """The second layer's inputs are normalized by the statistics of each (ghost) batch."""
    model, batches = two_layers().double(), [batch.double() for batch in images(*sizes)]
    if ghost_batch_size:
        apply_ghost_batchnorm(model, ghost_batch_size=ghost_batch_size)
    model.eval()
    assert estimate_batchnorm_statistics(model, iter(batches)) == 2

    conv1, norm1, relu, conv2, norm2 = model

    def normalized(x):
        size = ghost_batch_size or len(x)
        # the remainder joins the last ghost batch, or is one of its own from half a ghost batch on
        cuts = [size] * (len(x) // size) + [len(x) % size] * (len(x) % size > 0)
        if len(cuts) > 1 and 2 * cuts[-1] < size:
            cuts[-2:] = [sum(cuts[-2:])]
        return torch.cat([F.batch_norm(p, None, None, norm1.weight, norm1.bias, True, 0.0) for p in x.split(cuts)])

    first = [conv1(batch) for batch in batches]
    assert_measured(norm1, first)
    assert_measured(norm2, [conv2(relu(normalized(x))) for x in first])


def test_the_formula_of_the_paper_on_batches_of_one_size():
    model, batches = two_layers(), images(6, 6, 6)
    estimate_batchnorm_statistics(model, batches)
    inputs = [model[0](batch).double() for batch in batches]
    mu = torch.stack([x.mean((0, 2, 3)) for x in inputs])
    var = torch.stack([x.var((0, 2, 3), correction=0) for x in inputs])
    mean = mu.mean(0)
    torch.testing.assert_close(model[1].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    expected = (mu**2 + var).mean(0) - mean**2
    torch.testing.assert_close(model[1].running_var.double(), expected, rtol=1e-5, atol=1e-6)


def test_over_one_batch_evaluation_gives_what_training_gives():
    model, [batch] = two_layers(), images(7)
    estimate_batchnorm_statistics(model, [batch])
    trained = model.train()(batch)
    estimate_batchnorm_statistics(model, [batch])
    torch.testing.assert_close(model.eval()(batch), trained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.BatchNorm1d(5), (6, 5)), (nn.BatchNorm1d(5), (6, 5, 3)), (nn.BatchNorm3d(5), (2, 5, 3, 2, 4))],
)
def test_other_dimensions(layer, shape):
    x = torch.randn(shape)
    assert estimate_batchnorm_statistics(nn.Sequential(layer), [x]) == 1
    assert_measured(layer, [x])


def test_the_model_may_be_a_batch_norm_itself():
    layer, x = nn.BatchNorm2d(3, momentum=None), torch.randn(4, 3, 2, 2)
    estimate_batchnorm_statistics(layer, [x])
    assert_measured(layer, [x])


def test_large_means_cost_no_precision():
    """E[x^2] - E[x]^2 in float32 would give noise here."""
    layer = nn.BatchNorm1d(1)
    batches = [1e4 + shift + 0.1 * torch.randn(4000, 1) for shift in (0.0, 0.5, 1.0)]
    estimate_batchnorm_statistics(layer, batches)
    torch.testing.assert_close(layer.running_var.double(), population(batches)[1], rtol=2e-3, atol=0)


def test_many_batches_are_summed_in_float64():
    """In float32 each of the later batches would be too little to move the mean."""
    layer = nn.BatchNorm1d(1)
    batches = [torch.tensor([[-0.1], [0.1]]) + 1e4 + 0.25 * (i >= 2000) for i in range(4000)]
    estimate_batchnorm_statistics(layer, batches)
    torch.testing.assert_close(layer.running_mean.double(), population(batches)[0], rtol=0, atol=2e-3)


def test_half_precision_inputs_are_measured_in_float32():
    layer, x = nn.BatchNorm2d(3), (100 + torch.randn(8, 3, 16, 16)).bfloat16()
    estimate_batchnorm_statistics(layer, [x])
    assert_measured(layer, [x])


class Twice(nn.Module):
    """One batch norm at two places."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(4)
        nn.init.normal_(self.bn.weight)

    def forward(self, x):
        return self.bn(3 * self.bn(x) + 1)


def test_a_batch_norm_that_runs_twice_is_measured_over_both_inputs():
    model, batches = Twice(), [torch.randn(6, 4), 2 + torch.randn(9, 4)]
    assert estimate_batchnorm_statistics(model, batches) == 1
    bn = model.bn
    second = [3 * F.batch_norm(x, None, None, bn.weight, bn.bias, True) + 1 for x in batches]
    assert_measured(bn, [*batches, *second])


class Gated(nn.Module):
    """x + f(x) behind a gate that is almost always shut in training."""

    def __init__(self):
        super().__init__()
        self.gate = StochasticDepth(0.9, rescale="training")
        self.branch = nn.Linear(4, 4)

    def forward(self, x):
        change = self.gate(self.branch, x)
        return x if change is None else x + change


def test_all_else_is_in_evaluation_mode():
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Dropout(0.7), Gated(), nn.BatchNorm1d(4)), [torch.randn(8, 4) for _ in range(3)]
    estimate_batchnorm_statistics(model.train(), batches)
    assert_measured(model[2], [x + model[1].branch(x) for x in batches])


def test_flags_counters_random_states_and_objects_stay():
    model = two_layers()
    model.append(nn.Dropout(0.5))
    model[1].eval()  # a frozen layer is measured too
    model[0].bias.requires_grad_(False)
    flags = [module.training for module in model.modules()]
    model(images(4)[0])
    keys, buffers = list(model.state_dict()), dict(model.named_buffers())
    counters = [model[1].num_batches_tracked.item(), model[4].num_batches_tracked.item()]
    weights = [parameter.clone() for parameter in model.parameters()]
    random = torch.get_rng_state()
    estimate_batchnorm_statistics(model, images(5, 4))
    assert [module.training for module in model.modules()] == flags
    assert [model[1].num_batches_tracked.item(), model[4].num_batches_tracked.item()] == counters == [0, 1]
    assert list(model.state_dict()) == keys
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model[1].momentum == 0.1
    assert_measured(model[1], [model[0](batch) for batch in images(5, 4)])


def test_drawing_inside_a_forward_pass_leaves_no_trace():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    before = torch.get_rng_state()
    estimate_batchnorm_statistics(nn.Sequential(Noisy(), nn.BatchNorm2d(3)), images(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_after_an_error_all_is_as_before():
    model = two_layers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="channels"):
        estimate_batchnorm_statistics(model, [*images(4), torch.zeros(2, 7, 9, 9)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_does_not_run_keeps_its_statistics():
    model = Twice()
    model.unused = nn.BatchNorm1d(2)
    model.unused.running_mean.fill_(5)
    assert estimate_batchnorm_statistics(model, [torch.randn(6, 4)]) == 1
    assert model.unused.running_mean.tolist() == [5, 5]
    assert model.unused.running_var.tolist() == [1, 1]


def test_a_compiled_model_is_measured_anew_each_time_and_not_compiled_for_it():
    model, twin, graphs = two_layers(), two_layers(), []
    model.compile(backend=lambda graph, inputs: graphs.append(graph) or graph, dynamic=True)
    model(images(5)[0])
    compiled = len(graphs)
    for batches in (images(4, 4), images(6), [10 * batch for batch in images(4, 4)]):
        estimate_batchnorm_statistics(model, batches)
        estimate_batchnorm_statistics(twin, batches)
        for name, value in twin.named_buffers():
            if "running" in name:
                torch.testing.assert_close(dict(model.named_buffers())[name], value)
        model(images(5)[0])  # nor again afterwards
        twin(images(5)[0])
    assert len(graphs) == compiled > 0


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="looked for batch norm with running statistics"):
        estimate_batchnorm_statistics(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), images(2))
    with pytest.raises(ValueError, match="looked for batch norm"):
        PreciseBatchNorm().apply(nn.Sequential(nn.GroupNorm(1, 3)), torch.zeros(1))
    model = two_layers()
    with pytest.raises(ValueError, match="batches: there is none"):
        estimate_batchnorm_statistics(model, [])
    model[1].estimate = True
    for call in (
        lambda: estimate_batchnorm_statistics(model, images(2)),
        lambda: PreciseBatchNorm().apply(model, torch.zeros(1)),
    ):
        with pytest.raises(
            ValueError, match=r"1 is a BatchNorm2d: it normalizes by its running statistics in training"
        ):
            call()
    model[1].estimate = False
    assert estimate_batchnorm_statistics(model, images(2)) == 2


def test_the_method_takes_so_many_batches_of_the_epoch():
    model, twin, batches = two_layers(), two_layers(), images(4, 4, 4, 4)
    method = PreciseBatchNorm(num_batches=3)
    assert method.apply(model, batches[0]) == 2
    taken = []

    def train_images():
        for batch in batches:
            taken.append(batch)
            yield batch

    method.before_evaluation(model, train_images)
    estimate_batchnorm_statistics(twin, batches[:3])
    assert torch.equal(model[4].running_var, twin[4].running_var)
    assert len(taken) == 3
    method.before_evaluation(model, lambda: iter(batches[:2]))
    estimate_batchnorm_statistics(twin, batches[:2])
    assert torch.equal(model[4].running_var, twin[4].running_var)
    with pytest.raises(ValueError, match=r"^num_batches=0"):
        PreciseBatchNorm(num_batches=0)


def test_apply_counts_on_the_meta_device():
    with torch.device("meta"):
        model = two_layers()
        assert PreciseBatchNorm().apply(model, torch.zeros(1)) == 2


def test_a_layer_that_is_given_its_input_by_name():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, x):
            return self.norm(input=x)

    model = ByName()
    assert estimate_batchnorm_statistics(model, [torch.tensor([[0.0], [2.0], [4.0]])]) == 1
    assert model.norm.running_mean == 2
