"""From a checked configuration to the trainer that is about to run."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace

import torch

from runner.data.sampling import Shard, mixed_seed
from runner.distributed.collectives import rank, world_size, wrap_ddp
from runner.experiment import builders
from runner.experiment.check import Checked
from runner.layers.matrix_conv import use_matrix_products
from runner.results.record import Record
from runner.results.run_folder import RunFolder
from runner.tracking.tracker import Tracker
from runner.training.class_weights import with_class_weights
from runner.training.ema import Ema
from runner.training.loop import Trainer
from runner.training.plan import TrainingPlan
from runner.training.probing import Prober
from runner.training.state import State


def prepare(
    checked: Checked,
    folder: RunFolder,
    checkpoint: dict | None,
    record: Record | None,
    tracker: Tracker,
) -> Trainer:
    """Model, surgery, device and memory format, optimizer, in this order; then the trainer over them."""
    config = checked.settings
    train, data, precision = config.train, checked.data, checked.precision
    task = with_class_weights(checked.task, train.class_weights, data, precision.device)  # may run the data's loader
    checked = replace(checked, task=task)
    torch.manual_seed(config.seed)
    set_backends(train.deterministic)
    precision.set_backends()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        built = builders.build_changed_model(
            config,
            num_classes=data.num_classes,
            example_input=data.example_input(),
            pretrained=checkpoint is None,
        )
    for text in built.notes:
        tracker.message(text)
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        tracker.message(text, "warning")
    state = build_state(checked, built)
    if train.compile:
        # the gates of stochastic depth part a model into its blocks, which share their code: a graph a shape and draw
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        state.forward_model.compile()
    if rank() > 0:  # else all ranks would drop the same units
        torch.manual_seed(mixed_seed(config.seed, rank()))

    shard = Shard(rank(), world_size(), train.accumulation_steps)
    placing = {"device": precision.device, "channels_last": precision.channels_last}
    batches = data.train_batches(batch_size=train.global_batch_size, seed=config.seed, shard=shard, **placing)
    steps_per_epoch = len(batches)
    plan = TrainingPlan(
        last=folder.checkpoint("last"),
        best=folder.checkpoint("best"),
        about={
            "wandb_id": record.id if record else "",  # without a record: of a rank that writes no checkpoint
            "record": record.text if record else None,
            "num_classes": data.num_classes,
            "image_size": data.image_size,
            "mean": data.mean.tolist(),
            "std": data.std.tolist(),
            "optimizer": config.optimizer.name,
        },
        lr_lambda_for=lambda total_steps: builders.build_schedule(
            config.schedule, total_steps=total_steps, steps_per_epoch=steps_per_epoch
        ),
        plateau=builders.build_plateau_rule(config.schedule),
        **{field.name: train[field.name] for field in fields(TrainingPlan) if field.name in train},
    )
    prober = None
    if config.probe:
        whole = data.train_batches(batch_size=train.global_batch_size, seed=config.seed, **placing)
        prober = Prober(
            builders.build_probes(config.probe),
            at=config.probe_at,
            every_epochs=config.probe_every_epochs,
            train_batches=whole,
            loss=checked.task.loss,
            optimizer=state.optimizer,
            folder=folder.probes,
            tracker=tracker,
            transform_gradients=lambda model: [each.transform_gradients(model) for each in built.methods.values()],
        )
    return Trainer(
        state,
        batches,
        data.evaluation_batches("validation", batch_size=data.evaluation_batch_size, shard=shard, **placing),
        num_validation=len(data.validation),
        plan=plan,
        tracker=tracker,
        prober=prober,
        checkpoint=checkpoint,
    )


def build_state(checked: Checked, built: builders.Built) -> State:
    """The model on its device and in its memory format; then its optimizer, its average and the ranks' wrapper."""
    config, precision = checked.settings, checked.precision
    train, model = config.train, built.model
    model.to(device=precision.device, memory_format=precision.memory_format)
    if precision.device.type == "cpu":
        use_matrix_products(model)
    optimizer = builders.build_optimizer(config.optimizer, model, global_batch_size=train.global_batch_size)
    ema = None if train.ema is None else Ema(model, decay=train.ema, warmup=train.ema_warmup)
    unused = any(method.leaves_unused for method in built.methods.values())
    forward_model = wrap_ddp(model, precision.device, find_unused_parameters=unused)
    return State(model, optimizer, built.methods, checked.task, precision, ema, forward_model)


def set_backends(deterministic: bool) -> None:
    """Let cuDNN look for its fastest kernels, or take kernels that give the same bits each time."""
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # every kernel writes all of its output: filling each new tensor with NaN first would only cost a pass over memory
    torch.utils.deterministic.fill_uninitialized_memory = False
