"""The checkpoints of the best epochs: best.pt, and with `keep_best` > 1 epoch-<number>.pt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runner.distributed.collectives import rank
from runner.tracking.tracker import Tracker
from runner.training.checkpoint import load_checkpoint, save_checkpoint
from runner.training.checkpoint_content import check_best
from runner.training.plan import Progress, TrainingPlan


class TopKCheckpoints:
    """Keeps the checkpoints of the `plan.keep_best` epochs with the highest score; the loss breaks ties.

    best.pt is the best of them; with more than one, each is in epoch-<number>.pt too. `Progress` lists them, so a
    resumed run ranks as before.
    """

    def __init__(self, plan: TrainingPlan, score: str) -> None:
        self.plan = plan
        self.score = score

    def update(self, checkpoint: dict, progress: Progress) -> bool:
        """Keep an epoch's checkpoint, with its `metrics` and `epoch`, if it is in the top k; whether it is the best."""
        metrics = {**checkpoint["metrics"], "epoch": checkpoint["epoch"]}
        earlier = [entry for entry in progress.kept if entry["epoch"] != metrics["epoch"]]
        entries = sorted([*earlier, metrics], key=self._rank, reverse=True)  # stable: the earlier of equal ones first
        progress.kept, dropped = entries[: self.plan.keep_best], entries[self.plan.keep_best :]
        is_best = not progress.best or self._rank(metrics) > self._rank(progress.best)
        if is_best:
            progress.best = metrics
        if rank() == 0:
            if is_best:
                save_checkpoint(self.plan.best, checkpoint)
            if self.plan.keep_best > 1 and metrics in progress.kept:
                save_checkpoint(self._path(metrics["epoch"]), checkpoint)
            for entry in dropped:
                self._path(entry["epoch"]).unlink(missing_ok=True)
        return is_best

    def check(self, progress: Progress, tracker: Tracker) -> None:
        """Take best.pt again from epoch-<number>.pt, or forget the best epochs, if it is not of the one in `progress`.

        Happens when resuming from a checkpoint older than best.pt; a message says so.
        """
        if not progress.best:
            return
        if not all(self.score in entry for entry in (progress.best, *progress.kept)):
            text = f"last.pt does not tell the {self.score} of the best epoch, which is chosen anew."
            tracker.message(text, "warning")
        else:
            kept = self._path(progress.best["epoch"])
            try:
                epoch = load_checkpoint(self.plan.best, check=check_best)["epoch"]
                if epoch == progress.best["epoch"]:
                    return
                text = f"best.pt is of epoch {epoch}, after the checkpoint that the run goes on from: "
                if self.plan.keep_best > 1 and kept.is_file():
                    if rank() == 0:
                        save_checkpoint(self.plan.best, load_checkpoint(kept, check=check_best))
                    tracker.message(f"{text}{kept.name} takes its place.")
                    return
                tracker.message(f"{text}the best epoch is chosen anew.")
            except ValueError as error:
                tracker.message(f"{error} The best epoch is chosen anew.", "warning")
        progress.best, progress.kept = {}, []

    def _rank(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        return metrics[self.score], -metrics["loss"]

    def _path(self, epoch: int) -> Path:
        return self.plan.best.with_name(f"epoch-{epoch:03}.pt")
