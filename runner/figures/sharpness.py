"""The figure of sharpness: how the power iteration settled."""

from __future__ import annotations

from matplotlib.figure import Figure

from runner.figures.arms import Arms, labelled, legend_below, line_style, median_and_range, numbers_of, seeds_note


def figure(arms: Arms) -> Figure:
    """How the power iteration settled: the estimate by iteration, a line a seed, and the arm's last values."""
    arms = labelled(arms)
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    for index, (label, seeds) in enumerate(arms):
        unsettled = sum(not converged for converged in numbers_of(seeds, "converged"))
        ending = f", {unsettled} of {len(seeds)} not converged" if len(seeds) > 1 else ", not converged"
        value = median_and_range(numbers_of(seeds, "largest_eigenvalue"), ".3g")
        name = f"{label}: {value}{ending if unsettled else ''}".removeprefix(": ")
        for place, found in enumerate(seeds):
            estimates = found.arrays["estimate"]
            style = line_style(index) | {"label": name if place == 0 else None}
            axes.plot(range(1, len(estimates) + 1), estimates, **style)
    measured = [found for _, seeds in arms for found in seeds]
    if all((found.arrays["estimate"] > 0).all() for found in measured):
        axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    modes = " and ".join(sorted({found.texts["mode"] for found in measured}))
    axes.set_xlabel("Hessian-vector products")
    axes.set_ylabel("estimate of the eigenvalue")
    note = seeds_note((len(seeds) for _, seeds in arms), "a line each, medians with their range")
    axes.set_title(f"Sharpness: largest Hessian eigenvalue ({modes} mode){note}")
    axes.grid(alpha=0.3)
    legend_below(figure, axes)
    return figure
