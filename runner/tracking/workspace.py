"""A W&B workspace for a sweep: panels of its metrics, with runs grouped by the swept settings (wandb-workspaces)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from runner.results.metrics import SCORES
from runner.tracking.wandb_run import override_column

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

MOST_RUNS = 100  # in one panel


@dataclass
class Logged:
    """What the runs of a sweep logged to W&B: the names of metrics and summaries, the probes that drew pictures, and
    the steps at which probes measured."""

    names: set[str] = field(default_factory=set)
    pictures: set[str] = field(default_factory=set)
    moments: set[int] = field(default_factory=set)


def is_installed() -> bool:
    """Whether wandb-workspaces is installed."""
    return find_spec("wandb_workspaces") is not None


def has_account() -> bool:
    """Whether W&B finds an API key, without a question or the network."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return bool(wandb.login(prompt=False, verify=False))


def default_entity() -> str:
    """The account's default entity; asks W&B's server."""
    import wandb

    return wandb.Api().default_entity


def build_workspace(
    logged: Logged, *, title: str, group: str, swept: Sequence[str], project: str, entity: str = ""
) -> Workspace:
    """Build the workspace without saving it; metrics that were not logged get no panel.

    It shows the runs of the W&B group `group`, grouped by the overrides of the keys `swept`: lines and bars are means
    over the runs of a group, such as those with different seeds. W&B appends its own sections with all other metrics.
    """
    workspaces, _ = _library()
    from wandb_workspaces import expr

    score = next((name for name in SCORES if f"validation/{name}" in logged.names), "accuracy")
    columns = [override_column(key) for key in swept]
    shown = ["status", *_present(logged.names, f"validation/{score}", f"test/{score}", "throughput/images_per_second")]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=title,
        sections=_sections(logged, score),
        settings=workspaces.WorkspaceSettings(max_runs=MOST_RUNS),
        runset_settings=workspaces.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == group),
            groupby=[expr.Config(column) for column in columns],
            order=[expr.Ordering(expr.Summary(f"validation/{score}"), ascending=False)],
            pinned_columns=[*(f"config:{column}.value" for column in columns), *(f"summary:{name}" for name in shown)],
        ),
        auto_generate_panels=True,
    )


def as_json(workspace: Workspace) -> str:
    """The workspace as JSON for W&B's server; the library has no public function for this."""
    view = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(view, indent=2) + "\n"


def save(workspace: Workspace) -> str:
    """Save the workspace to its W&B project and return its URL. Raises wandb's errors, of many kinds."""
    return workspace.save().url


def _sections(logged: Logged, score: str) -> list[Section]:
    """The sections that have a panel."""
    workspaces, _ = _library()
    names, word = logged.names, SCORES[score]
    within = "steps" if "steps/loss" in names else "train"  # short runs log nothing within an epoch
    clipping = sorted(name for name in names if name.endswith(("/clipped_share", "/largest_ratio")))
    norms = sorted(name for name in names if name.startswith(f"{within}/") and name.endswith("/norm"))
    sections = {
        f"Score: {word}": [
            *_lines(names, (f"validation/{score}", f"validation {word}"), (f"train/{score}", f"training {word}")),
            *_bars(
                names, (f"validation/{score}", f"best validation {word}"), (f"test/{score}", f"test {word} of best.pt")
            ),
        ],
        "Loss": [
            *_lines(names, ("validation/loss", "validation loss"), ("train/loss", "training loss")),
            *_bars(names, ("validation/loss", "best validation loss"), ("test/loss", "test loss of best.pt")),
        ],
        "Divergence (the column `status` of the runs says which)": [
            *_lines(names, (f"{within}/loss", "training loss, log scale"), log_y=True),
            *_lines(names, *((name, f"gradient norm: {name}") for name in norms), log_y=True),
            *_lines(names, (f"{within}/lr", "learning rate")),
            *_bars({"step"}, ("step", "last step")),
        ],
        "Clipping": _lines(
            names, *((name, name.partition("/")[2]) for name in clipping if name.startswith(f"{within}/"))
        ),
        "Throughput": [
            *_lines(names, (f"{within}/images_per_second", "images/s")),
            *_bars(
                names,
                ("throughput/images_per_second", "training images/s"),
                ("throughput/train_seconds", "seconds of training"),
                ("throughput/peak_memory_gib", "peak GPU memory (GiB)"),
            ),
        ],
        "Probes": _probe_panels(logged),
    }
    return [
        workspaces.Section(name=name, panels=panels, is_open=name != "Probes" or len(panels) <= 6)
        for name, panels in sections.items()
        if panels
    ]


def _probe_panels(logged: Logged) -> list[Any]:
    """Pictures by step and run; numbers as lines over steps, or as bars if there was one step."""
    _, reports = _library()
    pictures = [
        reports.MediaBrowser(
            title=probe, media_keys=[f"probe/{probe}"], mode="grid", grid_x_axis="step", grid_y_axis="run"
        )
        for probe in sorted(logged.pictures)
    ]
    numbers = [(name, name.removeprefix("probe/")) for name in sorted(logged.names) if name.startswith("probe/")]
    return [*pictures, *(_bars if len(logged.moments) < 2 else _lines)(logged.names, *numbers)]


def _lines(names: Collection[str], *plots: tuple[str, str], log_y: bool | None = None) -> list[Any]:
    """A plot over steps of each metric and title, its mean and range where runs are grouped."""
    _, reports = _library()
    return [
        reports.LinePlot(
            title=title, x="Step", y=[name], log_y=log_y, groupby_aggfunc="mean", groupby_rangefunc="minmax"
        )
        for name, title in plots
        if name in names
    ]


def _bars(names: Collection[str], *plots: tuple[str, str]) -> list[Any]:
    """A bar of each run, or of each group of runs its mean and range, for each summary and title."""
    _, reports = _library()
    return [
        reports.BarPlot(
            title=title,
            metrics=[reports.SummaryMetric(name)],
            max_bars_to_show=MOST_RUNS,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for name, title in plots
        if name in names
    ]


def _present(names: Collection[str], *wanted: str) -> list[str]:
    return [name for name in wanted if name in names]


def _library() -> tuple[Any, Any]:
    """The library's modules of workspaces and of panels, imported without their deprecation warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    return workspaces, reports
