"""Command lines that nobody meant: odd values, numbers, lists, words, flags, options, interpolations and folders."""

from __future__ import annotations

import signal
from functools import cache
from pathlib import Path

import yaml

from runner.config.diagnose import chosen_options, known_settings
from runner.config.options import CONF, METHOD_GROUPS
from tortures import damage
from tortures.attack import DONE, REFUSED, TINY, Attack
from tortures.odd_words import FLAGS, FOLDERS, LENGTHS, LINKS, NUMBERS, OUTPUTS, WHOLE_WORDS, WORDS
from tortures.processes import Ended

BASE = (*TINY, "train.max_steps=1", "train.epochs=1")
LONG_SECONDS = 15  # after which a run that has begun is asked to end
STOPPED = {130: "it was long, and was asked to end", **DONE}
# what goes to a network, compiles for minutes, or starts more processes, belongs elsewhere
LEFT_OUT = ("train.compile", "train.num_devices", "train.device", "wandb.mode", "resume", "paths.outputs")
LEFT_OUT_OPTIONS = ("cifar10", "cifar100")


def attack(a: Attack) -> None:
    """Change one to three words of a command line that is right, and run it."""
    words = list(BASE)
    for _ in range(a.draw.choice((1, 1, 1, 2, 3))):
        words = _changed(a, words)
    command = [word.replace("\0", "") for word in words]
    a.title = " ".join(word for word in words if word not in BASE)
    (a.folder / "a_file").write_text("x")
    _run(a, command)


def _run(a: Attack, command: list[str]) -> None:
    def end() -> Ended:
        running = a.start(*command)
        if running.wait(LONG_SECONDS) or "folder:" not in running.out:
            return a.end(running, REFUSED, is_quiet=True)
        running.send(signal.SIGTERM)
        return a.end(running, STOPPED)

    if a.ended_or_unchanged(end).code == 0:
        a.fail(*_silently_other(a, command))


def _changed(a: Attack, words: list[str]) -> list[str]:
    """The words with one more, or with one in another's place."""
    draw = a.draw
    kind = draw.choices(("value", "option", "word", "flag", "resume", "outputs", "order"), (12, 4, 4, 2, 2, 1, 1))[0]
    if kind == "order":
        return draw.sample(words, len(words))
    if kind == "flag":
        place = draw.randint(0, len(words))
        return [*words[:place], *draw.choice(FLAGS).split(" "), *words[place:]]
    if kind == "resume":
        if not (a.folder / "outputs").exists():
            a.templates.copy("runs", damage.make_runs, a)
            (a.folder / "outputs/runs/it's").symlink_to("run")
        return [f"resume={draw.choice(FOLDERS)}", *draw.choice(([], [word for word in words if word not in BASE]))]
    if kind == "value":
        key = draw.choice(_keys())
        word = f"{key}={_value(draw)}"
    elif kind == "option":
        word = _option(draw)
        key = word.partition("=")[0]
    elif kind == "outputs":
        key, word = "paths.outputs", f"paths.outputs={draw.choice(OUTPUTS)}"
    else:
        word = draw.choice(WHOLE_WORDS)
        key = word.partition("=")[0].lstrip("+~")
    kept = [other for other in words if other.partition("=")[0] != key]
    place = draw.randint(0, len(kept))
    return [*kept[:place], word, *kept[place:]]


def _value(draw) -> str:
    kind = draw.choice(("number", "number", "number", "word", "word", "link", "long", "list"))
    if kind == "long":
        return draw.choice(("x", "x", "9", "ä", "[", "a.")) * draw.choice(LENGTHS)
    if kind == "list":
        return f"[{','.join(draw.choice(NUMBERS) for _ in range(draw.choice((1, 2, 5, 500))))}]"
    return draw.choice({"number": NUMBERS, "word": WORDS, "link": LINKS}[kind])


def _option(draw) -> str:
    """A group with options that fit or do not, or with a value that is none."""
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("_"))
    group = draw.choice(groups)
    if draw.random() < 0.3:
        return f"{group}={_value(draw)}"
    number = draw.choice((1, 1, 2, 3))
    options = [draw.choice(_options(group)) for _ in range(number)]
    if draw.random() < 0.2:
        options.append(draw.choice(_options(draw.choice(groups))))
    if draw.random() < 0.1:
        options.append("null")
    return f"{group}={options[0]}" if len(options) == 1 else f"{group}=[{','.join(options)}]"


@cache
def _options(group: str) -> list[str]:
    files = (path.relative_to(CONF / group).with_suffix("") for path in (CONF / group).rglob("*.yaml"))
    slow = ("resnet1", "resnet5", "nfnet", "nf_resnet", "deeplab", "resnet34")  # they take seconds to build
    names = sorted(map(str, files))
    return [name for name in names if name not in LEFT_OUT_OPTIONS and not name.startswith(slow)] or ["none"]


@cache
def _keys() -> list[str]:
    """Every key of the configuration: those of the base run more often than those of what it has not."""
    methods = {group: [path.stem for path in (CONF / group).glob("*.yaml")] for group in METHOD_GROUPS}
    keys = [*4 * [*known_settings(chosen_options(BASE))], *known_settings(methods)]
    return [key for key in keys if key not in LEFT_OUT]


def _silently_other(a: Attack, command: list[str]) -> list[str]:
    """Numbers that the run took for others: what config.yaml says of them."""
    found = []
    for file in sorted((a.folder / "outputs/runs").glob("*/config.yaml")):
        if (a.folder / "outputs/sweeps").exists():
            break
        config = yaml.safe_load(Path(file).read_text())
        for word in command:
            key, _, text = word.partition("=")
            if text in NUMBERS and (value := _at(config, key)) is not None and not _is_same(text, value):
                found.append(f"{word} was taken for {value!r}")
    return found


def _at(config: object, key: str) -> object:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _is_same(text: str, value: object) -> bool:
    if isinstance(value, str):
        return value == text
    try:
        return float(text) == value or (text.isdecimal() and int(text) == value)
    except (ValueError, TypeError):
        return True
