"""The figures by their probes' names, of measurements made by hand, as a report draws them."""

from functools import cache

import numpy as np
import pytest

from runner.config.options import CONF
from runner.figures import NAMES, draw
from runner.results.measurement import Measurement


def measurement(name, scale=1.0):
    """What the probe `name` could have found; the values grow with `scale`."""
    layers = {"layers": "conv1\nconv2\nconv3"}
    rising = scale * np.array([1.0, 2.0, 4.0])
    if name == "learning_curves":
        columns = {"epoch": np.arange(1.0, 4), "loss": rising[::-1], "accuracy": rising / 10}
        arrays = {f"{split}/{key}": value for split in ("train", "validation") for key, value in columns.items()}
        return Measurement(arrays, {}, {"score": "accuracy"})
    if name == "gradient_histogram":
        tail = {"tail_probability": np.array([0.01, 0.1, 1.0]), "tail_value": rising[::-1]}
        numbers = {"excess_kurtosis": 3 * scale, "tail_index": 2 * scale}
        return Measurement(
            {"counts": np.array([1, 9, 2]), "edges": np.arange(4.0), **tail}, numbers, {"layer": "conv1"}
        )
    if name == "loss_landscape":
        steps = np.array([1e-3, 1e-2, 1e-1])
        return Measurement(
            {"step_size": steps, "relative_loss": np.array([[0.9, 0.5, 7.0], [0.8, 0.6, 9.0]]) * scale}, {}
        )
    if name == "divergence_trace":
        arrays = {"progress": np.arange(2.0), "loss": np.array([1.0, np.inf])}
        records = {"mean": np.stack([rising, 10 * rising]), "variance": np.stack([rising, 100 * rising])}
        return Measurement(arrays | records, {"diverged_after": 1.0 if scale > 1 else np.inf}, layers)
    if name == "activation_statistics":
        arrays = {"depth": np.arange(3), "mean": rising[None], "std": 10 * rising[None]}
        return Measurement(arrays, {"slope_log10_std": 0.1 * scale}, layers)
    if name == "class_gradients":
        arrays = {key: scale * np.array([[0.1, -0.1], [-0.2, 0.2]]) for key in ("gradient", "mean_gradient")}
        return Measurement(arrays, {"most_frequent_share": scale / 10, "num_batches": 2.0})
    if name == "gradient_terms":
        return Measurement({"ratio": rising}, {}, layers)
    if name == "signal_propagation":
        measured = dict.fromkeys(("avg_sq_mean", "avg_var", "res_avg_var"), rising)
        return Measurement(measured | {"expected_avg_var": np.array([np.nan, 1.0, 2.0])}, {}, {"places": "stem\na\nb"})
    if name == "clipping":
        quantiles = 0.001 * rising[:, None] * np.array([0.0, 1.0, 2.0, 4.0, 8.0])
        arrays = {"level": np.linspace(0, 1, 5), "ratio": quantiles, "share_above": rising / 100}
        return Measurement(
            arrays, {"share_above": scale / 10, "clip": 0.01}, {"parameters": "a.weight\na.bias\nb.weight"}
        )
    if name == "train_eval_discrepancy":
        numbers = {"loss_batch_statistics": scale, "loss_running_statistics": 2 * scale, "changed_predictions": 0.25}
        return Measurement({"distance": np.stack([rising, 3 * rising])}, numbers, layers)
    if name == "largest_rate":
        arrays = {"log10_rate": np.log10(rising), "last_loss": np.array([1.0, 2.0, np.inf])}
        return Measurement(arrays, {"rate": scale, "log10_rate": np.log10(scale)})
    numbers = {"largest_eigenvalue": 4 * scale, "converged": float(scale < 2)}
    return Measurement({"estimate": rising}, numbers, {"mode": "train"})


def seeds(name):
    return [measurement(name, scale) for scale in (1.0, 3.0, 2.0)]


@cache
def of_two_arms(name):
    """The figure of two arms of three seeds each, laid out."""
    figure = draw(name, [("a longer name of an arm", seeds(name)), ("no batch norm", seeds(name))])
    figure.draw_without_rendering()
    return figure


def texts(figure):
    """All that is written in and around the panels, without the ticks."""
    found = [figure.get_suptitle(), *(text.get_text() for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        found += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
    return "\n".join(found)


def test_every_probe_has_a_figure():
    assert set(NAMES) == {file.stem for file in (CONF / "probe").glob("*.yaml")}
    with pytest.raises(ValueError, match=r"figure=sharpnes: .*Choose from activation_statistics, class_gradients"):
        draw("sharpnes", measurement("sharpness"))


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_told_of_where_there_are_several(name):
    for arms in (measurement(name), [("a", measurement(name)), ("b", [measurement(name, 2.0)])]):
        figure = draw(name, arms)
        figure.draw_without_rendering()
        assert "seed" not in texts(figure)
        assert "models" not in texts(figure)
    said = {"activation_statistics": "3 models; lines", "gradient_histogram": "seed 1 of 3"}
    said |= dict.fromkeys(("class_gradients", "divergence_trace"), "seed 1 of 3")
    assert said.get(name, "3 seeds;") in texts(of_two_arms(name))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_reaches_over_the_edge_or_into_another_panel(name):
    figure = of_two_arms(name)
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    for index, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 + 1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1
        for other in boxes[index + 1 :]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert width < 1 or height < 1, (name, box, other)
