from __future__ import annotations

import copy
import itertools
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from runner.layers.stochastic_depth import StochasticDepth


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def branch(x):
    return 3 * x + 1


@pytest.mark.parametrize("rescale", ["inference", "training"])
def test_block_mode_follows_the_generator_and_skips_the_branch(rescale):
    gate = StochasticDepth(0.4, rescale=rescale, generator=generator(5))
    twin = generator(5)
    x = torch.randn(3, 2)
    calls = []
    for _ in range(40):
        calls.clear()
        out = gate(lambda x: calls.append(1) or branch(x), x)
        if torch.rand(1, generator=twin).item() < 0.4:
            assert out is None
            assert calls == []
        else:
            assert len(calls) == 1
            torch.testing.assert_close(out, branch(x) / (0.6 if rescale == "training" else 1))


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 3, 3)])
@pytest.mark.parametrize("rescale", ["inference", "training"])
def test_sample_mode_multiplies_each_sample_by_its_gate(rescale, shape):
    gate = StochasticDepth(0.5, method="sample", rescale=rescale, generator=generator(1))
    kept = torch.rand(5, generator=generator(1)) >= 0.5
    assert kept.any()
    assert not kept.all()
    x = torch.randn(shape)
    out = gate(branch, x)
    for i in range(5):
        scale = (2.0 if rescale == "training" else 1.0) if kept[i] else 0.0
        torch.testing.assert_close(out[i], scale * branch(x[i]))


@pytest.mark.parametrize("method", ["block", "sample"])
@pytest.mark.parametrize("rescale", ["inference", "training"])
def test_expectation_over_all_masks_is_the_evaluation(method, rescale, monkeypatch):
    rate, samples = 0.3, 3
    gate = StochasticDepth(rate, method=method, rescale=rescale)
    x = torch.randn(samples, 2, dtype=torch.float64)
    expectation = torch.zeros_like(x)
    num_gates = 1 if method == "block" else samples
    for mask in itertools.product([False, True], repeat=num_gates):
        monkeypatch.setattr(gate, "_draw", lambda n, mask=mask: torch.tensor(mask).view(n))
        out = gate(branch, x)
        probability = rate ** mask.count(False) * (1 - rate) ** mask.count(True)
        expectation += 0 if out is None else probability * out
    scale = 1 - rate if rescale == "inference" else 1.0
    torch.testing.assert_close(expectation, scale * branch(x))
    torch.testing.assert_close(gate.eval()(branch, x), scale * branch(x))


@pytest.mark.parametrize("method", ["block", "sample"])
def test_frequency_of_drops(method):
    gate = StochasticDepth(0.2, method=method, generator=generator())
    x = torch.ones(2000, 1)
    if method == "sample":
        dropped = (gate(torch.ones_like, x) == 0).float().mean().item()
    else:
        dropped = sum(gate(torch.ones_like, x) is None for _ in range(2000)) / 2000
    assert dropped == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 2000) ** 0.5)


@pytest.mark.parametrize("method", ["block", "sample"])
def test_rate_0_returns_the_branch_itself_and_draws_nothing(method):
    gate = StochasticDepth(0.5, method=method, rescale="training", generator=generator())
    gate.warm_up(0)
    before = gate.generator.get_state()
    x = torch.randn(3, 2)
    for mode in (True, False):
        torch.testing.assert_close(gate.train(mode)(branch, x), branch(x), rtol=0, atol=0)
    assert torch.equal(gate.generator.get_state(), before)


def test_warm_up_scales_the_current_rate_in_training_and_evaluation():
    gate = StochasticDepth(0.4).eval()
    x = torch.ones(1)
    assert gate.current_rate == 0.4
    gate.warm_up(0.25)
    assert (gate.current_rate, gate.drop_rate) == (0.1, 0.4)
    torch.testing.assert_close(gate(torch.ones_like, x), torch.tensor([0.9]))
    gate.warm_up(1)
    assert gate.current_rate == 0.4


def test_without_a_generator_draws_come_from_torchs_global_one():
    gate = StochasticDepth(0.5, method="sample")
    x = torch.ones(16, 1)
    torch.manual_seed(3)
    out = gate(torch.ones_like, x)
    torch.manual_seed(3)
    assert torch.equal(out.flatten() == 1, torch.rand(16) >= 0.5)


def test_processes_with_equal_generators_draw_different_parts_and_stay_in_step():
    gates = [StochasticDepth(0.5, method="sample", generator=generator(), rank=r, world_size=2) for r in (0, 1)]
    x = torch.ones(8, 1)
    outs = [gate(torch.ones_like, x).flatten() for gate in gates]
    everything = (torch.rand(16, generator=generator()) >= 0.5).float()
    assert torch.equal(torch.cat(outs), everything)
    assert not torch.equal(*outs)
    assert torch.equal(gates[0].generator.get_state(), gates[1].generator.get_state())


def test_keeps_the_dtype_of_the_branch_and_scales_it_without_rounding_the_rate():
    gate = StochasticDepth(0.1, method="sample", rescale="training", generator=generator())
    x = torch.full((64, 1), 9.0, dtype=torch.bfloat16)
    out = gate(lambda x: x, x)
    assert out.dtype == torch.bfloat16
    assert set(out.flatten().tolist()) == {0.0, 10.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_the_same_on_every_device_without_waiting_for_it(no_host_sync):
    outs = []
    for device in ("cpu", "cuda"):
        gate = StochasticDepth(0.5, method="sample", generator=generator()).to(device)
        x = torch.ones(64, 1, device=device)
        gate(torch.ones_like, x)
        with no_host_sync() if device == "cuda" else nullcontext():
            out = gate(torch.ones_like, x)
        outs.append(out.cpu())
    assert torch.equal(*outs)


def test_has_no_state_and_survives_a_copy_with_its_generator():
    gate = StochasticDepth(0.5, method="sample", generator=generator())
    assert list(gate.state_dict()) == list(gate.parameters()) == list(gate.buffers()) == []
    x = torch.ones(16, 1)
    copies = [copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))]
    out = gate(torch.ones_like, x)
    for other in copies:
        assert torch.equal(other(torch.ones_like, x), out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_rate": 1.0}, r"^drop_rate=1\.0"),
        ({"drop_rate": -0.1}, r"^drop_rate=-0\.1"),
        ({"drop_rate": 0.1, "method": "sampel"}, r"^method=sampel.*sample"),
        ({"drop_rate": 0.1, "rescale": "none"}, r"^rescale=none"),
    ],
)
def test_refuses_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        StochasticDepth(**settings)


class Block(nn.Module):
    def __init__(self, drop_rate, method, shared):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.stochastic_depth = StochasticDepth(drop_rate, method=method, generator=shared)

    def branch(self, x):
        return self.linear(x).relu()

    def forward(self, x):
        out = self.stochastic_depth(self.branch, x)
        return x if out is None else x + out


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own look at it
@pytest.mark.parametrize("method", ["block", "sample"])
def test_a_compiled_model_draws_anew_each_step_without_compiling_anew(method):
    torch.compiler.reset()
    graphs = []

    def counting_backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    shared = generator()
    model = nn.Sequential(*(Block(rate, method, shared) for rate in (0.2, 0.3, 0.4, 0.5)))
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend=counting_backend)
    x = torch.randn(8, 4)
    for _ in range(12):
        torch.testing.assert_close(compiled(x), twin(x))
    compiled_before = len(graphs)
    for step in range(12):
        for block in (*model, *twin):
            block.stochastic_depth.warm_up(0.5 + step / 24)
        torch.testing.assert_close(compiled(x), twin(x))
    assert len(graphs) == compiled_before > 0
    compiled.eval()
    twin.eval()
    torch.testing.assert_close(compiled(x), twin(x))
    compiled_before = len(graphs)
    torch.testing.assert_close(compiled(x + 1), twin(x + 1))
    assert len(graphs) == compiled_before
    torch.compiler.reset()
