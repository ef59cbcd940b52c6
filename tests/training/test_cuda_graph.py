"""train.cuda_graph, without a GPU: a recorder stands in for CUDA, which freezes what a CUDA graph freezes.

It records the operations that reach the device, with the numbers and the tensors that they were given. A replay runs
them again on the same memory; no line of Python in between is run again, as on a GPU.
"""

import itertools
import json
import random

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runner.config.validation import CONF, METHOD_GROUPS
from runner.experiment import builders
from runner.experiment.methods import build_methods
from runner.methods.method import Method
from runner.training import cuda_graph
from runner.training.cuda_graph import Graphed, why_not_graphed
from runner.training.divergence import FirstNonFinite
from runner.training.ema import Ema
from runner.training.precision import Precision
from runner.training.state import State
from runner.training.step import OptimizerStep
from runner.training.tasks import task_of

CPU = torch.device("cpu")


class Recorder(TorchDispatchMode):
    """Keeps each operation with its arguments and its results, which a replay writes again."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the host reads a value, which ends the recording of a CUDA graph")
        results = func(*args, **(kwargs or {}))
        if func.namespace != "profiler":
            self.operations.append((func, args, kwargs or {}, results))
        return results

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, results in self.operations:
                fresh = func(*args, **kwargs)
                returns = func._schema.returns
                if len(returns) == 1:
                    results, fresh = (results,), (fresh,)
                for returned, old, new in zip(returns, results or (), fresh or (), strict=True):
                    if returned.alias_info is None:  # else it is an argument's memory
                        for one, other in zip(*map(tensors_in, (old, new)), strict=True):
                            one.copy_(other)


def tensors_in(results):
    return [leaf for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)]


@pytest.fixture
def recorded(monkeypatch):
    """How often a graph was recorded and replayed."""
    counts = {"recorded": 0, "replayed": 0}

    def record(function):
        recorder = Recorder()
        with recorder:
            outputs = function()
        counts["recorded"] += 1
        replays = itertools.count()

        def replay():
            counts["replayed"] += 1
            if next(replays):  # recording has run it once already, which a GPU leaves to the first replay
                recorder.replay()

        return replay, outputs

    monkeypatch.setattr(cuda_graph, "record", record)
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda _: False))  # what is chosen by values on a CPU
    return counts


def test_a_function_is_replayed_with_new_tensors_and_numbers(recorded):
    total = torch.zeros(3)
    calls = []

    def add(tensor, number):
        calls.append(1)
        total.add_(tensor * number)
        return {"doubled": [tensor * 2]}

    graphed = Graphed(add, CPU)
    for step in range(8):
        out = graphed(torch.full((3,), float(step)), 0.5)
        assert out["doubled"][0].tolist() == [2.0 * step] * 3
    assert total.tolist() == [sum(range(8)) / 2] * 3
    assert len(calls) == cuda_graph.WARMUP_CALLS + 1
    assert recorded == {"recorded": 1, "replayed": 8 - cuda_graph.WARMUP_CALLS}
    with pytest.raises(RuntimeError, match=r"train\.cuda_graph=true: argument 0 .* of shape \(3,\) and .* \(2,\) now"):
        graphed(torch.zeros(2), 0.5)


def test_what_the_host_draws_is_frozen(recorded):
    """As on a GPU: so the recorder can show a method that must not be recorded."""
    graphed = Graphed(lambda x: x * random.random(), CPU)
    draws = {graphed(torch.ones(())).item() for _ in range(9)}
    assert len(draws) == cuda_graph.WARMUP_CALLS + 1


def steps_of(composed, overrides, batches, graphed):
    """The state after a step on each batch, under a learning rate that falls."""
    config = composed(*overrides, "train.global_batch_size=8", "dataset=random", "dataset.image_size=16")
    data = builders.build_data(config.dataset)
    config = builders.choose_stem(config, data)
    torch.manual_seed(0)
    built = builders.build_changed_model(
        config, num_classes=data.num_classes, example_input=data.example_input(), pretrained=False
    )
    optimizer = builders.build_optimizer(config.optimizer, built.model, global_batch_size=8)
    ema = None if config.train.ema is None else Ema(built.model, decay=config.train.ema)
    precision = Precision("fp32", CPU)
    state = State(built.model.train(), optimizer, built.methods, task_of(data, config.train), precision, ema)
    non_finite = FirstNonFinite(CPU)
    take_step = OptimizerStep(
        state,
        non_finite=non_finite,
        num_classes=data.num_classes,
        accumulation_steps=config.train.accumulation_steps,
        cuda_graph=graphed,
    )
    for number, (images, targets) in enumerate(batches, start=1):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / number
        assert take_step(images, targets, number=number, progress=number / len(batches))
        if number == 6:
            state.metrics.clear()  # as at the end of an epoch
    return state, non_finite


def batches_of(number):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(number, 8, 3, 16, 16, generator=generator)
    return list(zip(images, torch.randint(10, (number, 8), generator=generator), strict=True))


CASES = {
    "plain": [],
    "lars": ["optimizer=lars"],
    "adamw": ["optimizer=adamw"],
    "micro-batches": ["train.accumulation_steps=2"],
    "many methods": [
        "norm=[ghost_batchnorm,weight_standardization,agc]",
        "ghost_batchnorm.ghost_batch_size=4",
        "regularization=[mixup,label_smoothing]",
        "train.ema=0.9",
    ],
    "clip by norm": ["norm=clip_by_norm"],
    "clip by value": ["norm=clip_by_value"],
    "batch-channel norm": ["norm=batch_channel_norm", "batch_channel_norm.num_groups=8"],
    "layers as units": ["norm=agc", "agc.granularity=layer"],
}


@pytest.mark.usefixtures("small_model")
@pytest.mark.parametrize("case", CASES)
def test_training_with_a_graph_gives_the_same_numbers(composed, recorded, case):
    batches = batches_of(10)
    plain, _ = steps_of(composed, CASES[case], batches, graphed=False)
    graphed, non_finite = steps_of(composed, CASES[case], batches, graphed=True)
    assert recorded == {"recorded": 2, "replayed": 2 * 10 - 7}
    for kind in ("parameters", "buffers"):
        pairs = zip(getattr(graphed.model, kind)(), getattr(plain.model, kind)(), strict=True)
        for number, (one, other) in enumerate(pairs):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=f"{kind} {number}")
    found, expected = graphed.metrics.read(), plain.metrics.read()
    assert (found.images, found.steps, found.counts) == (expected.images, expected.steps, expected.counts)
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert found.methods.keys() == expected.methods.keys()
    for name, values in expected.methods.items():
        assert found.methods[name] == pytest.approx(values, rel=1e-3), name
    if plain.ema is not None:
        assert graphed.ema.updates == plain.ema.updates
        for one, other in zip(graphed.ema.model.parameters(), plain.ema.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert non_finite.read() is None
    assert [group["lr"] for group in graphed.optimizer.param_groups] == [0.01, 0.01]


@pytest.mark.usefixtures("small_model")
def test_a_replay_finds_the_first_step_that_is_not_finite(composed, recorded):
    batches = batches_of(9)
    batches[7][0][0, 0, 0, 0] = torch.nan
    for graphed in (False, True):
        _, non_finite = steps_of(composed, [], batches, graphed)
        assert non_finite.read() == (8, "gradient")


@pytest.mark.usefixtures("small_model")
def test_a_probe_between_two_steps_changes_nothing(composed, recorded, monkeypatch):
    from runner.layers.preserve_state import preserve_state

    def with_probes(step, original=OptimizerStep.__call__):
        def call(self, images, targets, **about):
            with preserve_state(self.state.model):
                self.state.model(images).sum().backward()
            return original(self, images, targets, **about)

        return call

    batches = batches_of(8)
    plain, _ = steps_of(composed, ["norm=agc"], batches, graphed=False)
    monkeypatch.setattr(OptimizerStep, "__call__", with_probes(OptimizerStep))
    probed, _ = steps_of(composed, ["norm=agc"], batches, graphed=True)
    for one, other in zip(probed.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_run_with_a_graph_writes_the_same_metrics(small, recorded, monkeypatch, tmp_path):
    """Through epochs, evaluations of the average, checkpoints, a probe, and a resume."""
    monkeypatch.setattr("runner.experiment.check.why_not_graphed", lambda *args, **about: None)
    settings = ["train.epochs=3", "train.ema=0.9", "norm=agc", "probe=gradient_histogram", "probe_at=[4,9]"]
    settings += ["train.log_every_steps=2", "train.checkpoint_every_steps=3"]
    rows = {}
    for graphed in ("false", "true"):
        outcome = small(*settings, f"train.cuda_graph={graphed}", f"name=graph-{graphed}")
        assert outcome.code == 0, outcome.out + outcome.err
        folder = tmp_path / f"outputs/runs/graph-{graphed}"
        outcome = small(f"resume={folder}", "train.epochs=5")
        assert outcome.code == 0, outcome.out + outcome.err
        rows[graphed] = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    assert recorded["recorded"] == 4
    assert len(rows["true"]) == len(rows["false"]) > 20
    for found, expected in zip(rows["true"], rows["false"], strict=True):
        assert found.keys() == expected.keys()
        for key in expected.keys() - {"seconds", "images_per_second"}:
            is_text = isinstance(expected[key], str)
            near = expected[key] if is_text else pytest.approx(expected[key], rel=1e-3, abs=1e-6)
            assert found[key] == near, (key, expected)


TRAIN = {"num_devices": 1, "compile": False, "on_divergence": "stop"}
OBSTACLES = {
    "needs a GPU": {"device": CPU},
    "train.num_devices=1": {"train": {"num_devices": 2}},
    "train.compile=false": {"train": {"compile": True}},
    "train.on_divergence=stop": {"train": {"on_divergence": "skip"}},
    "train.precision=bf16": {"precision": "fp16"},
    "for noise; leave it out": {"methods": {"noise": Method()}},
    "optimizer=sgd, adamw or lars": {"optimizer": torch.optim.RMSprop([nn.Parameter(torch.ones(1))])},
}


@pytest.mark.parametrize("remedy", OBSTACLES)
def test_what_a_graph_cannot_hold_is_refused_with_a_remedy(remedy):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    about = {"train": TRAIN, "device": torch.device("cuda"), "precision": "bf16", "methods": {}, "optimizer": optimizer}
    assert why_not_graphed(about.pop("train"), **about) is None
    changed = {**about, "train": TRAIN, **OBSTACLES[remedy]}
    changed["train"] = {**TRAIN, **changed["train"]}
    assert remedy in why_not_graphed(changed.pop("train"), **changed)


def test_every_method_but_stochastic_depth_is_capturable(composed):
    """Its gates are drawn on the host, block by block, and its rates may rise from step to step."""
    options = [(group, path.stem) for group in METHOD_GROUPS for path in (CONF / group).glob("*.yaml")]
    left_out = {name for group, name in options if not build_methods(composed(f"{group}=[{name}]"))[name].capturable}
    assert left_out == {"stochastic_depth"}
    assert not Method.capturable  # of an extension that does not say so


def test_on_a_cpu_true_is_refused_and_auto_is_off(tiny):
    tiny("train.cuda_graph=true").assert_refused("train.cuda_graph=true: a CUDA graph needs a GPU")
    tiny("train.cuda_graph=maybe").assert_refused("train.cuda_graph=maybe: it must be true or false, or be auto")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("methods", [[], CASES["many methods"]])
def test_on_a_gpu_a_run_with_a_graph_learns_as_one_without(runner, methods, tmp_path):
    losses = []
    for graphed in ("false", "true"):
        command = ["dataset=digits", "model=resnet20", "train.epochs=1", "train.precision=fp32", "wandb.mode=disabled"]
        command += [
            "train.deterministic=true",
            "train.log_every_steps=5",
            f"train.cuda_graph={graphed}",
            f"name=graph-{graphed}",
        ]
        outcome = runner(*command, *methods)
        assert outcome.code == 0, outcome.out + outcome.err
        rows = map(json.loads, (tmp_path / f"outputs/runs/graph-{graphed}/metrics.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in rows if row["split"] in ("steps", "validation")])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
