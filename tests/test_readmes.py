"""The READMEs: every command in them is one that this program takes, and every link leads somewhere."""

import argparse
import itertools
import re
import shlex
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from runner.commands import SUBCOMMANDS
from runner.commands.evaluate import evaluate_run
from runner.config.arguments import hydra_words
from runner.config.extensions import add_search_path
from runner.config.grammar import parsed
from runner.config.overrides import prepare_overrides
from runner.sweeps.study import with_axes

ROOT = Path(__file__).parents[1]
README_FILES = sorted(
    file
    for place in (ROOT, *(ROOT / name for name in ("conf", "runner", "scripts", "tests")))
    for file in (place.rglob("README.md") if place != ROOT else place.glob("README.md"))
)
FOLDERS = ("methods", "models", "data", "optim", "probes", "training", "sweeps", "report", "tracking")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("python", "runner", "torchrun", "make", "pip", "git", "wandb", "eval", "source")


def blocks(text, language):
    return [content for name, content in FENCE.findall(text) if name == language]


def commands(text):
    """The command lines of a README: the lines of its blocks without a language, and what stands between backticks."""
    lines = [line for block in blocks(text, "") for line in block.splitlines()]
    prose = FENCE.sub("", text)
    inline = [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose)]
    return lines + [words for words in inline if re.match(r"(python|runner|make|pip|eval|torchrun) ", words)]


COMMANDS = sorted({(str(file.relative_to(ROOT)), line) for file in README_FILES for line in commands(file.read_text())})


def shell_words(line):
    """Its words without the comment behind them."""
    return shlex.split(line, comments=True)


def program_words(words):
    """The arguments of the runner, or None for another program."""
    if "-m" in words and words[words.index("-m") + 1 :][:1] == ["runner"]:
        return words[words.index("-m") + 2 :]
    return words[1:] if words[0] == "runner" else None


class Read(Exception):
    """The arguments were read."""


@pytest.fixture
def reads_arguments(monkeypatch):
    """`reads_arguments(name, arguments)`: a subcommand takes these; it is not run."""

    def reading(method):
        def read(parser, arguments):
            method(parser, arguments)
            raise Read

        return read

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, reading(getattr(argparse.ArgumentParser, name)))

    def call(name, arguments):
        with pytest.raises(Read):
            import_module(f"runner.commands.{name}").main(arguments)

    return call


@pytest.fixture
def takes(composed, reads_arguments):
    """`takes(arguments)`: the runner takes these: a subcommand reads them, else the first and the last job compose."""

    def call(arguments):
        if arguments[:1] and arguments[0] in SUBCOMMANDS:
            if arguments[1:]:  # else it is only named
                reads_arguments(arguments[0], arguments[1:])
            return
        words = [word for word in arguments if word not in ("plan", "-m", "--cfg", "job") and "resume=" not in word]
        if {"--help", "--version", "-sc"} & {*words}:
            return
        words = [word for word in prepare_overrides(with_axes(add_search_path(hydra_words(words)))) if word != "-m"]
        values = [each.sweep_string_iterator() if each.is_sweep_override() else None for each in map(parsed, words)]
        jobs = [
            [word if value is None else f"{key}={value}" for word, key, value in zip(words, keys, job, strict=True)]
            for keys in [[word.partition("=")[0] for word in words]]
            for job in itertools.product(*([None] if each is None else [*each] for each in values))
        ]
        for job in (jobs[0], jobs[-1]):
            composed(*(word for word in job if not word.startswith("hydra")))

    return call


@pytest.mark.parametrize(("readme", "line"), COMMANDS, ids=lambda text: text)
def test_a_command_is_one_that_there_is(readme, line, takes, tmp_path, monkeypatch):
    if "FOLDER" in line or "=NAME" in line:
        return  # run below, with such a folder; the form of a command
    monkeypatch.chdir(tmp_path)
    words = shell_words(line)
    assert words, line
    assert words[0] in PROGRAMS, line
    arguments = program_words(words)
    if arguments is not None:
        takes(arguments)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
        script = Path(words[1]).stem
        if script in SUBCOMMANDS:
            takes([script, *words[2:]])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        given = dict(word.split("=", 1) for word in words[2:])
        if words[1] == "run" and given.get("ARGS", "...") != "...":
            takes(shlex.split(given["ARGS"]))
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[2][2:-1] in extras


def anchors(text):
    """The names of its headings in links."""
    return [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)", text)]


@pytest.mark.parametrize("file", README_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file):
    text = FENCE.sub("", file.read_text())
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        tracked = subprocess.run(["git", "ls-files", target], cwd=ROOT, capture_output=True, text=True).stdout
        assert tracked, f"{link}: it is not in the repository"
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("file", README_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_readme_of_a_folder_says_how_to_add_one(file):
    text = file.read_text()
    if file.parent == ROOT:
        assert len(text.splitlines()) <= 160
    else:
        assert re.search(r"^## Adding ", text, re.MULTILINE)


def test_the_folders_have_one():
    folders = {str(file.parent.relative_to(ROOT)) for file in README_FILES}
    assert folders >= {*(f"runner/{name}" for name in FOLDERS), "conf", "conf/sweep", "scripts", "."}


def write_examples(text, folder):
    """Write the files that a README shows, `FOLDER/NAME`, into a folder."""
    for name, content in re.findall(
        r"`FOLDER/([\w/]+\.(?:py|yaml))`(?:(?!```).)*```\w+\n(.*?)^```$", text, re.M | re.S
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


WITH_EXAMPLES = [file for file in README_FILES if "FOLDER " in file.read_text() and "`FOLDER/" in file.read_text()]


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_readme_adds_runs_as_it_is_shown(file, runner, tmp_path):
    """From outside: a method, a model, a data set, an optimizer, a schedule, a probe, a recipe, a study."""
    folder = tmp_path / "own"
    write_examples(file.read_text(), folder)
    lines = [line for line in commands(file.read_text()) if "FOLDER " in line and line.startswith("python")]
    assert lines
    runs = set()
    for line in lines:
        arguments = [word.replace("FOLDER", str(folder)) for word in program_words(shell_words(line))]
        short = ["train.max_steps=1", "train.global_batch_size=8", "train.device=cpu", "wandb.mode=disabled"]
        if not any(word.startswith(("dataset=", "experiment=")) for word in arguments):
            short += ["dataset=random", "dataset.num_images=32", "dataset.image_size=8"]
        if "experiment=rates" in arguments:
            short += ["seed=0", "dataset=random", "dataset.num_images=32", "dataset.image_size=8"]
        outcome = runner(*arguments, *short)
        assert outcome.code == 0, outcome.err + outcome.out
        for run in {*(tmp_path / "outputs/runs").glob("*")} - runs:
            runs.add(run)
            paths = [word for word in arguments if word.startswith("paths.")]
            assert "accuracy" in evaluate_run(run, "best", "test", [*paths, "train.device=cpu"])
    if "experiment=rates" in lines[0]:
        [report] = (tmp_path / "outputs/sweeps").glob("*/report.md")
        assert "At a large rate batch norm trains" in report.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("file", README_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_is_shown_in_plain_python_runs(file):
    for code in blocks(file.read_text(), "python"):
        if "adaptive_clip_grad_" in code:
            exec(code, {})
