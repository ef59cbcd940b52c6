"""The subcommands of `runner`, each in a module of its own with `main(arguments)`, and the flags that need no run."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from runner.config.text import SettingError, did_you_mean

SUBCOMMANDS = {
    "report": "a report of a sweep or of any runs: HTML, Markdown, CSV, figures",
    "compare": "what differs between runs: settings, code, results",
    "evaluate": "the scores of a run's checkpoint on any split or data set",
    "describe": "every model's parameters, multiply-adds and activations",
    "sync": "the upload to W&B of what was recorded offline",
    "workspace": "a W&B workspace of panels for a sweep",
}
ALL = f"Subcommands: {', '.join(['plan', *SUBCOMMANDS])}."
HELP = ("--help", "-h")
COMPLETION = ("--shell-completion", "-sc")


def answer(arguments: Sequence[str]) -> bool:
    """Run the subcommand that the first argument names, or answer --help, --version or the shell.

    Returns False for the command line of a run or a sweep. Modules are imported on demand, so that --help answers at
    once and a report imports no torch.
    """
    first, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if first in SUBCOMMANDS:
            import_module(f"runner.commands.{first}").main(rest)
        elif "--version" in arguments:
            from runner import __version__

            print(f"runner {__version__}")
        elif not {*HELP}.isdisjoint(arguments):
            from runner.commands.help import print_help

            print_help([word for word in arguments if not word.startswith("-")])
        elif first in COMPLETION and re.fullmatch(r"query=\w+|(un)?install=bash", "".join(rest)):
            from runner.commands.completion import print_candidates, print_script

            print_candidates() if rest[0].startswith("query") else print_script(rest[0], sys.argv[0])
        elif re.fullmatch("[a-z_]+", first) and first != "plan":
            raise SettingError(f"{first}: there is no such subcommand. {did_you_mean(first, SUBCOMMANDS) or ALL}")
        else:
            return False
        sys.stdout.flush()
    except SettingError as error:
        from runner.config.diagnose import exit_config_error

        exit_config_error(error)
    except BrokenPipeError:  # its reader has what it wants, as in `runner --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush as Python ends
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    return True
