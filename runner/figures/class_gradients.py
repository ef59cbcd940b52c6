"""The figure of the gradients at the logits: heat maps, sample by class."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from runner.figures import drawing


def figure(arms: drawing.Arms) -> Figure:
    """Heat maps of B dL/dz, an arm a column: above the first batch, below the average; light is positive.

    Of several seeds the maps are the first one's, and the share of the most frequent prediction has the range of all.
    """
    shares = [drawing.median_and_range(drawing.numbers_of(seeds, "most_frequent_share"), ".0%") for _, seeds in arms]
    arms = drawing.first_seeds(arms)
    drawn = Figure(figsize=(1 + 3.4 * len(arms), 7), layout="constrained")
    panels = drawn.subplots(2, len(arms), squeeze=False)
    for name, row in zip(("gradient", "mean_gradient"), panels, strict=True):
        maps = [measured.arrays[name] * len(measured.arrays[name]) for _, measured in arms]
        limit = max(np.abs(values[np.isfinite(values)]).max(initial=0) for values in maps) or 1.0
        for axes, values, (arm, measured), share in zip(row, maps, arms, shares, strict=True):
            if name == "gradient":
                title = f"{arm}\none batch; most frequent prediction:\n{share} of the samples".lstrip()
            else:
                num_batches = measured.numbers["num_batches"]
                title = f"average of {num_batches:.0f} batch{'es' if num_batches > 1 else ''}"
            image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="cividis", vmin=-limit, vmax=limit)
            axes.locator_params(axis="x", integer=True)
            axes.locator_params(axis="y", integer=True)
            axes.set_title(title, fontsize=9)
            axes.set(xlabel="class", ylabel="sample of the batch")
        drawn.colorbar(image, ax=row, label="batch size x dL/dz")
    drawn.suptitle("Gradient of the loss at the logits")
    return drawn
