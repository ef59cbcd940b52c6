"""How often verdicts are wrong where two methods are equal: `python scripts/calibrate_verdicts.py [--sequential]`.

Each study trains both methods with some seeds and tests them on the same images. An image has an ease, each method a
bias on it (drawn anew for each study, so that neither is better over all images), each seed a level and a bias on each
image; an image is classified right if their sum is above 0. The claim is that the methods differ. Shown is the share of
studies that decide it: with 95 % intervals at most 5 %. Beside it stands the t interval over seeds alone, which takes
the test images for all that there are.

`--sequential` judges each study after every seed from the fourth to the thirtieth, as `sweep.decide` does, and shows
the share of studies that any of these looks decides, for each kind of claim; beside it that of the rule of one look.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the runner beside this script, installed or not

from runner.claims.choice import chance_of_choice
from runner.claims.sequential import (
    FIRST_LOOK,
    SequentialMean,
    SequentialMedian,
    SequentialShareDifference,
    chance_of_winners,
)
from runner.results.proportions import Share, ShareDifference
from runner.results.statistics import LEVEL, Median, mean_over_images, t_interval

LOOKS = range(FIRST_LOOK, 31)
SEEDS = (3, 5, 10, 30)
IMAGES = (359, 2000, 10_000)
SPREADS = {  # deviations of: a method's bias on an image, a seed's level, a seed's bias on an image
    "images differ, seeds little": (1.5, 0.0, 0.7),
    "images and seeds differ": (1.0, 0.15, 0.7),
    "seeds differ alone": (0.0, 0.3, 0.7),
}
EASE = (3.0, 2.5)  # mean and deviation: about 88 % of the images are classified right
MOST = 0.06  # of all studies: 5 % and the simulation's own error


def main() -> None:
    """Simulate, and print a table; exit code 1 if a share lies above 5 % by more than its own error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--studies", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sequential", action="store_true", help="judge each study after every seed")
    arguments = parser.parse_args()
    if arguments.studies < 1:
        parser.error(f"--studies {arguments.studies}: it must be at least 1")
    heading = "any look / a rule for one" if arguments.sequential else "with images / without"
    table = Table(f"% decided: {heading}", *(f"{n:,} images" for n in IMAGES), box=None, pad_edge=False)
    console, shares = Console(highlight=False), []
    simulate = partial(_any_look, of_images) if arguments.sequential else _decided
    for (name, spreads), seeds in product(SPREADS.items(), [LOOKS[-1]] if arguments.sequential else SEEDS):
        cells = []
        for images in IMAGES:
            ours, other = simulate(seeds, images, *spreads, number=arguments.studies, seed=arguments.seed)
            shares.append(ours)
            cells.append(f"{100 * ours:.1f} / {100 * other:.1f}")
        table.add_row(f"{name}, {seeds} seeds", *cells)
    for name, kind in OTHER_KINDS.items() if arguments.sequential else ():
        ours, other = _any_look(kind, LOOKS[-1], number=arguments.studies, seed=arguments.seed)
        shares.append(ours)
        table.add_row(name, f"{100 * ours:.1f} / {100 * other:.1f}")
    console.print(table)
    error = 2 * math.sqrt(0.05 * 0.95 / arguments.studies)
    worst = max(shares)
    console.print(f"Equal methods are told apart in at most {100 * worst:.1f} % of {arguments.studies:,} studies.")
    sys.exit(worst > MOST + error)


def _decided(
    seeds: int, images: int, of_method: float, of_seed: float, of_both: float, *, number: int, seed: int
) -> tuple[float, float]:
    """The shares of studies of equal methods that decide between them: by seeds and images, and by seeds alone."""
    generator = np.random.default_rng([seed, seeds, images])
    ours = alone = 0
    for _ in range(number):
        values = _differences(generator, seeds, images, of_method, of_seed, of_both)
        ours += _excludes_zero(mean_over_images(values).interval())
        alone += _excludes_zero(t_interval(values.mean(1).tolist()))
    return ours / number, alone / number


def _differences(
    generator: np.random.Generator, seeds: int, images: int, of_method: float, of_seed: float, of_both: float
) -> np.ndarray:
    """Right (1) less wrong of two equal methods, (seeds, images)."""
    ease = generator.normal(*EASE, images)
    right = []
    for _ in range(2):
        level = generator.normal(0, of_seed, (seeds, 1)) + generator.normal(0, of_both, (seeds, images))
        right.append(ease + generator.normal(0, of_method, images) + level > 0)
    return right[0].astype(float) - right[1]


def _any_look(kind: Callable, seeds: int, *about: float, number: int, seed: int) -> tuple[float, float]:
    """The shares of studies of equal methods that some look decides: by the sequential rule, and by that of one look.

    `kind` draws a study and returns both rules, which say of the first n seeds whether they decide.
    """
    generator = np.random.default_rng([seed, seeds, *(int(1000 * each) for each in about)])
    counts = np.zeros(2)
    for _ in range(number):
        rules = kind(generator, seeds, *about)
        counts += [any(rule(n) for n in LOOKS if n <= seeds) for rule in rules]
    return tuple((counts / number).tolist())


def of_images(generator: np.random.Generator, seeds: int, *about: float) -> Sequence[Callable[[int], bool]]:
    """Means over seeds and images."""
    values = _differences(generator, seeds, *about)
    means = {n: mean_over_images(values[:n]) for n in LOOKS if n <= seeds}
    return (
        lambda n: _excludes_zero(SequentialMean(**vars(means[n])).interval()),
        lambda n: _excludes_zero(means[n].interval()),
    )


def of_means(generator: np.random.Generator, seeds: int) -> Sequence[Callable[[int], bool]]:
    """Means over seeds alone."""
    values = generator.normal(size=(seeds, 1))
    means = {n: mean_over_images(values[:n], span=0.0) for n in LOOKS}
    return (
        lambda n: _excludes_zero(SequentialMean(**vars(means[n])).interval()),
        lambda n: _excludes_zero(means[n].interval()),
    )


def of_medians(generator: np.random.Generator, seeds: int) -> Sequence[Callable[[int], bool]]:
    """Signs of seeds."""
    values = tuple(generator.normal(size=seeds))
    return tuple(lambda n, kind=kind: kind(values[:n]).p_value(0) <= LEVEL for kind in (SequentialMedian, Median))


def of_shares(share: float, generator: np.random.Generator, seeds: int) -> Sequence[Callable[[int], bool]]:
    """Diverged runs, one of each method a seed."""
    rows = [(int(a), 1, int(b), 1) for a, b in generator.random((seeds, 2)) < share]

    def both(n: int) -> tuple[Share, Share]:
        return tuple(Share(sum(row[side] for row in rows[:n]), n) for side in (0, 2))

    return (
        lambda n: SequentialShareDifference(*both(n), tuple(rows[:n])).p_value(0) <= LEVEL,
        lambda n: ShareDifference(*both(n)).p_value(0) <= LEVEL,
    )


def of_choices(generator: np.random.Generator, seeds: int) -> Sequence[Callable[[int], bool]]:
    """The best of five settings that change nothing, at two batch sizes."""
    ranks = [generator.permuted(np.broadcast_to(np.arange(5.0), (seeds, 5)), axis=1) for _ in range(2)]
    first = [[group[:n] for group in ranks] for n in range(seeds + 1)]
    return (
        lambda n: chance_of_winners(first[n]) <= LEVEL,
        lambda n: n in FEW_LOOKS and chance_of_choice(first[n]) <= LEVEL,
    )


FEW_LOOKS = (4, 10, 30)  # of the permutation test, which is slow
OTHER_KINDS = {
    "means of normal values": of_means,
    "medians": of_medians,
    "10 % diverged": partial(of_shares, 0.1),
    "50 % diverged": partial(of_shares, 0.5),
    "the best of 5 settings (one look: at 4, 10, 30)": of_choices,
}


def _excludes_zero(interval: tuple[float, float]) -> bool:
    low, high = interval
    return low > 0 or high < 0


if __name__ == "__main__":
    main()
