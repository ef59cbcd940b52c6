"""How often verdicts are wrong where two methods are equal: `python scripts/calibrate_verdicts.py [--studies N]`.

Each study trains both methods with some seeds and tests them on the same images. An image has an ease, each method a
bias on it (drawn anew for each study, so that neither is better over all images), each seed a level and a bias on each
image; an image is classified right if their sum is above 0. The claim is that the methods differ. Shown is the share of
studies that decide it: with 95 % intervals at most 5 %. Beside it stands the t interval over seeds alone, which takes
the test images for all that there are.
"""

from __future__ import annotations

import argparse
import math
import sys
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the runner beside this script, installed or not

from runner.results.statistics import mean_over_images, t_interval

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
    arguments = parser.parse_args()
    if arguments.studies < 1:
        parser.error(f"--studies {arguments.studies}: it must be at least 1")
    table = Table("% decided: with images / without", *(f"{n:,} images" for n in IMAGES), box=None, pad_edge=False)
    shares = []
    for (name, spreads), seeds in product(SPREADS.items(), SEEDS):
        cells = []
        for images in IMAGES:
            ours, alone = _decided(seeds, images, *spreads, number=arguments.studies, seed=arguments.seed)
            shares.append(ours)
            cells.append(f"{100 * ours:.1f} / {100 * alone:.1f}")
        table.add_row(f"{name}, {seeds} seeds", *cells)
    console = Console(highlight=False)
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
        ease = generator.normal(*EASE, images)
        right = []
        for _ in range(2):
            level = generator.normal(0, of_seed, (seeds, 1)) + generator.normal(0, of_both, (seeds, images))
            right.append(ease + generator.normal(0, of_method, images) + level > 0)
        values = right[0].astype(float) - right[1]
        ours += _excludes_zero(mean_over_images(values).interval())
        alone += _excludes_zero(t_interval(values.mean(1).tolist()))
    return ours / number, alone / number


def _excludes_zero(interval: tuple[float, float]) -> bool:
    low, high = interval
    return low > 0 or high < 0


if __name__ == "__main__":
    main()
