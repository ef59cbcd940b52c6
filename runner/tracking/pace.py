"""How far a sweep is, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from runner.results.run_state import FAILED, RESULTS, TO_DO, RunState


class Pace:
    """The share of a sweep's images that its jobs have trained on, and the time left at the pace since `begin`."""

    def __init__(self, work: Mapping[str, tuple[int, int]], added: Collection[str] = ()) -> None:
        self.shares = dict.fromkeys(work, 0.0)  # of each job
        self._waiting = {*added}  # jobs that may never begin
        self._steps = {name: steps for name, (steps, _) in work.items()}
        self._images = {name: max(steps, 1) * images for name, (steps, images) in work.items()}
        self._over: set[str] = set()
        self._first = (time.monotonic(), 0.0)

    def note(self, name: str, state: RunState) -> None:
        """Note what became of a job."""
        if name not in self.shares or state.status == TO_DO:
            return
        self._waiting.discard(name)
        if state.status in (*RESULTS, FAILED):
            self._over.add(name)
        if state.status == "completed":
            self.shares[name] = 1.0
        elif self._steps[name]:
            self.shares[name] = max(self.shares[name], min(state.step / self._steps[name], 1.0))

    def begin(self) -> None:
        """Take the pace from here on."""
        self._first = (time.monotonic(), self._trained())

    def read(self) -> tuple[float, float | None]:
        """The share of the work that is behind the sweep, and the seconds left; None before anything was trained."""
        since, trained_before = self._first
        trained = self._trained()
        not_left = self._over | self._waiting
        left = sum(self._images[name] * (1 - share) for name, share in self.shares.items() if name not in not_left)
        share = trained / (trained + left) if trained + left else 1.0
        gained = trained - trained_before
        return share, (time.monotonic() - since) * left / gained if gained else None

    def _trained(self) -> float:
        return sum(self._images[name] * share for name, share in self.shares.items())
