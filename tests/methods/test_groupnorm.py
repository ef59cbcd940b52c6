import pytest
import torch
import torchvision
from torch import nn

from runner.methods.ghost_batchnorm import GhostBatchNorm2d
from runner.methods.groupnorm import GroupNormMethod, apply_group_norm, apply_layer_norm
from runner.methods.weight_standardization import apply_weight_standardization

pytestmark = pytest.mark.usefixtures("seeded")


def reference(x, groups, weight, bias, eps):
    """Group norm by its formula."""
    flat = x.double().reshape(len(x), groups, -1)
    mean = flat.mean(2, keepdim=True)
    var = (flat - mean).square().mean(2, keepdim=True)
    out = ((flat - mean) / (var + eps).sqrt()).view_as(x)
    shape = (1, -1, *[1] * (x.dim() - 2))
    return (out * weight.double().view(shape) + bias.double().view(shape)).to(x.dtype)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(8, eps=0.01), (4, 8)),
        (nn.BatchNorm1d(8, eps=0.01), (4, 8, 5)),
        (nn.BatchNorm2d(8, eps=0.01), (4, 8, 3, 5)),
        (nn.BatchNorm3d(8, eps=0.01), (4, 8, 2, 3, 2)),
        (nn.SyncBatchNorm(8, eps=0.01), (4, 8, 3, 5)),
        (GhostBatchNorm2d(8, eps=0.01, ghost_batch_size=2), (4, 8, 3, 5)),
    ],
)
def test_every_kind_becomes_the_group_norm_of_the_formula(norm, shape):
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    model = nn.Sequential(norm)
    assert apply_group_norm(model, num_groups=4) == 1
    assert isinstance(model[0], nn.GroupNorm)
    assert model[0].weight is norm.weight
    assert model[0].bias is norm.bias
    assert model[0].eps == 0.01
    x = torch.randn(shape)
    torch.testing.assert_close(model(x), reference(x, 4, norm.weight, norm.bias, 0.01), rtol=1e-4, atol=1e-5)


def test_parameters_stay_and_buffers_vanish_from_a_torchvision_model():
    model = torchvision.models.resnet18(num_classes=4)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert apply_group_norm(model, num_groups=8) == 20
    assert list(dict(model.named_parameters())) == list(parameters)
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert not list(model.buffers())
    before = model.bn1.weight.detach().clone()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.bn1.weight)
    plain = torchvision.models.resnet18(num_classes=4)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not missing
    assert all(key.rpartition(".")[2].startswith(("running_", "num_batches")) for key in unexpected)


def test_without_affine_and_on_the_meta_device():
    model = nn.Sequential(nn.BatchNorm2d(4, affine=False))
    apply_group_norm(model, num_groups=2)
    assert model[0].weight is None
    assert not model[0].affine
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    assert apply_group_norm(model) == 20
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_without_bias():
    model = nn.Sequential(nn.BatchNorm2d(4))
    model[0].register_parameter("bias", None)
    apply_group_norm(model, num_groups=2)
    assert list(model.state_dict()) == ["0.weight"]
    assert model(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)


def test_with_weight_standardization():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert apply_group_norm(model, num_groups=2) == 1
    assert apply_weight_standardization(model) == 1
    x = torch.randn(2, 3, 6, 6)
    flat = model[0].weight.detach().flatten(1)
    standardized = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    convolved = torch.conv2d(x, standardized.view(4, 3, 3, 3), model[0].bias)
    expected = reference(convolved, 2, torch.ones(4), torch.zeros(4), 1e-5)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    model(x).pow(3).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_group_norm_goes_back_into_a_plain_model():
    model, plain = torchvision.models.resnet18(num_classes=4), torchvision.models.resnet18(num_classes=4)
    apply_group_norm(model)
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert all("running_" in key for key in missing)
    assert torch.equal(plain.conv1.weight, model.conv1.weight)


def test_a_shared_layer_is_counted_once():
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(shared, nn.Sequential(shared))
    assert apply_group_norm(model, num_groups=2) == 1
    assert model[0] is model[1][0]


def test_applied_again_it_changes_nothing_and_says_so_for_other_groups():
    model = nn.Sequential(nn.BatchNorm2d(4))
    apply_group_norm(model, num_groups=2)
    layer = model[0]
    assert apply_group_norm(model, num_groups=2) == 0
    assert model[0] is layer
    with pytest.raises(ValueError, match="nothing to change"):
        apply_group_norm(model, num_groups=4)


def test_features_that_the_groups_do_not_divide_leave_the_model_alone():
    model = nn.Sequential(nn.BatchNorm2d(32), nn.Sequential(nn.BatchNorm2d(48)))
    with pytest.raises(ValueError, match=r"num_groups=32 .* 48 features of 1\.0; .* 1, 2, 3, 4, 6, 8, 12, 16, 24, 48$"):
        apply_group_norm(model)
    assert type(model[0]) is nn.BatchNorm2d


class NormWithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3)), "nothing to change: looked for batch norm"),
        (nn.BatchNorm2d(32), "itself is a BatchNorm2d"),
        (nn.Sequential(nn.BatchNorm2d(32), NormWithActivation(32)), "1 is a NormWithActivation"),
        (nn.Sequential(nn.BatchNorm2d(32), nn.LazyBatchNorm2d()), "1 is a LazyBatchNorm2d"),
    ],
)
def test_what_cannot_be_replaced_is_refused_before_anything_changes(model, message):
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        apply_group_norm(model)
    assert [type(module) for module in model.modules()] == before


def test_a_compiled_model_gives_the_same():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    apply_group_norm(model, num_groups=4)
    x = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


def test_a_forward_pass_keeps_the_dtype_of_its_input_under_autocast_on_a_gpu(cuda_autocast):
    """Torch's own layer gives float32, which shows that autocast is on."""
    ours, torchs = nn.Sequential(nn.BatchNorm2d(8)), nn.GroupNorm(4, 8)
    apply_group_norm(ours, num_groups=4)
    with cuda_autocast():
        ours.to_empty(device="cuda"), torchs.to_empty(device="cuda")
        for dtype in (torch.bfloat16, torch.float32):
            x = torch.empty(2, 8, 4, 4, device="cuda", dtype=dtype)
            assert ours(x).dtype == dtype
            assert torchs(x).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_groups", [1, 4])
def test_on_a_gpu_autocast_keeps_the_dtype_and_computes_in_float32(num_groups):
    model = nn.Sequential(nn.BatchNorm2d(8, eps=0.01)).cuda()
    nn.init.normal_(model[0].weight), nn.init.normal_(model[0].bias)
    apply_group_norm(model, num_groups=num_groups)
    x = (100 + torch.randn(4, 8, 16, 16, device="cuda")).bfloat16().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    expected = reference(x.detach().float(), num_groups, model[0].weight, model[0].bias, 0.01)
    torch.testing.assert_close(out, expected.bfloat16(), rtol=2**-7, atol=2**-7)  # bf16 keeps 8 bits
    out.float().square().mean().backward()
    assert x.grad.dtype == torch.bfloat16
    assert model[0].weight.grad.dtype == torch.float32


def test_the_method_applies_its_settings():
    model = nn.Sequential(nn.BatchNorm2d(8))
    assert GroupNormMethod.order == 10
    assert GroupNormMethod(num_groups=4).apply(model, torch.randn(2, 8, 4, 4)) == 1
    assert model[0].num_groups == 4
    with pytest.raises(ValueError, match=r"^num_groups=0"):
        GroupNormMethod(num_groups=0)


def test_group_norms_are_no_layer_norms():
    model = nn.Sequential(nn.BatchNorm2d(4))
    apply_group_norm(model, num_groups=2)
    with pytest.raises(ValueError, match="nothing to change"):
        apply_layer_norm(model)
