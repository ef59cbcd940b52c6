from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from runner.methods import unitwise_norm
from runner.methods.agc import AdaptiveGradientClipping, adaptive_clip_grad_


def parameter(weight, grad):
    weight = nn.Parameter(weight)
    weight.grad = grad
    return weight


def clipped_unit(weight, grad, clip=0.01, eps=1e-3):
    """One unit's gradient in float64, and its ratio."""
    weight_norm = max(weight.double().square().sum().sqrt().item(), eps)
    grad_norm = grad.double().square().sum().sqrt().item()
    ratio = grad_norm / weight_norm
    factor = clip * weight_norm / max(grad_norm, 1e-6) if ratio > clip else 1.0
    return grad.double() * factor, ratio


def clipped(weight, grad, **settings):
    """The gradient of a whole tensor, unit by unit, and the ratios of its units."""
    if sum(size > 1 for size in weight.shape) <= 1:
        unit, ratio = clipped_unit(weight, grad, **settings)
        return unit, [ratio]
    units = [clipped_unit(w, g, **settings) for w, g in zip(weight, grad, strict=True)]
    return torch.stack([unit for unit, _ in units]), [ratio for _, ratio in units]


SHAPES = [(), (7,), (5, 3), (5, 3, 2), (6, 4, 3, 3), (6, 1, 3, 3), (4, 2, 3, 3, 3), (1, 9), (9, 1), (8, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_unitwise_norm(shape):
    torch.manual_seed(0)
    tensor = torch.randn(shape)
    norm = unitwise_norm(tensor)
    if sum(size > 1 for size in shape) <= 1:
        expected = tensor.double().square().sum().sqrt()
    else:
        expected = torch.stack([unit.double().square().sum().sqrt() for unit in tensor])
        expected = expected.view(-1, *[1] * (len(shape) - 1))
    assert norm.shape == expected.shape
    torch.testing.assert_close(norm.double(), expected, rtol=1e-6, atol=0)


def test_units_are_clipped_as_the_formula_says():
    torch.manual_seed(0)
    parameters = []
    for shape in SHAPES:
        units = (*shape[:1], *[1] * (len(shape) - 1))
        weight = torch.randn(shape) * (torch.rand(units) > 0.3)  # some units are zero
        grad = torch.randn(shape) * 10 ** torch.empty(units).uniform_(-5, 0)
        parameters.append(parameter(weight, grad))
    expected = [clipped(p.detach(), p.grad) for p in parameters]
    before = [p.grad.clone() for p in parameters]

    metrics = adaptive_clip_grad_(parameters)

    for p, (grad, _) in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad.double(), grad, rtol=1e-5, atol=1e-12)
    ratios = torch.tensor([ratio for _, unit_ratios in expected for ratio in unit_ratios])
    share = (ratios > 0.01).float().mean()
    assert 0.2 < share < 0.95
    torch.testing.assert_close(metrics["clipped_share"], share)
    torch.testing.assert_close(metrics["largest_ratio"], ratios.max(), rtol=1e-5, atol=0)
    kept = [torch.equal(p.grad, b) for p, b in zip(parameters, before, strict=True)]
    assert any(kept)
    assert not all(kept)


def test_layer_granularity_takes_each_tensor_as_one_unit():
    torch.manual_seed(0)
    parameters = [
        parameter(torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)),
        parameter(torch.randn(5), torch.randn(5)),
    ]
    expected = [clipped_unit(p.detach(), p.grad, clip=0.1)[0] for p in parameters]
    metrics = adaptive_clip_grad_(parameters, clip=0.1, granularity="layer")
    for p, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad.double(), grad, rtol=1e-5, atol=0)
    assert metrics["clipped_share"] == 1


def test_agrees_with_timm_on_a_resnet():
    from timm.utils.agc import adaptive_clip_grad  # here: the processes of the last test import this file too

    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 10 ** torch.empty(()).uniform_(-5, 0)
    model.to(memory_format=torch.channels_last)
    grads = [p.grad.clone() for p in model.parameters()]
    adaptive_clip_grad([p for name, p in model.named_parameters() if name != "fc.weight"], clip_factor=0.02)
    expected = [p.grad.clone() for p in model.parameters()]
    for p, grad in zip(model.parameters(), grads, strict=True):
        p.grad = grad
    adaptive_clip_grad_(model, clip=0.02)
    for p, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=0)


def train_a_step(clip):
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([1, 2, 3, 4])).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    clip(model)
    optimizer.step()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_zero_initialized_tensors_train():
    moved = train_a_step(adaptive_clip_grad_)
    assert len([name for name in moved if name.endswith("bias") and not name.startswith("fc")]) == 20


def test_a_gradient_of_a_zero_tensor_is_capped_at_clip_times_eps():
    gain = parameter(torch.zeros(()), torch.tensor(3.0))
    adaptive_clip_grad_(gain)
    assert gain.grad.item() == pytest.approx(1e-5)


def test_gain_of_four_dimensions_is_one_unit():
    torch.manual_seed(0)
    grad = torch.randn(6)
    vector, kernel = parameter(torch.ones(6), grad.clone()), parameter(torch.ones(6, 1, 1, 1), grad.view(6, 1, 1, 1))
    adaptive_clip_grad_([vector, kernel])
    assert torch.equal(kernel.grad.flatten(), vector.grad)
    torch.testing.assert_close(vector.grad, grad / grad.norm() * 0.01 * 6**0.5)


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 3)
        self.body = nn.Linear(4, 8)


def with_large_gradients(model):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model


def untouched(model):
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.eq(1).all()}


def test_the_classifiers_weight_is_left_out_and_its_bias_is_not():
    model = with_large_gradients(HeadFirst())
    adaptive_clip_grad_(model)
    assert untouched(model) == {"fc.weight"}


def test_the_classifiers_weight_is_clipped_on_demand_as_any_other():
    model, method = with_large_gradients(HeadFirst()), AdaptiveGradientClipping(clip_classifier=True)
    assert method.apply(model, torch.zeros(1, 4)) == 4
    weight, _ = clipped(model.fc.weight.detach(), model.fc.weight.grad, clip=0.01, eps=1e-3)
    method.transform_gradients(model)
    torch.testing.assert_close(model.fc.weight.grad.double(), weight)
    assert untouched(model) == set()

    unclear = with_large_gradients(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}))
    with pytest.raises(ValueError, match="which layer"):
        adaptive_clip_grad_(unclear)
    adaptive_clip_grad_(unclear, clip_classifier=True)  # which it is does not matter
    assert untouched(unclear) == set()


def test_a_parametrized_classifier_weight_is_left_out():
    model = HeadFirst()
    nn.utils.parametrizations.weight_norm(model.fc)
    with_large_gradients(model)
    adaptive_clip_grad_(model)
    assert untouched(model) == {"fc.parametrizations.weight.original0", "fc.parametrizations.weight.original1"}


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("by_name", [False, True])
def test_exclude(by_name, pairs):
    model = with_large_gradients(HeadFirst())
    exclude = ["body.bias"] if by_name else [model.body.bias]
    adaptive_clip_grad_(model.named_parameters() if pairs else model, exclude=exclude)
    assert untouched(model) == ({"body.bias"} if pairs else {"body.bias", "fc.weight"})


def test_exclude_a_module():
    model = with_large_gradients(HeadFirst())
    adaptive_clip_grad_(model, exclude="body")
    assert untouched(model) == {"fc.weight", "body.weight", "body.bias"}


def test_exclude_every_parameter_of_a_name():
    model = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), fc=nn.Linear(4, 2)))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    adaptive_clip_grad_(model, exclude=["bias"])
    kept = {name for name, parameter in model.named_parameters() if (parameter.grad == 100).all()}
    assert kept == {"body.0.bias", "body.1.bias", "fc.bias", "fc.weight"}


def test_unknown_names_in_exclude_are_refused():
    model = with_large_gradients(HeadFirst())
    with pytest.raises(ValueError, match=r"'body\.wieght'.*Did you mean body\.weight\?"):
        adaptive_clip_grad_(model, exclude=["body.wieght"])
    with pytest.raises(ValueError, match=r"'bod'"):
        adaptive_clip_grad_(model, exclude=["bod"])
    with pytest.raises(ValueError, match="Names need a model"):
        adaptive_clip_grad_(model.parameters(), exclude=["body.weight"])
    assert len(untouched(model)) == 4


def test_exclude_stands_in_for_a_classifier_that_cannot_be_told():
    model = with_large_gradients(nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 3)}))
    with pytest.raises(ValueError, match="exclude="):
        adaptive_clip_grad_(model)
    adaptive_clip_grad_(model, exclude=["b.weight"])
    assert untouched(model) == {"b.weight"}


def test_a_shared_parameter_is_clipped_once_and_known_by_all_its_names():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    with_large_gradients(model)
    assert AdaptiveGradientClipping().apply(model, torch.zeros(1, 4)) == 2
    expected, _ = clipped(model[0].weight.detach(), model[0].weight.grad)
    twice = [model[0].weight, model[1].weight]
    metrics = adaptive_clip_grad_(twice)
    torch.testing.assert_close(model[0].weight.grad.double(), expected)
    assert metrics["clipped_share"] == 1
    with_large_gradients(model)
    adaptive_clip_grad_(model, exclude=["1.weight"])
    assert untouched(model) == {"0.weight", "2.weight"}


def test_parameters_without_a_gradient_are_passed_over():
    used, unused = parameter(torch.ones(3), torch.ones(3)), nn.Parameter(torch.ones(3))
    assert adaptive_clip_grad_([used, unused])["clipped_share"] == 1
    assert unused.grad is None
    assert adaptive_clip_grad_([unused]) == {"clipped_share": 0, "largest_ratio": 0}


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"weight of shape \(5, 3\) has a sparse gradient"):
        adaptive_clip_grad_(embedding.named_parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stays_so_and_spoils_no_other_unit(bad):
    torch.manual_seed(0)
    conv = parameter(torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2))
    bias = parameter(torch.randn(4), torch.randn(4))
    expected = [clipped(p.detach(), p.grad)[0] for p in (conv, bias)]
    conv.grad[2, 1, 0, 0] = bad
    adaptive_clip_grad_([conv, bias])
    assert not conv.grad[2, 1, 0, 0].isfinite()
    for unit in (0, 1, 3):
        torch.testing.assert_close(conv.grad[unit].double(), expected[0][unit], rtol=1e-5, atol=0)
    torch.testing.assert_close(bias.grad.double(), expected[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_fp32_norms(dtype):
    torch.manual_seed(0)
    grad = (torch.randn(3, 200) * 1e4).to(dtype)  # squares overflow fp16
    half, bias = (
        parameter(torch.randn(3, 200).to(dtype), grad),
        parameter(torch.ones(200, dtype=dtype), torch.full((200,), 1e4, dtype=dtype)),
    )
    full = parameter(torch.ones(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64))
    expected = [clipped(p.detach(), p.grad)[0] for p in (half, bias, full)]
    assert unitwise_norm(half).dtype == torch.float32
    metrics = adaptive_clip_grad_([half, full, bias])
    assert metrics["clipped_share"] == 1
    for p, want in zip((half, bias, full), expected, strict=True):
        torch.testing.assert_close(p.grad.double(), want, rtol=2 * torch.finfo(p.dtype).eps, atol=1e-7)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"^clip=0"):
        adaptive_clip_grad_([], clip=0)
    with pytest.raises(ValueError, match=r"^eps=-1"):
        AdaptiveGradientClipping(eps=-1)
    with pytest.raises(ValueError, match=r"^granularity=units.*Did you mean unit\?"):
        AdaptiveGradientClipping(granularity="units")


def test_method_counts_and_clips_and_notices_another_model():
    method = AdaptiveGradientClipping(clip=0.02, eps=1e-2)
    assert method.order == 50
    for model in (HeadFirst(), HeadFirst()):
        assert method.apply(model, torch.zeros(1, 4)) == 3
        with_large_gradients(model)
        nn.init.zeros_(model.body.bias)
        weight, _ = clipped(model.body.weight.detach(), model.body.weight.grad, clip=0.02, eps=1e-2)
        bias, _ = clipped(model.body.bias.detach(), model.body.bias.grad, clip=0.02, eps=1e-2)
        metrics = method.transform_gradients(model)
        torch.testing.assert_close(model.body.weight.grad.double(), weight)
        torch.testing.assert_close(model.body.bias.grad.double(), bias)
        assert untouched(model) == {"fc.weight"}
        assert metrics["clipped_share"] == 1


def test_method_with_nothing_to_clip_is_refused():
    with pytest.raises(ValueError, match="nothing to change"):
        AdaptiveGradientClipping().apply(nn.Sequential(nn.Linear(4, 3, bias=False)), torch.zeros(1, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_without_waiting(no_host_sync):
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    on_device = resnet18(num_classes=10).cuda()
    on_device.load_state_dict(model.state_dict())
    for p, q in zip(on_device.parameters(), model.parameters(), strict=True):
        p.grad = q.grad.cuda()
    adaptive_clip_grad_(model)
    with no_host_sync():
        metrics = adaptive_clip_grad_(on_device)
    assert metrics["clipped_share"].is_cuda
    for p, q in zip(on_device.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad.cpu(), q.grad, rtol=1e-5, atol=1e-8)


def test_groups_have_a_clip_of_their_own():
    torch.manual_seed(0)
    model = resnet18(num_classes=4)
    groups = {"layer4": 0.5, "layer4.0.conv1": 0.002, "bn1.weight": 3.0}

    def own_clip(name):
        if name == "layer4.0.conv1.weight":
            return 0.002
        return 0.5 if name.startswith("layer4.") else 3.0 if name == "bn1.weight" else 0.01

    for p in model.parameters():
        p.grad = torch.randn_like(p)
    expected, ratios = {}, []
    for name, p in model.named_parameters():
        if name == "fc.weight":
            expected[name] = p.grad.double()
            continue
        expected[name], found = clipped(p.detach(), p.grad, clip=own_clip(name))
        ratios += [(ratio, own_clip(name)) for ratio in found]
    metrics = adaptive_clip_grad_(model, groups=groups)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad.double(), expected[name], rtol=1e-5, atol=1e-9)
    share = sum(ratio > clip for ratio, clip in ratios) / len(ratios)
    torch.testing.assert_close(metrics["clipped_share"].item(), share)
    torch.testing.assert_close(metrics["largest_ratio"].item(), max(ratio for ratio, _ in ratios), rtol=1e-5, atol=0)


def test_wrong_groups_are_refused():
    model = resnet18(num_classes=4)
    with pytest.raises(ValueError, match=r"^groups: .* 'layer5'. Did you mean layer"):
        adaptive_clip_grad_(model, groups={"layer5": 0.1})
    for wrong in (0, float("inf"), None, "a"):
        with pytest.raises(ValueError, match=rf"^groups\.layer4={wrong}: it must lie in"):
            adaptive_clip_grad_(model, groups={"layer4": wrong})
    with pytest.raises(ValueError, match=r"^groups\.fc\.weight=0\.5: nothing in it is clipped"):
        adaptive_clip_grad_(model, groups={"fc.weight": 0.5})
    with pytest.raises(ValueError, match=r"^groups\.layer4=0\.5: nothing in it is clipped"):
        adaptive_clip_grad_(model, groups={"layer4": 0.5}, exclude=["layer4"])
    with pytest.raises(ValueError, match=r"^exclude=\[1\]: it takes the names"):
        adaptive_clip_grad_(model, exclude=[1])
    with pytest.raises(ValueError, match="Names need a model"):
        adaptive_clip_grad_(model.parameters(), groups={"layer4": 0.1})


def test_names_are_the_models_own_under_its_wrappers():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Sequential(nn.Linear(3, 3))
            self.fc = nn.Linear(3, 2)

    model = Wrapped()
    for wrapper in (model, nn.DataParallel(model), torch.compile(model)):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        adaptive_clip_grad_(wrapper, exclude=["module.0"])
        assert torch.equal(model.module[0].weight.grad, torch.ones(3, 3))
        assert model.fc.bias.grad.norm() < 1


def test_gradients_without_a_clipped_unit_are_not_written():
    torch.manual_seed(0)
    shapes = [(3, 4), (2,), (0, 5), (5, 2), (4,), (2, 3)]
    parameters = [parameter(torch.ones(shape), torch.full(shape, 1e-6)) for shape in shapes]
    parameters[0].grad[2] = 9.0
    parameters[4].grad[1] = 9.0
    versions = [p.grad._version for p in parameters]
    expected = [clipped(p.detach(), p.grad)[0] if p.numel() else p.grad.double() for p in parameters]
    adaptive_clip_grad_(parameters)
    assert [p.grad._version > v for p, v in zip(parameters, versions, strict=True)] == [True, *[False] * 3, True, False]
    for p, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad.double(), grad, rtol=1e-6, atol=0)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)).double()


def test_micro_batches_and_a_loss_scale_change_nothing():
    x, y = torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 4
    whole = small_net()
    F.cross_entropy(whole(x), y).backward()
    metrics = adaptive_clip_grad_(whole)
    assert metrics["clipped_share"] > 0

    parts = small_net()
    optimizer = torch.optim.SGD(parts.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for images, targets in zip(x.chunk(4), y.chunk(4), strict=True):
        scaler.scale(F.cross_entropy(parts(images), targets) / 4).backward()
    scaler.unscale_(optimizer)
    adaptive_clip_grad_(parts)
    for a, b in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def clip_on_a_rank(rank, folder):
    """One of two processes: its half of the batch, DistributedDataParallel's all-reduce, then the clip."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        model = nn.parallel.DistributedDataParallel(small_net())
        torch.manual_seed(1)
        x, y = torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 4
        F.cross_entropy(model(x.chunk(2)[rank]), y.chunk(2)[rank]).backward()
        adaptive_clip_grad_(model, groups={"0": 0.02})
        torch.save([p.grad for p in model.parameters()], folder / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")
def test_two_processes_clip_the_gradient_of_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(clip_on_a_rank, args=(tmp_path,), nprocs=2)
    whole = small_net()
    torch.manual_seed(1)
    F.cross_entropy(whole(torch.randn(8, 3, 8, 8, dtype=torch.float64)), torch.arange(8) % 4).backward()
    adaptive_clip_grad_(whole, groups={"0": 0.02})
    for rank in range(2):
        for grad, p in zip(torch.load(tmp_path / f"{rank}.pt"), whole.parameters(), strict=True):
            torch.testing.assert_close(grad, p.grad)
