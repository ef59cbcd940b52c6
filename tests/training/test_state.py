"""A checkpoint taken up in another memory format."""

import pytest
import torch

from runner.training.checkpoint import load_checkpoint


def weights(folder, part):
    """The convolutions' of last.pt, without their strides."""
    checkpoint = load_checkpoint(folder / "checkpoints" / "last.pt")
    state = checkpoint["model"] if part == "model" else checkpoint[part]["model"]
    return torch.cat([value.double().flatten() for value in state.values() if value.ndim == 4])


@pytest.mark.parametrize(
    ("optimizer", "begun", "resumed"),
    [("sgd", False, True), ("sgd", True, False), ("adamw", False, True), ("lars", True, False)],
)
def test_a_run_resumed_in_another_memory_format_goes_on_as_if_never_stopped(small, tmp_path, optimizer, begun, resumed):
    """Fused kernels walk through raw memory: momentum in the old order would be that of other weights."""
    settings = (
        f"optimizer={optimizer}",
        "train.ema=0.5",
        "schedule=constant",
        "schedule.warmup_epochs=0",
        "train.epochs=1",
    )
    assert small(*settings, f"train.channels_last={begun}", "train.max_steps=3", "name=whole").code == 0
    assert small(*settings, f"train.channels_last={begun}", "train.max_steps=2", "name=run").code == 0
    runs = tmp_path / "outputs/runs"
    before = {part: weights(runs / "run", part) for part in ("model", "ema")}
    outcome = small("resume=outputs/runs/run", f"train.channels_last={resumed}", "train.max_steps=3")
    assert outcome.code == 0, outcome.out + outcome.err
    for part, start in before.items():
        expected = weights(runs / "whole", part) - start
        assert expected.norm() > 1e-5
        change = weights(runs / "run", part) - start
        assert (change - expected).norm() < 0.01 * expected.norm()
