"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from runner.data.dataset import EvaluationBatches, TrainBatches
from runner.distributed.collectives import AsyncAnyRank, is_distributed
from runner.distributed.signals import GracefulStop, StopRequested
from runner.methods.method import Method
from runner.optim.schedules import make_schedule
from runner.tracking.tracker import Tracker
from runner.training.accumulator import MetricAccumulator, Snapshot
from runner.training.clock import Clock, StepTimer
from runner.training.divergence import Diverged, FirstNonFinite
from runner.training.ema import Ema
from runner.training.plan import Interrupted, Plan, Progress
from runner.training.precision import Precision
from runner.training.probing import Prober
from runner.training.state import State
from runner.training.step import OptimizerStep
from runner.training.tasks import Task
from runner.training.top_k import TopKCheckpoints
from runner.training.validation import Validation


class Trainer:
    """Trains a model to the end of its plan, from wherever the checkpoint left off.

    Each rank has one, over its share of the batches; `forward_model` is torch's wrapper of `model` for several.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        methods: Mapping[str, Method],
        train_batches: TrainBatches,
        validation_batches: EvaluationBatches,
        *,
        task: Task,
        plan: Plan,
        precision: Precision,
        tracker: Tracker,
        forward_model: nn.Module | None = None,
        ema: Ema | None = None,
        prober: Prober | None = None,
        checkpoint: dict | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self.prober = prober
        self.task = task
        self.methods = methods
        self.train_batches = train_batches
        self.validation_batches = validation_batches
        self.plan = plan
        self.precision = precision
        self.tracker = tracker
        self.sums = MetricAccumulator(task, precision.device)
        may_skip = plan.on_divergence == "skip"  # each wrong step is looked at, and counted, by itself
        self.non_finite = FirstNonFinite(precision.device, max_overflows=0 if may_skip else plan.max_divergences)
        self.take_step = OptimizerStep(
            model,
            forward_model or model,
            optimizer,
            methods,
            task=task,
            precision=precision,
            sums=self.sums,
            non_finite=self.non_finite,
            num_classes=train_batches.num_classes,
            parts=plan.accumulation_steps,
            ema=ema,
            may_skip=may_skip,
        )
        self.kept = TopKCheckpoints(plan, task.score)
        self.logged = self.sums.read()  # the sums at the last row that was logged
        self.progress = Progress(probes_left=list(prober.probes) if prober is not None and prober.is_due(0) else [])
        self.state = State(model, optimizer, methods, precision, self.sums, ema, plan)
        if checkpoint is not None:
            self.progress, self.logged = self.state.restore(checkpoint)
            self.kept.check(self.progress, tracker)
        self.clock = Clock(plan, self.progress)
        self.timer = StepTimer()
        self._start_schedule()
        self.stop = GracefulStop(single_process=not is_distributed())
        parts = plan.accumulation_steps
        self.validate = Validation(
            model, ema, methods, train_batches, validation_batches, parts, precision, task, self.stop
        )

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is evaluated and kept in best.pt: the average of the weights, where there is one."""
        return self.model if self.ema is None else self.ema.model

    def train(self) -> None:
        """Train; at the end of epochs evaluate and write last.pt, and best.pt if it is best on the validation split.

        Raises Diverged; and Interrupted, after writing last.pt, when SIGINT or SIGTERM came.
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
                    self._train_epoch(self.stop)
                self._finish_epoch()
            except Diverged as reason:
                self._go_back(reason)
            self.validate.check()

    def why_ended(self) -> str | None:
        """Why training ended before the epochs or steps of its plan were done; None if they are."""
        return None if self._is_done() else self.plan.why_ended(self.progress, self.task.score, self.clock.time_is_up)

    def _is_done(self) -> bool:
        return self.progress.epoch >= self.epochs or self.progress.step >= self.total_steps

    def _is_over(self) -> bool:
        return self._is_done() or self.why_ended() is not None

    def _train_epoch(self, stop: GracefulStop) -> None:
        progress, plan, flags = self.progress, self.plan, AsyncAnyRank()
        self.model.train()
        # a CPU computes at once, so that reading costs nothing; a GPU, or other ranks, would be waited for
        at_once = self.precision.device.type == "cpu" and not is_distributed()
        read_every = 1 if at_once else plan.log_every_steps
        if progress.batch == 0:
            self.logged = self.sums.read()
        self.timer.start()
        for images, targets in self.train_batches.epoch(progress.epoch, progress.batch):
            stop.begin_step()
            self._step(images, targets)
            progress.batch += 1
            progress.step += 1
            progress.trained_images += self.train_batches.batch_size
            interrupted, time_is_up, minutes_over = flags.poll(stop.requested, *self.clock.poll())
            self.clock.time_is_up |= time_is_up
            all_batches = progress.batch == len(self.train_batches)
            ended = all_batches or progress.step == self.total_steps or self.clock.time_is_up
            due = plan.checkpoint_every_steps is not None and progress.step % plan.checkpoint_every_steps == 0
            saves = not ended and (due or minutes_over or interrupted)
            if progress.step % read_every == 0 or ended or saves or self.timer.is_first:
                totals = self.sums.read()  # waits for the device, without which no time could be told
                self.timer.stop(progress, self.train_batches.batch_size)
                self._report(totals.since(self.logged))
                if progress.step % plan.log_every_steps == 0:
                    self.logged = totals
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
        """One optimizer step over all micro-batches of a batch."""
        progress = self.progress
        taken = self.take_step(images, targets, number=progress.step + 1, progress=progress.step / self.total_steps)
        progress.skipped_in_a_row = 0 if taken else progress.skipped_in_a_row + 1
        progress.skipped_steps += not taken
        self.lr = self.schedule.get_last_lr()[0]
        self.schedule.step()
        if not taken:
            self._skipped()

    def _skipped(self) -> None:
        """Tell of a step that was skipped; raise Diverged if it was one too many."""
        step, quantity = self.non_finite.read()
        what = f"the {quantity} was not finite at step {step}, at a learning rate of {self.lr:.3g}"
        if self.progress.skipped_in_a_row > self.plan.max_divergences:
            raise Diverged(f"{what}; {self.progress.skipped_in_a_row} steps in a row were skipped")
        self.tracker.message(f"{what}: the step was skipped", "warning")
        self.non_finite.clear()

    def _report(self, window: Snapshot) -> None:
        """Show, and at times log, the means over the last steps; raise Diverged if a step was not finite."""
        progress, plan = self.progress, self.plan
        found = self.non_finite.read()
        if found is not None:
            step, quantity = found
            lr = self._lr_of(step)
            raise Diverged(f"the {quantity} was not finite at step {step}, at a learning rate of {lr:.3g}")
        if window.images == 0:
            return  # every step of the window was skipped
        metrics = self.sums.means(window)
        place = {"step": progress.step, "epoch": progress.epoch + 1}
        ends = {"total_steps": self.total_steps, "epochs": self.epochs, "steps_per_epoch": len(self.train_batches)}
        score = (self.task.score, metrics[self.task.score])
        self.tracker.progress(**place, **ends, loss=metrics["loss"], score=score, **self._pace())
        if progress.step % plan.log_every_steps == 0:
            self.tracker.log({**place, "split": "steps", **metrics, **self._pace()})

    def _finish_epoch(self) -> None:
        """Evaluate, keep the checkpoints and show the epoch's row."""
        progress, plan = self.progress, self.plan
        trained = self.sums.means(self.sums.read())
        pace = self._pace()
        place = {"step": progress.step, "epoch": progress.epoch + 1}
        ends_epoch = progress.batch == len(self.train_batches)  # else a resumed run may finish it
        is_last = not ends_epoch or place["epoch"] == self.epochs or progress.step == self.total_steps
        started = time.perf_counter()
        evaluates = is_last or place["epoch"] % plan.evaluate_every_epochs == 0
        validation = self.validate(progress.epoch) if evaluates else {}
        seconds = time.perf_counter() - started
        progress.is_to_evaluate = False
        if ends_epoch:
            progress.epoch, progress.batch = progress.epoch + 1, 0
            self.sums.clear()
        self.tracker.log({**place, "split": "train", **trained, **pace})
        is_best = False
        if validation:
            self.tracker.log({**place, "split": "validation", **validation, "seconds": seconds})
            weights = self.state.of_model(self.evaluated_model)
            is_best = self.kept.update({**weights, **place, "metrics": validation}, progress)
            self._prolong()
        if self.prober is not None and progress.batch == 0 and self.prober.ends_epoch(progress.epoch):
            self._probe(all_of_them=True)
        if self._is_over() or place["epoch"] % plan.checkpoint_every_epochs == 0:
            self._save_last()
        found = {"train": trained, "validation": validation, "best": is_best, "seconds": progress.train_seconds}
        self.tracker.epoch({"epoch": place["epoch"], "epochs": self.epochs, **found, **pace})

    def _pace(self) -> dict[str, float]:
        """The learning rate, and the images a second as soon as they can be told."""
        speed = self.progress.images_per_second
        return {"lr": self.lr, **({} if speed is None else {"images_per_second": speed})}

    def _probe(self, *, all_of_them: bool = False) -> None:
        """Run the probes, or those that are left at this step."""
        if self.prober is not None:
            place = {"step": self.progress.step, "epoch": self.progress.epoch}
            left = self.progress.probes_left = list(self.prober.probes) if all_of_them else self.progress.probes_left
            self.prober.measure(self.model, **place, left=left, check=self.validate.check)

    def _prolong(self) -> None:
        """Double the number of epochs where the plan says so."""
        progress = self.progress
        if self.plan.should_extend(progress, len(self.train_batches)):
            progress.doublings += 1
            self._start_schedule()
            self.tracker.message(
                f"no plateau after {progress.epoch} epochs (epoch {progress.best['epoch']} is the best): the number of "
                f"epochs is doubled to {self.epochs}"
            )

    def _go_back(self, reason: Diverged) -> None:
        """Go on from last.pt with a lower learning rate, where the plan says so; else raise the reason."""
        plan, restores = self.plan, self.progress.restores
        if plan.on_divergence != "restore":
            raise reason
        if restores == plan.max_divergences:
            raise Diverged(f"{reason}; training had gone back {restores} times") from None
        self.progress, self.logged = self.state.load_last()
        self.progress.restores = restores + 1
        self.clock.start(self.progress)
        self.non_finite.clear()
        self._start_schedule()
        self.tracker.go_back(self.progress.step)
        what = f"back to step {self.progress.step}, with {plan.lr_factor(self.progress):.3g} times the rate"
        self.tracker.message(f"{reason}: {what}", "warning")

    def _start_schedule(self) -> None:
        """The learning rate of the step that comes next, in a training as long as it is now."""
        self.epochs = self.plan.epochs_of(self.progress)
        self.total_steps = self.plan.total_steps(self.progress, len(self.train_batches))
        self._share = self.plan.lr_lambda_for(self.total_steps)
        factor = self.plan.lr_factor(self.progress)
        self.schedule = make_schedule(self.optimizer, lambda step: factor * self._share(step), step=self.progress.step)
        self.lr = self._lr_of(max(self.progress.step, 1))

    def _lr_of(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        factor = self.plan.lr_factor(self.progress) * self._share(step - 1)
        return self.optimizer.param_groups[0]["initial_lr"] * factor

    def _save_last(self) -> None:
        self.stop.extend_deadline(math.inf)  # however slow the disk is
        self.clock.saved(self.progress)
        self.progress.rows = self.tracker.rows
        self.state.save(self.progress, self.logged)
        self.stop.extend_deadline()
