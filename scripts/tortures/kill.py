"""SIGKILL at any moment, and at any call that changes a file; then the run goes on, as if it never was stopped.

The calls are the same each time; what a moment in seconds hits depends on the machine.
"""

from __future__ import annotations

import signal

from tortures import survival
from tortures.attack import DONE, RUN, TINY, Attack, Whole
from tortures.file_calls import Stop

RECIPES = {
    "plain": ("train.log_every_steps=1",),
    "methods": (
        "model=nf_resnet26",
        "model.width=0.25",
        "norm=agc",
        "regularization=[stochastic_depth,mixup]",
        "stochastic_depth.drop_rate=0.5",
        "train.ema=0.9",
        "train.keep_best=2",
    ),
    "adamw": (
        "optimizer=adamw",
        "norm=ghost_batchnorm",
        "ghost_batchnorm.ghost_batch_size=4",
        "regularization=dropout",
    ),
    "probes": ("probe=[gradient_histogram]", "probe_at=[0]", "probe_every_epochs=1"),
}
STEPS = ("train.epochs=3", "train.checkpoint_every_steps=1", "name=run", "train.auto_resume=true")
KILLED = {-signal.SIGKILL: "it was killed", **DONE}
NOTHING_LEFT = {2: "it had come to its end"}
MOST_KILLS = 3


def attack(a: Attack) -> None:
    """Kill a run once or a few times, let it go on, and compare the end."""
    recipe = a.draw.choice(list(RECIPES))
    whole = whole_run(a, recipe)
    command, folder, ways = (*TINY, *RECIPES[recipe], *STEPS), a.folder / RUN, []
    for _ in range(a.draw.randint(1, MOST_KILLS)):
        goes_on = a.draw.random() < 0.5 and (folder / "overrides.yaml").exists()
        words = (f"resume={RUN}",) if goes_on else command
        had_checkpoint = (folder / "checkpoints/last.pt").exists()
        if a.draw.random() < 0.7:
            at = a.draw.randint(1, whole.calls)
            ways.append(f"call {at}")
            running = a.start(*words, act=Stop(at))
        else:
            seconds = a.draw.uniform(0, 1) * whole.seconds
            ways.append(f"{seconds:.2f} s")
            running = a.start(*words)
            running.wait(seconds)
            running.send(signal.SIGKILL)
        a.end(running, {**KILLED, **(NOTHING_LEFT if goes_on else {})})
        if had_checkpoint and (fault := survival.checkpoint_fault(folder)):
            a.fail(fault)
    a.title = f"SIGKILL of a run ({recipe}) at {', '.join(ways)}"
    a.run(*command)
    a.compare(whole.result, folder)
    a.expect_no_more_files(whole)
    files, expected = (survival.tree(run).keys() for run in (folder, whole.folder / RUN))
    if fewer := sorted(expected - files - {"checkpoints/previous.pt"}):  # there from the second checkpoint on
        a.fail(f"files that a whole run leaves are missing: {', '.join(fewer[:3])}")


def whole_run(a: Attack, recipe: str) -> Whole:
    """The run of a recipe, left alone."""
    return a.templates.whole(f"whole-{recipe}", *TINY, *RECIPES[recipe], *STEPS)
