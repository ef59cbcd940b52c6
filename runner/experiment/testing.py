"""Training to its end, and the test of the weights that it chose."""

from __future__ import annotations

from runner.data.sampling import Shard
from runner.distributed.collectives import barrier, rank, world_size
from runner.experiment.check import Checked
from runner.results.predictions import write_predictions
from runner.results.run_folder import RunFolder
from runner.tracking.tracker import Tracker
from runner.training.checkpoint import load_checkpoint, restore_model
from runner.training.evaluation import evaluate
from runner.training.loop import Trainer


def train_and_test(trainer: Trainer, checked: Checked, folder: RunFolder, tracker: Tracker) -> dict:
    """What the summary says of a run that came to its end; the first rank writes its predictions."""
    trainer.train()
    summary = {"status": "completed"}
    if reason := trainer.why_ended():
        summary["ended_early"] = reason
        tracker.message(f"{reason}: training has ended after {trainer.progress.step} steps")
    return {**summary, **(_test(trainer, checked, folder, tracker) if trainer.schedule.total_steps > 0 else {})}


def _test(trainer: Trainer, checked: Checked, folder: RunFolder, tracker: Tracker) -> dict:
    """Evaluate best.pt, chosen on the validation split, on the test split; and the last weights beside it."""
    state, task, precision, progress = trainer.state, checked.task, checked.precision, trainer.progress
    batches = checked.data.evaluation_batches(
        "test",
        batch_size=checked.data.evaluation_batch_size,
        device=precision.device,
        channels_last=trainer.validation_batches.channels_last,
        shard=Shard(rank(), world_size()),
    )
    last = evaluate(state.evaluated_model, batches, precision, task, keep_images=True)
    barrier()  # the first rank writes best.pt
    restore_model(load_checkpoint(trainer.plan.best, precision.device), state.model, state.methods)
    best = evaluate(state.model, batches, precision, task, keep_images=True)
    if rank() == 0:
        write_predictions(folder.predictions, {"test": best.images, "last": last.images})
    tracker.log({"step": progress.step, "epoch": progress.best["epoch"], "split": "test", **best.metrics})
    return {"metrics": best.metrics, "last": last.metrics, task.by_class_key: task.by_class(best.counts)}
