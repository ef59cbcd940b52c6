"""Training to its end, and the test of the weights that it chose."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from runner.data.sampling import Shard
from runner.distributed.collectives import any_rank, barrier, rank, world_size
from runner.experiment.check import Checked
from runner.results.predictions import write_predictions
from runner.results.run_folder import RunFolder
from runner.tracking.tracker import Tracker
from runner.training.checkpoint import load_checkpoint, restore_model
from runner.training.evaluation import Evaluation, evaluate, shown
from runner.training.loop import Trainer
from runner.training.state import State


def train_and_test(trainer: Trainer, checked: Checked, folder: RunFolder, tracker: Tracker) -> dict:
    """What the summary says of a run that came to its end; the first rank writes its predictions."""
    trainer.train()
    summary = {"status": "completed"}
    if reason := trainer.why_ended():
        summary["ended_early"] = reason
        tracker.message(f"{reason}: training has ended after {trainer.progress.step} steps")
    return {**summary, **(_test(trainer, checked, folder, tracker) if trainer.schedule.total_steps > 0 else {})}


def _test(trainer: Trainer, checked: Checked, folder: RunFolder, tracker: Tracker) -> dict:
    """Evaluate best.pt, chosen on the validation split, on the test split; and the last weights, if they are others."""
    state, task, precision, progress = trainer.state, checked.task, checked.precision, trainer.progress
    batches = checked.data.evaluation_batches(
        "test",
        batch_size=checked.data.evaluation_batch_size,
        device=precision.device,
        channels_last=trainer.validation_batches.channels_last,
        shard=Shard(rank(), world_size()),
    )

    def test(model: nn.Module, what: str) -> Evaluation:
        return evaluate(model, shown(batches, f"test of {what}", total, tracker), precision, task, keep_images=True)

    total = len(checked.data.test)
    last = test(state.evaluated_model, "the last weights")
    barrier()  # the first rank writes best.pt
    checkpoint = load_checkpoint(trainer.plan.best, precision.device)
    are_others = any_rank(not _are_in(checkpoint, state, progress.step))
    restore_model(checkpoint, state.model, state.methods)
    best = test(state.model, "best.pt") if are_others else last
    if rank() == 0:
        write_predictions(folder.predictions, {"test": best.images, "last": last.images})
    tracker.log({"step": progress.step, "epoch": progress.best["epoch"], "split": "test", **best.metrics})
    return {"metrics": best.metrics, "last": last.metrics, task.by_class_key: task.by_class(best.counts)}


def _are_in(checkpoint: Mapping, state: State, step: int) -> bool:
    """Whether a checkpoint of step `step` holds, bit for bit, the weights that an evaluation would use now."""
    weights = state.evaluated_model.state_dict()
    saved = checkpoint["model"]
    return (
        checkpoint["step"] == step
        and weights.keys() == saved.keys()
        and all(torch.equal(saved[name], value) for name, value in weights.items())
    )
