"""The figure of the power iteration for sharpness."""

from __future__ import annotations

from matplotlib.figure import Figure

from runner.figures import drawing


def figure(arms: drawing.Arms) -> Figure:
    """The estimate of the eigenvalue by iteration, a line for each seed, with the arm's last values."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    for index, (label, seeds) in enumerate(arms):
        unsettled = sum(not converged for converged in drawing.numbers_of(seeds, "converged"))
        ending = f", {unsettled} of {len(seeds)} not converged" if len(seeds) > 1 else ", not converged"
        value = drawing.median_and_range(drawing.numbers_of(seeds, "largest_eigenvalue"), ".3g")
        name = f"{label}: {value}{ending if unsettled else ''}".removeprefix(": ")
        for place, measurement in enumerate(seeds):
            estimates = measurement.arrays["estimate"]
            style = drawing.line_style(index) | {"label": name if place == 0 else None}
            axes.plot(range(1, len(estimates) + 1), estimates, **style)
    measured = [measurement for _, seeds in arms for measurement in seeds]
    if all((measurement.arrays["estimate"] > 0).all() for measurement in measured):
        axes.set_yscale("log")
    thresholds = {measurement.numbers.get("stability_threshold") for measurement in measured} - {None}
    for number, threshold in enumerate(sorted(thresholds)):
        axes.axhline(threshold, color="0.5", linestyle=":", label=None if number else "stable up to here")
    drawing.layer_axis(axes)
    modes = " and ".join(sorted({measurement.texts["mode"] for measurement in measured}))
    axes.set_xlabel("Hessian-vector products")
    axes.set_ylabel("estimate of the eigenvalue")
    note = drawing.seeds_note(arms, "a line each, medians with their range")
    axes.set_title(f"Sharpness: largest Hessian eigenvalue ({modes} mode){note}")
    drawing.legend_below(figure, axes)
    return figure
