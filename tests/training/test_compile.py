"""train.compile: after its first steps a run compiles nothing more, whatever its methods draw."""

from collections import Counter
from functools import partialmethod

import pytest
import torch
from torch import nn

from runner.config.validation import CONF, METHOD_GROUPS
from runner.training.loop import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own look at it

BATCHES = 4  # of an epoch of `small`
SETTINGS = {
    "ghost_batchnorm": ["ghost_batchnorm.ghost_batch_size=4"],
    "precise_batchnorm": ["precise_batchnorm.num_batches=2"],
    "stochastic_depth": ["stochastic_depth.drop_rate=0.5"],
}
OPTIONS = sorted((group, path.stem) for group in METHOD_GROUPS for path in (CONF / group).glob("*.yaml"))
CASES = {option: [f"{group}=[{option}]", *SETTINGS.get(option, [])] for group, option in OPTIONS}
CASES |= {
    "each image mixed by itself": ["regularization=[mixup,cutmix]", "mixup.per_image=true", "cutmix.per_image=true"],
    "gates of samples": ["regularization=stochastic_depth", "stochastic_depth.stochastic_method=sample"],
    "average of the weights": ["train.ema=0.9"],
    "micro-batches": ["train.accumulation_steps=2"],
}
TOGETHER = ["norm=[ghost_batchnorm,weight_standardization,agc]", "ghost_batchnorm.ghost_batch_size=4", "train.ema=0.9"]
TOGETHER += ["regularization=[stochastic_depth,mixup,dropout,label_smoothing]", "stochastic_depth.drop_rate=0.5"]
TOGETHER += ["stochastic_depth.drop_warmup=0.9"]
WARMING = ["regularization=stochastic_depth", "stochastic_depth.drop_rate=0.5", "stochastic_depth.drop_warmup=0.9"]


@pytest.fixture
def compiled_in(monkeypatch):
    """The graphs compiled in each step, and between steps as step -1; nothing may fall back to the interpreter.

    Graphs are run as they are: what is asked is when there are new ones.
    """
    torch.compiler.reset()
    graphs: Counter[int] = Counter()
    now = [-1]

    def count(graph, inputs):
        graphs[now[0]] += 1
        return graph.forward

    step = Trainer._step

    def counted(trainer, *args):
        now[0] = trainer.progress.step
        try:
            return step(trainer, *args)
        finally:
            now[0] = -1

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=count))
    monkeypatch.setattr(Trainer, "_step", counted)
    # prepare() sets the limit itself, and the patch puts it back
    config = torch._dynamo.config
    with config.patch(fail_on_recompile_limit_hit=True, recompile_limit=config.recompile_limit):
        yield graphs
    torch.compiler.reset()


def test_a_run_with_many_methods_compiles_in_its_first_steps_and_no_more(small, compiled_in):
    compiles_no_more(small, compiled_in, TOGETHER)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_compiles_in_its_first_steps_and_no_more(small, compiled_in, case):
    compiles_no_more(small, compiled_in, CASES[case])


def compiles_no_more(small, compiled_in, settings):
    """The first epoch sees both draws of a gate; an evaluation between epochs is compiled once."""
    outcome = small("train.compile=true", "train.epochs=3", *settings)
    assert outcome.code == 0, outcome.out
    late = {step: number for step, number in compiled_in.items() if step > BATCHES}
    assert not late
    assert 0 < sum(compiled_in.values()) <= 12


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "nf_resnet26", "resnet20"])
def test_the_gates_of_many_blocks_are_compiled_one_by_one_and_not_in_each_combination(tiny, compiled_in, model):
    """Eight gates have 256 combinations. Blocks of all shapes are seen open and closed within the first epochs."""
    settings = ("dataset.image_size=16", "stochastic_depth.drop_distribution=uniform", "train.epochs=6")
    outcome = tiny("train.compile=true", f"model={model}", *WARMING, *settings)
    assert outcome.code == 0, outcome.out
    assert sum(compiled_in.values()) <= 30
    late = {step: number for step, number in compiled_in.items() if step >= 4 * BATCHES}
    assert not late
