"""Faults of other implementations that this one must not have, a group of tests for each of them."""

import errno
import json
import os
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock, Bottleneck

from runner.methods import (
    GhostBatchNorm2d,
    ScaledStdConv2d,
    StdConv2d,
    adaptive_clip_grad_,
    apply_ghost_batchnorm,
    apply_stochastic_depth,
    apply_weight_standardization,
    remove_batchnorm,
    unitwise_norm,
)
from runner.methods.stochastic_depth import StochasticDepthMethod
from runner.models import nf_resnet26, nf_resnet50
from runner.optim.optimizers import parameter_groups, sgd
from runner.training import evaluation, loop
from runner.training.checkpoint import load_checkpoint, save_checkpoint
from runner.training.evaluation import Evaluation
from runner.training.metrics import MetricAccumulator


class Calls(TorchDispatchMode):
    """Counts the operators that are called, and those that bring a number to the host."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


def folders(tmp_path):
    return (tmp_path / "outputs/runs" / name for name in ("whole", "parts"))


def last(folder):
    return load_checkpoint(folder / "checkpoints/last.pt")


def assert_same_bits(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# ---- Composer AGC: no floor of the weight norm, so that what starts at zero never trains; clips the classifier


def test_composer_agc_every_zero_initialized_bias_moves_under_the_clip():
    torch.manual_seed(0)
    model = resnet18(num_classes=5)
    biases = [module.bias for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(biases) == 20
    assert not any(bias.any() for bias in biases)
    F.cross_entropy(1e3 * model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    adaptive_clip_grad_(model, clip=0.01, eps=1e-3)
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert sum(bias.norm().item() > 0.9e-5 for bias in biases) == 20  # at most clip * eps, which the large loss reaches
    assert max(bias.norm().item() for bias in biases) < 1.1e-5


def test_composer_agc_the_classifiers_weight_is_not_clipped():
    torch.manual_seed(0)
    model = resnet18(num_classes=5)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    adaptive_clip_grad_(model)
    kept = [name for name, parameter in model.named_parameters() if torch.equal(parameter.grad, before[name])]
    assert kept == ["fc.weight"]


# ---- timm AGC: the head told by its position; gains of shape (C, 1, 1, 1) clipped by element; many kernels


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.conv2 = nn.Conv2d(6, 6, 3)

    def forward(self, x):
        return self.head(self.conv2(self.conv1(x)).mean((2, 3)))


def test_timm_agc_a_head_registered_first_is_found():
    torch.manual_seed(0)
    model = HeadFirst()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    adaptive_clip_grad_(model)
    unclipped = [name for name, parameter in model.named_parameters() if (parameter.grad == 1).all()]
    assert unclipped == ["head.weight"]


def test_timm_agc_a_gain_of_shape_c111_is_one_unit():
    gain = nn.Parameter(torch.tensor([0.0, 3.0, 4.0]).view(3, 1, 1, 1))
    assert unitwise_norm(gain).item() == 5
    gain.grad = torch.tensor([8.0, 0.0, 6.0]).view(3, 1, 1, 1)
    adaptive_clip_grad_(gain, clip=0.01)
    torch.testing.assert_close(gain.grad.flatten(), 0.01 * 5 * torch.tensor([0.8, 0.0, 0.6]))


def test_timm_agc_a_third_of_its_kernels_at_most():
    from timm.utils.agc import adaptive_clip_grad as timms_clip

    torch.manual_seed(0)
    model = resnet50()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)  # every unit is clipped, the most work there is
    parameters = [parameter for name, parameter in model.named_parameters() if name != "fc.weight"]
    with Calls() as theirs:
        timms_clip(parameters, clip_factor=0.01)
    with Calls() as ours:
        adaptive_clip_grad_(model, clip=0.01)
    assert len(theirs.names) >= 10 * len(parameters)
    assert 3 * len(ours.names) <= len(theirs.names)


# ---- Composer GBN: sizes not honoured, evaluation of small batches, momentum=None, keys, SyncBN, counts


def test_composer_gbn_100_samples_at_32_are_ghost_batches_of_32_32_and_36():
    torch.manual_seed(0)
    norm = GhostBatchNorm2d(3, ghost_batch_size=32)
    x = torch.randn(100, 3, 3, 5) * torch.linspace(1, 3, 100).view(-1, 1, 1, 1)  # chunks of 25 would differ much
    expected = []
    for chunk in x.double().split([32, 32, 36]):
        mean = chunk.mean((0, 2, 3), keepdim=True)
        expected.append((chunk - mean) / ((chunk - mean).square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt())
    torch.testing.assert_close(norm(x).double(), torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_composer_gbn_a_batch_smaller_than_a_ghost_batch_is_evaluated():
    torch.manual_seed(0)
    norm = GhostBatchNorm2d(3, ghost_batch_size=32)
    norm(torch.randn(64, 3, 4, 4) + 2)
    x = torch.randn(1, 3, 4, 4)
    mean, var = (buffer.view(1, 3, 1, 1) for buffer in (norm.running_mean, norm.running_var))
    torch.testing.assert_close(norm.eval()(x), (x - mean) / (var + 1e-5).sqrt())


def test_composer_gbn_momentum_none_is_the_plain_mean():
    torch.manual_seed(0)
    norm = GhostBatchNorm2d(2, momentum=None, ghost_batch_size=4)
    batches = torch.randn(3, 8, 2, 3, 3) + 1
    for batch in batches:
        norm(batch)
    ghosts = batches.double().view(6, 4, 2, 9)
    torch.testing.assert_close(norm.running_mean.double(), ghosts.mean((0, 1, 3)), rtol=1e-5, atol=1e-6)
    variances = ghosts.transpose(1, 2).flatten(2).var(2)
    torch.testing.assert_close(norm.running_var.double(), variances.mean(0), rtol=1e-5, atol=1e-6)


def test_composer_gbn_keys_stay():
    with torch.device("meta"):
        model = resnet18()
    keys = list(model.state_dict())
    assert apply_ghost_batchnorm(model) == 20
    assert list(model.state_dict()) == keys


def test_composer_gbn_sync_batch_norm_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"SyncBatchNorm.*shares its statistics over devices"):
        apply_ghost_batchnorm(model)
    assert type(model[2]) is nn.BatchNorm2d


def test_composer_gbn_a_mini_batch_counts_once():
    norm = GhostBatchNorm2d(2, ghost_batch_size=4)
    for _ in range(3):
        norm(torch.randn(16, 2, 3, 3))
    assert norm.num_batches_tracked == 3


# ---- Composer WS: keys, application twice, the order of execution of models that fx cannot trace


class Untraceable(nn.Module):
    """Registered in another order than it runs, and with a branch on data."""

    def __init__(self):
        super().__init__()
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        out = self.norm(self.second(self.first(x)))
        return self.third(out) if out.sum() > -1e9 else out


def test_composer_ws_keys_stay_and_a_second_call_changes_nothing():
    torch.manual_seed(0)
    model, x = resnet18(num_classes=3).eval(), torch.randn(2, 3, 32, 32)
    keys = list(model.state_dict())
    assert apply_weight_standardization(model) == 20
    once = model(x)
    assert list(model.state_dict()) == keys
    assert apply_weight_standardization(model) == 0
    assert torch.equal(model(x), once)


@pytest.mark.parametrize("convert", [None, partial(apply_ghost_batchnorm, ghost_batch_size=2), remove_batchnorm])
def test_composer_ws_order_of_execution_where_fx_cannot_trace(convert):
    model = Untraceable()
    if convert is not None:
        assert convert(model) == 1
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(model)
    assert apply_weight_standardization(model, n_last_layers_ignore=1, example_input=torch.zeros(2, 3, 8, 8)) == 2
    assert {name for name, module in model.named_modules() if type(module) is StdConv2d} == {"first", "second"}


def test_composer_ws_order_of_execution_of_a_model_converted_by_other_methods():
    model, x = resnet18(num_classes=3), torch.randn(1, 3, 32, 32)
    apply_ghost_batchnorm(model)
    apply_stochastic_depth(model, drop_rate=0.9)
    assert apply_weight_standardization(model, n_last_layers_ignore=3, example_input=x) == 17
    # the last block's two, and before them the second of the block before, whose shortcut runs later
    plain = {name for name, module in model.named_modules() if type(module) is nn.Conv2d}
    assert plain == {"layer4.1.conv1", "layer4.1.conv2", "layer4.0.downsample.0"}


# ---- Composer SD: torchvision's Bottleneck alone; resume; the warm-up's end; several processes


class UsersBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


@pytest.mark.parametrize(
    ("make", "name", "blocks"),
    [
        (lambda: nn.Sequential(Bottleneck(8, 2), Bottleneck(8, 2)), None, 2),
        (lambda: nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8)), None, 2),
        (lambda: nf_resnet26(num_classes=2).layer3[1:], None, 3),
        (lambda: nn.Sequential(UsersBlock(), UsersBlock()), "UsersBlock", 2),
    ],
    ids=["Bottleneck", "BasicBlock", "NFResBlock", "UsersBlock"],
)
def test_composer_sd_every_kind_of_block_is_skipped(make, name, blocks):
    torch.manual_seed(0)
    model = make().train()
    drop = {"drop_rate": 0.999999, "drop_distribution": "uniform"}
    assert apply_stochastic_depth(model, target_layer_name=name, **drop) == blocks
    channels = next(module for module in model.modules() if isinstance(module, nn.Conv2d)).in_channels
    x = torch.rand(2, channels, 4, 4)  # positive: a block's last ReLU leaves it
    ran = []
    model(x)  # of the user's block the first forward finds out its output's shape
    for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
        conv.register_forward_hook(lambda *_: ran.append(1))
    assert torch.equal(model(x), x)
    assert ran == []


def test_composer_sd_a_run_that_crashed_goes_on_with_the_same_bits(small, tmp_path, monkeypatch):
    settings = ("regularization=stochastic_depth", "stochastic_depth.drop_rate=0.5", "stochastic_depth.drop_warmup=0.6")
    settings += ("train.epochs=3", "train.checkpoint_every_steps=3", "train.log_every_steps=2")
    assert small(*settings, "name=whole").code == 0
    step = loop.Trainer._step

    def crashing(trainer, *batch):
        if trainer.progress.step == 11:
            raise RuntimeError("the power went off")
        step(trainer, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", crashing)
        assert small(*settings, "name=parts").code == 1
    whole, parts = folders(tmp_path)
    assert last(parts)["progress"]["step"] == 9  # so that two steps are taken once more
    torch.manual_seed(99)
    assert small("resume=outputs/runs/parts").code == 0
    for key in ("model", "methods", "random"):
        assert_same_bits(last(parts)[key], last(whole)[key])
    assert json.loads((parts / "summary.json").read_text())["status"] == "completed"


def test_composer_sd_the_warm_up_reaches_the_target_at_its_end():
    model = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4))
    method = StochasticDepthMethod(drop_rate=0.4, drop_warmup=0.5)
    method.apply(model, torch.zeros(1, 4, 8, 8))
    rates = []
    for step in range(10):
        method.on_step(step / 10)
        rates.append(model[1].stochastic_depth.current_rate)
    assert rates == pytest.approx([0, 0.08, 0.16, 0.24, 0.32, 0.4, 0.4, 0.4, 0.4, 0.4], abs=1e-12)
    assert rates[5] == 0.4


def train_on_a_rank(rank, folder):
    """One of two processes: steps with its own data; keeps which blocks ran, and the parameters at the end."""
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)  # a hang becomes an error
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timeout
    )
    try:
        torch.save({same: steps_in_parallel(rank, same) for same in (True, False)}, folder / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def steps_in_parallel(rank, use_same_gpu_seed):
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *(BasicBlock(4, 4) for _ in range(5)), *head)
    method = StochasticDepthMethod(
        drop_rate=0.6, drop_distribution="uniform", use_same_gpu_seed=use_same_gpu_seed, rescale="training"
    )
    method.apply(model, torch.zeros(1, 3, 8, 8), seed=7)
    ran = []
    for block in model[1:6]:
        block.stochastic_depth.register_forward_hook(lambda gate, args, out: ran.append(out is not None))
    parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(rank)  # whatever else a process draws
    for step in range(6):
        method.on_step(step / 6)
        optimizer.zero_grad()
        F.cross_entropy(parallel(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    return {"ran": ran, "parameters": [parameter.detach() for parameter in model.parameters()]}


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")
def test_composer_sd_two_processes_drop_blocks_and_do_not_hang(tmp_path):
    torch.multiprocessing.spawn(train_on_a_rank, args=(tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for use_same_gpu_seed in (True, False):
        first, second = (rank[use_same_gpu_seed] for rank in ranks)
        assert len(first["ran"]) == 30
        assert 0 < sum(first["ran"]) < 30
        assert (first["ran"] == second["ran"]) is use_same_gpu_seed
        assert_same_bits(first["parameters"], second["parameters"])


# ---- timm NF-ResNet: average-pool shortcut, gamma in every convolution, decay of gains, variance of the stages


def test_timm_nf_resnet_a_shortcut_is_a_strided_1x1_convolution():
    with torch.device("meta"):
        model = nf_resnet50()
    assert not any("AvgPool" in type(module).__name__ for module in model.modules())
    shortcuts = [getattr(model, f"layer{stage}")[0].shortcut for stage in (1, 2, 3, 4)]
    convs = [[module for module in shortcut.modules() if not list(module.children())] for shortcut in shortcuts]
    assert [(conv.kernel_size, conv.stride) for (conv,) in convs] == [((1, 1), (s, s)) for s in (1, 2, 2, 2)]


def test_timm_nf_resnet_gamma_belongs_to_the_activation():
    """A filter has norm 1 whatever follows it; the activation brings N(0, 1) to variance 1."""
    torch.manual_seed(0)
    model = nf_resnet26(num_classes=2, activation="gelu")
    for conv in (module for module in model.modules() if isinstance(module, ScaledStdConv2d)):
        norms = conv.standardized_weight().square().sum((1, 2, 3))
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-4, atol=0)
    assert model.layer1[0].activation(torch.randn(100_000)).var().item() == pytest.approx(1, abs=0.03)


def test_timm_nf_resnet_gains_and_skip_gains_do_not_decay():
    torch.manual_seed(0)
    model = nf_resnet26(num_classes=2)
    for parameter in model.parameters():
        parameter.data.fill_(1)
        parameter.grad = torch.zeros_like(parameter)
    sgd(parameter_groups(model, weight_decay=0.1), lr=0.5).step()
    still = {name.rpartition(".")[2] for name, parameter in model.named_parameters() if (parameter == 1).all()}
    shrunk = {name.rpartition(".")[2] for name, parameter in model.named_parameters() if (parameter < 1).all()}
    assert (still, shrunk) == ({"gain", "bias", "skipinit_gain"}, {"weight"})


def test_timm_nf_resnet_variance_at_the_ends_of_stages():
    """With open branches 1 + alpha^2 times the blocks: 1.12, 1.16, 1.24 and 1.12; timm's has 3.4, 1.4, 0.4 and 0.1."""
    torch.manual_seed(0)
    model = nf_resnet50(num_classes=2)
    variances = []
    for stage in (1, 2, 3, 4):
        layer = getattr(model, f"layer{stage}")
        for block in layer:
            nn.init.ones_(block.skipinit_gain)
        layer.register_forward_hook(lambda layer, args, out: variances.append(out.var((0, 2, 3)).mean().item()))
    with torch.no_grad():
        model(torch.randn(4, 3, 128, 128))
    assert variances == pytest.approx([1 + 0.2**2 * depth for depth in (3, 4, 6, 3)], abs=0.08)


# ---- timm train.py: no resume by itself, generators, best metric, `last` unlinked, a wait in every step

EPOCHS = ("train.epochs=3", "regularization=[dropout,mixup]", "dropout.rate=0.5", "schedule=constant")


def test_timm_train_resume_restores_the_generators(small, tmp_path):
    assert small(*EPOCHS, "name=whole").code == 0
    assert small(*EPOCHS, "train.epochs=1", "name=parts").code == 0
    torch.manual_seed(99)
    assert small("resume=outputs/runs/parts", "train.epochs=3").code == 0
    whole, parts = folders(tmp_path)
    for key in ("model", "optimizer", "methods", "random"):
        assert_same_bits(last(parts)[key], last(whole)[key])


def test_timm_train_resume_keeps_the_best_metric(small, tmp_path, monkeypatch):
    found = (Evaluation({"accuracy": accuracy, "loss": 1.0}, [0, 1], 1) for accuracy in (0.5, 0.9, 0.7, 0.8))
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: next(found))
    assert small("train.epochs=2", "schedule=constant", "name=parts").code == 0
    best = tmp_path / "outputs/runs/parts/checkpoints/best.pt"
    before = best.read_bytes()
    assert small("resume=outputs/runs/parts", "train.epochs=4").code == 0
    assert best.read_bytes() == before
    summary = json.loads((tmp_path / "outputs/runs/parts/summary.json").read_text())
    assert (summary["best"]["accuracy"], summary["best"]["epoch"]) == (0.9, 2)


def test_timm_train_last_is_never_missing(small, tmp_path, monkeypatch):
    epochs, there_before, removed = [], [], []
    replace = os.replace

    def watched_replace(source, target):
        if os.fspath(target).endswith("last.pt"):
            there_before.append(os.path.exists(target))
            epochs.append(load_checkpoint(Path(source))["progress"]["epoch"])  # whole before it takes the name
        replace(source, target)

    def watched(remove):
        def call(path, **options):
            removed.append(os.path.basename(path))
            remove(path, **options)

        return call

    monkeypatch.setattr(os, "replace", watched_replace)
    monkeypatch.setattr(os, "unlink", watched(os.unlink))
    monkeypatch.setattr(os, "remove", watched(os.remove))
    assert small("train.epochs=3", "name=whole").code == 0
    assert epochs == [1, 2, 3]
    assert there_before == [False, True, True]
    assert "last.pt" not in removed


def test_timm_train_nothing_is_read_from_a_gpu_within_a_step(small, monkeypatch):
    """On a device that is not a CPU, here by its name alone, metrics are read when they are logged."""
    train_epoch, read = loop.Trainer._train_epoch, MetricAccumulator.read
    reads, calls = [], Calls()

    def counted(sums):
        reads.append(sums.steps)
        return read(sums)

    def on_another_device(trainer):
        own = trainer.state.precision
        trainer.state.precision = SimpleNamespace(
            device=SimpleNamespace(type="cuda"), autocast=own.autocast, scaler=own.scaler
        )
        monkeypatch.setattr(MetricAccumulator, "read", counted)
        with calls:
            train_epoch(trainer)
        monkeypatch.setattr(MetricAccumulator, "read", read)
        trainer.state.precision = own

    monkeypatch.setattr(loop.Trainer, "_train_epoch", on_another_device)
    methods = ("norm=[ghost_batchnorm,clip_by_norm]", "ghost_batchnorm.ghost_batch_size=4", "regularization=mixup")
    images = ("dataset.num_images=96", "train.epochs=1", "train.log_every_steps=5")
    assert small(*methods, *images).code == 0
    assert reads == [0, 1, 5, 10, 12]  # 1: the first step is timed apart
    assert "convolution.default" in calls.names
    assert "_local_scalar_dense.default" not in calls.names  # what .item() calls


# ---- Composer Trainer: a checkpoint is written straight to its final path


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space left"), RuntimeError("torn"), KeyboardInterrupt()])
def test_composer_trainer_an_error_while_a_checkpoint_is_written_leaves_the_old_one(tmp_path, monkeypatch, error):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weight": torch.ones(1000), "step": 1})
    before = path.read_bytes()

    def torn(checkpoint, file):
        file.write(before[: len(before) // 2])
        raise error

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(type(error)):
        save_checkpoint(path, {"weight": torch.zeros(1000), "step": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


DIES_WHILE_WRITING = """
import os, sys, torch
from pathlib import Path
from runner.training.checkpoint import save_checkpoint
save, path = torch.save, Path(sys.argv[1])
def torn(checkpoint, file):
    save(checkpoint, file)
    file.truncate(file.tell() // 2)
    os._exit(9)
torch.save = torn
save_checkpoint(path, {"weight": torch.zeros(1000), "step": 2})
"""


@pytest.mark.slow
def test_composer_trainer_a_process_that_dies_while_writing_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weight": torch.ones(1000), "step": 1})
    died = subprocess.run([sys.executable, "-c", DIES_WHILE_WRITING, path], capture_output=True)
    assert died.returncode == 9, died.stderr.decode()
    checkpoint = load_checkpoint(path)
    assert checkpoint["step"] == 1
    assert torch.equal(checkpoint["weight"], torch.ones(1000))
    half = [file for file in tmp_path.iterdir() if file != path]
    assert all(file.suffix == ".tmp" for file in half)  # under no name that is looked for
