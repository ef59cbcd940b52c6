import pytest
import torch
from torch import nn

from runner.layers.surgery import carry_over, nothing_to_change, refuse_modules, replace_modules

pytestmark = pytest.mark.usefixtures("seeded")


class Scaled(nn.Module):
    """A replacement with parameters of the same names as a linear layer."""

    def __init__(self, like):
        super().__init__()
        self.weight = nn.Parameter(torch.empty_like(like.weight, device="meta"))
        self.bias = nn.Parameter(torch.empty(like.out_features, device="meta"))
        self.register_buffer("calls", None)

    def forward(self, x):
        return 2 * nn.functional.linear(x, self.weight, self.bias)


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))


def test_parameter_objects_stay_and_an_optimizer_made_before_trains_them():
    model = net()
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert replace_modules(model, nn.Linear, Scaled) == 2
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    values = {name: parameter.detach().clone() for name, parameter in after.items()}
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(values["0.weight"], model[0].weight)
    assert not torch.equal(values["2.0.bias"], model[2][0].bias)


def test_a_shared_module_is_made_once_and_shared_still():
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Linear(3, 3)), "c": shared})
    made = []
    assert replace_modules(model, nn.Linear, lambda old: made.append(old) or Scaled(old)) == 2
    assert made.count(shared) == 1
    assert model["a"] is model["b"][0] is model["c"]
    assert isinstance(model["a"], Scaled)


def test_two_names_within_one_parent_and_a_shared_parent():
    shared = nn.Linear(3, 3)
    branch = nn.Sequential(shared, shared)
    model = nn.Sequential(branch, branch)
    assert replace_modules(model, nn.Linear, Scaled) == 1
    assert isinstance(branch[0], Scaled)
    assert branch[0] is branch[1]


def test_a_type_means_exactly_that_type_and_a_predicate_whatever_it_says():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(3, 3), Special(3, 3))
    assert replace_modules(model, nn.Linear, Scaled) == 1
    assert type(model[1]) is Special
    assert replace_modules(model, lambda module: isinstance(module, nn.Linear), Scaled) == 1
    assert type(model[1]) is Scaled
    model = nn.Sequential(nn.Linear(3, 3), Special(3, 3), nn.ReLU())
    assert replace_modules(model, (Special, nn.ReLU), lambda old: nn.Identity()) == 2


def test_training_flag_hooks_and_requires_grad_stay():
    model = net()
    model[0].eval()
    model[0].weight.requires_grad_(False)
    calls = []
    handle = model[0].register_forward_hook(lambda module, args, out: calls.append(type(module)))
    model[0].register_forward_pre_hook(lambda module, args, kwargs: calls.append("pre"), with_kwargs=True)
    model[0].register_full_backward_hook(lambda module, grad_in, grad_out: calls.append("backward"))
    replace_modules(model, nn.Linear, Scaled)
    assert not model[0].training
    assert model[2][0].training
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad
    model(torch.ones(2, 3, requires_grad=True)).sum().backward()
    assert calls == ["pre", Scaled, "backward"]
    handle.remove()
    calls.clear()
    model(torch.ones(2, 3))
    assert calls == ["pre"]


def test_a_wrapper_that_holds_the_old_module_leaves_it_its_hooks():
    model = net()
    calls = []
    model[0].register_forward_hook(lambda module, args, out: calls.append(type(module)))
    old = model[0]
    assert replace_modules(model, nn.Linear, lambda linear: nn.Sequential(linear, nn.ReLU())) == 2
    assert model[0][0] is old
    model(torch.ones(2, 3))
    assert calls == [nn.Linear]


def test_none_parameters_and_buffers_are_carried_over():
    old, new = nn.Linear(3, 3, bias=False), Scaled(nn.Linear(3, 3))
    carry_over(old, new)
    assert new.bias is None
    assert new.weight is old.weight
    a, b = nn.BatchNorm1d(3), nn.BatchNorm1d(3, device="meta")
    carry_over(a, b)
    assert b.running_mean is a.running_mean
    assert b.num_batches_tracked is a.num_batches_tracked


def test_device_and_dtype_stay():
    model = net().to(torch.float64)
    replace_modules(model, nn.Linear, Scaled)
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float64, "cpu")}
    with torch.device("meta"):
        model = net()
    assert replace_modules(model, nn.Linear, Scaled) == 2
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_empty_places_and_models_without_a_match():
    model = net()
    model.register_module("nothing", None)
    assert replace_modules(model, nn.Conv2d, Scaled) == 0
    assert replace_modules(model, nn.Linear, Scaled) == 2


def test_the_root_cannot_be_replaced():
    with pytest.raises(ValueError, match=r"itself is a Linear.*inside a parent"):
        replace_modules(nn.Linear(3, 3), nn.Linear, Scaled)


def test_refusals_name_the_module():
    with pytest.raises(ValueError, match=r"2\.0 is a Dropout: no drops"):
        refuse_modules(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Sequential(nn.Dropout())), nn.Dropout, "no drops")
    with pytest.raises(ValueError, match="the model is a Dropout"):
        refuse_modules(nn.Dropout(), nn.Dropout, "no drops")
    refuse_modules(net(), nn.Dropout, "no drops")
    assert "looked for drops in a Sequential" in str(nothing_to_change(net(), "drops"))
