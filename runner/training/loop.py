"""The training loop."""

from __future__ import annotations

import math
import time
from functools import partial

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from runner.data.dataset import EvaluationBatches, TrainBatches
from runner.distributed.collectives import AsyncAnyRank, is_distributed
from runner.distributed.signals import GracefulStop, StopRequested
from runner.tracking.tracker import Tracker
from runner.training.checkpoint import load_latest
from runner.training.divergence import Diverged, FirstNonFinite
from runner.training.evaluation import Validation, shown
from runner.training.plan import Clock, Interrupted, LRSchedule, Progress, StepTimer, TrainingPlan
from runner.training.probing import Prober
from runner.training.state import State
from runner.training.step import OptimizerStep
from runner.training.top_k import TopKCheckpoints

YOUNG_STEPS = 50  # after which a momentum of 0.1 has left less than 1 % of where running statistics began
FAR_ABOVE = 2.0  # a first validation loss beside the training loss
QUIET_SECONDS = 1.0  # of a validation before its bar takes the place of the training's


class Trainer:
    """Trains a model to the end of its plan, from `checkpoint` if there is one.

    Each rank has its own, over its shard of the batches.
    """

    def __init__(
        self,
        state: State,
        train_batches: TrainBatches,
        validation_batches: EvaluationBatches,
        *,
        num_validation: int,
        plan: TrainingPlan,
        tracker: Tracker,
        prober: Prober | None = None,
        checkpoint: dict | None = None,
    ) -> None:
        self.state = state
        self.prober = prober
        self.train_batches = train_batches
        self.validation_batches = validation_batches
        self.plan = plan
        self.tracker = tracker
        self.metrics, device = state.metrics, state.precision.device
        may_skip = plan.on_divergence == "skip"  # then each overflow is counted by the loop
        self.non_finite = FirstNonFinite(device, max_overflows=0 if may_skip else plan.max_divergences)
        self.take_step = OptimizerStep(
            state,
            non_finite=self.non_finite,
            num_classes=train_batches.num_classes,
            accumulation_steps=plan.accumulation_steps,
            may_skip=may_skip,
            cuda_graph=plan.cuda_graph is True,
        )
        self.top_k = TopKCheckpoints(plan, state.task.score)
        self.logged = self.metrics.read()  # the sums at the last logged row
        self.progress = Progress(probes_left=list(prober.probes) if prober is not None and prober.is_due(0) else [])
        if checkpoint is not None:
            self.progress, self.logged = state.restore(checkpoint)
            self.top_k.check(self.progress, tracker)
        self.clock = Clock(plan, self.progress)
        self.timer, self.timed_before = StepTimer(), self.progress.timed
        self.schedule = LRSchedule(state.optimizer, plan, len(train_batches))
        self.schedule.restart(self.progress)
        self.stop = GracefulStop(single_process=not is_distributed())
        self.validate = Validation(
            state,
            train_batches,
            validation_batches,
            plan.accumulation_steps,
            self.stop,
            partial(shown, what="validation", total=num_validation, tracker=tracker, after_seconds=QUIET_SECONDS),
        )

    def train(self) -> None:
        """Train. Write last.pt as the plan says, and best.pt after an epoch with the best validation score.

        Raises Diverged; and, after writing last.pt, Interrupted if SIGINT or SIGTERM came.
        """
        self.clock.start(self.progress)
        with self.stop:
            try:
                self._train()
            except StopRequested:
                self._save_last()
                raise Interrupted from None

    def _train(self) -> None:
        self._probe()
        if self.progress.step == 0 and self.plan.on_divergence == "restore":
            self._save_last()
        while self.progress.is_to_evaluate or not self._is_over():
            try:
                if not self.progress.is_to_evaluate:
                    self._train_epoch()
                self._finish_epoch()
            except Diverged as reason:
                self._restore_last(reason)
            self.validate.check()

    def why_ended(self) -> str | None:
        """Why training ended before the epochs or steps of its plan. None if it did not."""
        score, time_is_up = self.state.task.score, self.clock.time_is_up
        return None if self._is_done() else self.plan.why_ended(self.progress, score, time_is_up)

    def _is_done(self) -> bool:
        return self.progress.epoch >= self.schedule.epochs or self.progress.step >= self.schedule.total_steps

    def _is_over(self) -> bool:
        return self._is_done() or self.why_ended() is not None

    def _train_epoch(self) -> None:
        progress, plan, stop, flags = self.progress, self.plan, self.stop, AsyncAnyRank()
        self.state.model.train()
        # reading metrics is free on a CPU; it would wait for a GPU, or for other ranks
        is_sync_free = self.state.precision.device.type == "cpu" and not is_distributed()
        read_every = 1 if is_sync_free else plan.log_every_steps
        if progress.batch == 0:
            self.logged = self.metrics.read()
        self.timer.start()
        self.timed_before = progress.timed
        for images, targets in self.train_batches.epoch(progress.epoch, progress.batch):
            stop.begin_step()
            self._step(images, targets)
            progress.count_step(self.train_batches.batch_size)
            interrupted, time_is_up, minutes_over = flags.poll(stop.requested, *self.clock.poll())
            self.clock.time_is_up |= time_is_up
            is_last_step = progress.step == self.schedule.total_steps or self.clock.time_is_up
            ended = is_last_step or progress.batch == len(self.train_batches)
            due = plan.checkpoint_every_steps is not None and progress.step % plan.checkpoint_every_steps == 0
            saves = not ended and (due or minutes_over or interrupted)
            if progress.step % read_every == 0 or ended or saves or self.timer.is_first:
                self._report_steps()
            stop.end_step()
            progress.is_to_evaluate = ended
            if self.prober is not None and self.prober.is_due(progress.step):
                self.timer.stop(progress, self.train_batches.batch_size)
                flags.wait()
                self._probe(all_of_them=True)
                self.timer.start()
            if ended:
                break
            if saves:
                flags.wait()
                self._save_last()
                self.timer.start()
            if interrupted:
                raise Interrupted
        flags.wait()

    def _step(self, images: Tensor, targets: Tensor) -> None:
        """Take one optimizer step over all micro-batches of a batch."""
        progress = self.progress
        share = progress.step / self.schedule.total_steps
        taken = self.take_step(images, targets, number=progress.step + 1, progress=share)
        progress.skipped_in_a_row = 0 if taken else progress.skipped_in_a_row + 1
        progress.skipped_steps += not taken
        self.schedule.step()
        if not taken:
            what = self._first_non_finite()
            if progress.skipped_in_a_row > self.plan.max_divergences:
                raise Diverged(f"{what}; {progress.skipped_in_a_row} steps in a row were skipped")
            self.tracker.message(f"{what}: the step was skipped", "warning")
            self.non_finite.clear()

    def _first_non_finite(self) -> str | None:
        """The first step whose loss or gradient was not finite, in words. None if there is none."""
        first = self.non_finite.read()
        if first is None:
            return None
        step, quantity = first
        return f"the {quantity} was not finite at step {step}, at a learning rate of {self.schedule.lr_at(step):.3g}"

    def _report_steps(self) -> None:
        """Show, and every `log_every_steps` log, the means since the last logged row. Raises Diverged."""
        progress, schedule = self.progress, self.schedule
        sums = self.metrics.read()  # waits for the device: the time of its steps is known from here on
        self.timer.stop(progress, self.train_batches.batch_size)
        if what := self._first_non_finite():
            raise Diverged(what)
        is_logged = progress.step % self.plan.log_every_steps == 0
        means = self.metrics.means(sums.since(self.logged))
        if means:  # else every step was skipped
            place = {"step": progress.step, "epoch": progress.epoch + 1}
            ends = {"total_steps": schedule.total_steps, "epochs": schedule.epochs}
            ends["steps_per_epoch"] = len(self.train_batches)
            score = self.state.task.score
            self.tracker.progress(**place, **ends, loss=means["loss"], score=(score, means[score]), **self._pace())
            if is_logged:
                self.tracker.log({**place, "split": "steps", **means, **self._pace()})
        if is_logged:
            self.logged = sums

    def _finish_epoch(self) -> None:
        """Evaluate, keep the checkpoints and show the epoch's row."""
        progress, plan, schedule = self.progress, self.plan, self.schedule
        trained = self.metrics.means(self.metrics.read())
        pace = self._pace()
        place = {"step": progress.step, "epoch": progress.epoch + 1}
        is_whole = progress.batch == len(self.train_batches)  # else a resumed run may finish it
        is_last = not is_whole or place["epoch"] == schedule.epochs or progress.step == schedule.total_steps
        started = time.perf_counter()
        evaluates = is_last or place["epoch"] % plan.evaluate_every_epochs == 0
        validation = self.validate(progress.epoch) if evaluates else {}
        seconds = time.perf_counter() - started
        progress.is_to_evaluate = False
        if is_whole:
            progress.epoch, progress.batch = progress.epoch + 1, 0
            self.metrics.clear()
        self.tracker.log({**place, "split": "train", **trained, **pace})
        is_best = False
        if validation:
            self.tracker.log({**place, "split": "validation", **validation, "seconds": seconds})
            weights = self.state.of_model(self.state.evaluated_model, plan.about)
            is_best = self.top_k.update({**weights, **place, "metrics": validation}, progress)
            self._extend()
        if self.prober is not None and progress.batch == 0 and self.prober.ends_epoch(progress.epoch):
            self._probe(all_of_them=True)
        if self._is_over() or place["epoch"] % plan.checkpoint_every_epochs == 0:
            self._save_last()
        row = {"train": trained, "validation": validation, "best": is_best, "seconds": progress.train_seconds}
        self.tracker.epoch({"epoch": place["epoch"], "epochs": schedule.epochs, **row, **pace})
        if place["epoch"] == 1 and validation.get("loss", 0.0) > FAR_ABOVE * trained.get("loss", math.inf):
            self._explain_young_statistics()

    def _explain_young_statistics(self) -> None:
        """Say why the first validation loss is far above that of training, if running statistics may be the reason."""
        if self.progress.step <= YOUNG_STEPS and any(
            isinstance(module, _BatchNorm) and module.track_running_stats for module in self.state.model.modules()
        ):
            self.tracker.message(
                f"the validation loss is this high since batch norm's running statistics are young: after "
                f"{self.progress.step} steps they lag behind the weights. The next epochs mend that by themselves, "
                "norm=precise_batchnorm at once."
            )

    def _pace(self) -> dict[str, float]:
        """The learning rate and, once known, the images per second of this epoch in this process."""
        speed = self.progress.images_per_second(self.timed_before)
        return {"lr": self.schedule.lr, **({} if speed is None else {"images_per_second": speed})}

    def _probe(self, *, all_of_them: bool = False) -> None:
        """Run all probes, or those left at this step."""
        if self.prober is not None:
            place = {"step": self.progress.step, "epoch": self.progress.epoch}
            left = self.progress.probes_left = list(self.prober.probes) if all_of_them else self.progress.probes_left
            self.prober.measure(self.state.model, **place, left=left, check=self.validate.check)

    def _extend(self) -> None:
        """Double the number of epochs if the plan says so."""
        progress = self.progress
        if self.plan.should_extend(progress, len(self.train_batches)):
            progress.doublings += 1
            self.schedule.restart(progress)
            self.tracker.message(
                f"no plateau after {progress.epoch} epochs (epoch {progress.best['epoch']} is the best): the number of "
                f"epochs is doubled to {self.schedule.epochs}"
            )

    def _restore_last(self, reason: Diverged) -> None:
        """Go back to last.pt with a lower learning rate if the plan says so; else raise `reason`."""
        plan, restores = self.plan, self.progress.restores
        if plan.on_divergence != "restore":
            raise reason
        if restores == plan.max_divergences:
            raise Diverged(f"{reason}; training had gone back {restores} times") from None
        latest = load_latest(plan.last, self.state.precision.device)
        assert latest is not None  # written before the first step
        self.progress, self.logged = self.state.restore(latest.checkpoint)
        self.progress.restores = restores + 1
        self.clock.start(self.progress)
        self.non_finite.clear()
        self.schedule.restart(self.progress)
        self.tracker.go_back(self.progress.step)
        what = f"back to step {self.progress.step}, with {plan.lr_factor(self.progress):.3g} times the rate"
        self.tracker.message(f"{reason}: {what}", "warning")

    def _save_last(self) -> None:
        self.stop.extend_deadline(math.inf)  # the disk may be slow
        self.clock.note_checkpoint(self.progress)
        self.progress.rows = self.tracker.rows
        self.state.save(self.plan, self.progress, self.logged)
        self.stop.extend_deadline()
