"""Where probes put what they found: probes/<probe>.npz, or <probe>-step<n>.npz where there were several moments."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class ProbeFile(NamedTuple):
    """A probe's name, the step of the moment (None where the name tells none) and the file."""

    probe: str
    step: int | None
    path: Path


def probe_files(folder: Path, suffix: str) -> list[ProbeFile]:
    """The files of the run in `folder` that end in `suffix`, those of one probe by step."""
    found = []
    for path in (folder / "probes").glob(f"*.{suffix}"):
        probe, _, step = path.stem.partition("-step")
        found.append(ProbeFile(probe, int(step) if step.isdigit() else None, path))
    return sorted(found, key=lambda file: (file.probe, -1 if file.step is None else file.step))
