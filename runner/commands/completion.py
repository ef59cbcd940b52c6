"""What may follow on a command line, for the shell: subcommands, groups, options, settings, folders of runs.

The shell prints whatever comes out, over the prompt. So an unfinished line that cannot be read has no candidates, and
never a message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from runner.commands import SUBCOMMANDS
from runner.commands.help import by_number
from runner.config.completion import complete_override, options_in
from runner.config.options import CONF

WORD = re.compile(r"""(?:'[^']*(?:'|$)|"[^"]*(?:"|$)|[^\s'"])+""")
FLAGS = ("--cfg", "--help", "--hydra-help", "--info", "--multirun", "--version", "-m")
AFTER = {"--cfg": ("job", "hydra", "all"), "--checkpoint": ("best", "last"), "--split": ("train", "validation", "test")}
RUNS = ("runs/*", "sweeps/*/*")
SWEEPS = ("sweeps/*",)
FOLDERS = {
    "report": (*SWEEPS, *RUNS),
    "compare": RUNS,
    "evaluate": RUNS,
    "sync": (*SWEEPS, *RUNS),
    "workspace": SWEEPS,
}
OPTIONS = {
    "report": ("--help", "--into"),
    "compare": ("--help",),
    "evaluate": ("--help", "--checkpoint", "--split"),
    "describe": ("--help", "--image-size", "--methods", "--num-classes"),
    "sync": ("--help",),
    "workspace": ("--help", "--project", "--entity", "--json"),
}


def print_candidates() -> None:
    """Answer the shell, which gives the line and the place of the cursor in the environment."""
    line = os.environ.get("COMP_LINE", "")
    line = line[: int(os.environ.get("COMP_POINT", len(line)))]
    try:
        for word in candidates(line):
            print(word)
    except Exception:  # anything may be wrong with a line that is not finished
        return


def candidates(line: str) -> list[str]:
    """The words that the last word of a command line may become.

    >>> from runner.commands.completion import candidates
    >>> candidates("runner norm=[agc,w"), candidates("runner optimizer=a")
    (['norm=[agc,weight_standardization'], ['optimizer=adamw'])
    """
    words = WORD.findall(line)
    last = words.pop() if words and line.endswith(words[-1]) else ""
    words, last = [re.sub("['\"]", "", word) for word in words], re.sub("['\"]", "", last)
    program = next((number for number, word in enumerate(words) if Path(word).name == "runner"), None)
    if program is None:
        return []
    before = words[program + 1 :]
    command = before[0] if before and before[0] in SUBCOMMANDS else None
    if before and before[-1] in AFTER:
        offered: Iterable[str] = AFTER[before[-1]]
    elif last.startswith("-"):
        offered = OPTIONS[command] if command else FLAGS
    elif command == "describe":
        offered = options_in("model", [CONF])
    elif command and "=" not in last:
        offered = _folders(FOLDERS[command], "outputs")
    elif last.startswith("resume="):
        outputs = [word.partition("=")[2] for word in before if word.startswith("paths.outputs=")]
        runs = _folders(RUNS, outputs[-1] if outputs else "outputs")
        names = [Path(run).name for run in runs if last != "resume="]
        offered = [f"resume={run}" for run in [*runs, *names]]
    else:
        offered = complete_override(last, before)
        if not before:
            offered = [*SUBCOMMANDS, "plan", *offered]
    return sorted({word for word in offered if word.startswith(last)}, key=by_number)


def _folders(patterns: Iterable[str], outputs: str) -> list[str]:
    paths = [path for pattern in patterns for path in Path(outputs).glob(pattern) if path.is_dir()]
    return [str(path) for path in paths if path.name not in ("figures", "probes")]


BASH = """\
_complete_runner() {
    local line="${COMP_LINE:0:COMP_POINT}" typed="${COMP_WORDS[COMP_CWORD]}" last cut word
    local program=("${COMP_WORDS[0]}")
    case "$line" in
        *python*) [[ "$line" == *"-m runner "* ]] || return; program+=(-m runner) ;;
    esac
    last="${line##*[[:space:]]}"; last="${last#[\\"\\']}"; typed="${typed#[\\"\\']}"
    [[ "$typed" == "=" ]] && typed=""
    cut="${last%"$typed"}"   # what bash takes for a word of its own: it breaks words at = and :
    COMPREPLY=()
    while IFS= read -r word; do
        [[ "$word" == *=* || "$word" == *. || -z "$word" ]] || word+=" "
        [[ -n "$word" ]] && COMPREPLY+=("${word#"$cut"}")
    done < <(COMP_LINE="$line" COMP_POINT="${#line}" "${program[@]}" -sc query=bash 2>/dev/null)
}
complete -o nospace -o bashdefault -o default -F _complete_runner """


def print_script(question: str, called: str) -> None:
    """What the shell is to evaluate for `install=bash` or `uninstall=bash`; `called` is how the program was called."""
    name = "python" if called.endswith(".py") else Path(called).name
    print(BASH + name if question.startswith("install") else f"complete -r {name}; unset -f _complete_runner")
