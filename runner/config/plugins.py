"""Launchers and sweepers: which of Hydra's plugins this program runs with, and what installs them."""

from __future__ import annotations

from importlib.util import find_spec

from runner.config.text import did_you_mean

LAUNCHER, SWEEPER = "hydra/launcher", "hydra/sweeper"
LAUNCHERS = {
    "basic": None,
    "joblib": "joblib",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "ray": "ray",
}


def plugin_fault(key: str, option: object) -> str | None:
    """What is wrong with the choice of a launcher or a sweeper, with the remedy; None if nothing is.

    >>> from runner.config.plugins import plugin_fault
    >>> plugin_fault("hydra/sweeper", "optuna").partition(";")[0]
    'there is no other sweeper than basic'
    """
    if key == SWEEPER and option != "basic":
        return "there is no other sweeper than basic; type the values themselves, as in -m agc.clip=0.01,0.02."
    if key != LAUNCHER:
        return None
    if option not in LAUNCHERS:
        hint = did_you_mean(str(option), LAUNCHERS) or f"Choose one of {', '.join(LAUNCHERS)}."
        return f"there is no such launcher. {hint}"
    package = LAUNCHERS[option]
    if package is None or find_spec(f"hydra_plugins.hydra_{package}_launcher"):
        return None
    return f"it is not installed; pip install hydra-{package}-launcher."
