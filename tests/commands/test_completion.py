"""Tab completion: the shell's question, and the answer in a bash that is typed into."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from runner.commands import SUBCOMMANDS
from runner.commands.completion import candidates
from runner.config.validation import CONF

PROGRAM = Path(sys.executable).with_name("runner")


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """A working directory with two runs, a sweep and its job."""
    for name in ("runs/first", "runs/second", "sweeps/clips/agc.clip=0.01-0a1b"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("runner norm=", ["norm=agc", "norm=ghost_batchnorm", "norm=weight_standardization"]),
        ("runner model=nf", ["model=nf_resnet26", "model=nf_resnet50", "model=nf_resnet101"]),
        ("runner norm=agc agc.c", ["agc.clip="]),
        ("runner trian.epochs=1 norm=agc agc.c", ["agc.clip="]),
        ("runner plan norm=none none.s", ["none.skipinit="]),
        ("runner -m norm=none,agc agc.c", ["agc.clip="]),
        ("runner experiment=bjorck/fig5_activation_statistics probe.act", ["probe.activation_statistics."]),
        (
            "runner experiment=bjorck/fig4",
            ["experiment=bjorck/fig4_divergence", "experiment=bjorck/fig4_divergence_paper"],
        ),
        ("runner norm=[agc,w", ["norm=[agc,weight_standardization"]),
        ("runner 'norm=[agc,w", ["norm=[agc,weight_standardization"]),
        ("runner -m norm=[agc],[w", ["norm=[agc],[weight_standardization"]),
        ("runner train.compile=", ["train.compile=false", "train.compile=true"]),
        ("runner --cfg ", ["all", "hydra", "job"]),
        ("runner norm=agc --v", ["--version"]),
        ("runner resume=", ["resume=outputs/runs/first", "resume=outputs/sweeps/clips/agc.clip=0.01-0a1b"]),
        ("runner resume=fi", ["resume=first"]),
        ("runner paths.outputs=elsewhere resume=fi", []),
        ("runner rep", ["report"]),
        ("runner norm=agc rep", []),
        ("runner report outputs/s", ["outputs/sweeps/clips", "outputs/sweeps/clips/agc.clip=0.01-0a1b"]),
        ("runner workspace outputs/sw", ["outputs/sweeps/clips"]),
        ("runner compare outputs/runs/first outputs/runs/s", ["outputs/runs/second"]),
        ("runner evaluate outputs/runs/first --split t", ["test", "train"]),
        ("runner evaluate outputs/runs/first dataset=digits", ["dataset=digits"]),
        ("runner describe nfnet_f", [f"nfnet_f{number}" for number in range(8)]),
        (".venv/bin/runner opt", ["optimizer.", "optimizer="]),
        ("python -m runner dataset=im", ["dataset=image_folder", "dataset=imagenet"]),
        ("python other.py no", []),
        ("runner nothing=", []),
        ("runner x[={", []),
        ("", []),
    ],
)
def test_what_may_follow(line, offered):
    found = candidates(line)
    begun = re.split(r"[ '\"]", line)[-1]
    assert all(word.startswith(begun) for word in found)
    assert set(offered) <= set(found)
    assert bool(offered) == bool(found)


def test_the_first_word_may_be_a_subcommand_a_group_or_a_setting():
    found = candidates("runner ")
    groups = {f"{folder.name}=" for folder in CONF.iterdir() if any(folder.rglob("*.yaml"))}
    assert {"plan", *SUBCOMMANDS, *groups, "seed=", "train."} <= set(found)


def test_every_option_of_a_group_is_offered():
    names = {file.relative_to(CONF / "experiment").with_suffix("").as_posix() for file in CONF.glob("experiment/*/*")}
    assert set(candidates("runner experiment=")) == {f"experiment={name}" for name in names}
    assert candidates("runner model=resnet")[0] == "model=resnet18"  # and 110 behind 56


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_the_flags_of_a_subcommand_are_those_of_its_help(capsys, name):
    with pytest.raises(SystemExit):
        import_module(f"runner.commands.{name}").main(["--help"])
    listed = re.findall(r"^  (?:-h, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    assert sorted(candidates(f"runner {name} -")) == sorted(listed)


def query(line, folder):
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    return subprocess.run([PROGRAM, "-sc", "query=bash"], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("line", "words"), [("runner norm=ag", "norm=agc\n"), ("runner paths.extensions=gone norm=", "")]
)
def test_the_shell_is_answered_in_words_alone(tmp_path, line, words):
    done = query(line, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, words, "")


def test_the_completion_is_installed_by_a_shell_function(tmp_path):
    done = subprocess.run([PROGRAM, "-sc", "install=bash"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "complete -o nospace" in done.stdout
    assert done.stdout.strip().endswith("runner")


@pytest.mark.slow
@pytest.mark.parametrize("program", ["runner", "python -m runner"])
def test_a_bash_that_is_typed_into_completes(tmp_path, program):
    environment = {**os.environ, "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "TERM": "dumb"}
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)

    def type_and_read(text, expected, seconds=20):
        os.write(terminal, text.encode())
        shown, end = "", time.monotonic() + seconds
        while expected not in shown and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")
        return shown

    try:
        type_and_read("PS1=; bind 'set enable-bracketed-paste off'; echo rea''dy\n", "ready")
        type_and_read(f'eval "$({program} -sc install=bash)"; echo installed $?\n', "installed 0")
        for typed, expected in (
            ("wor", "workspace "),
            ("norm=ag", "norm=agc"),
            ("'norm=[agc,w", "'norm=[agc,weight_standardization'"),
            ("norm=[agc,w", "norm=[agc,weight_standardization"),
            ("plan optimizer=a", "optimizer=adamw"),
            ("norm=agc agc.ep", "agc.eps="),
            ("resume=fi", "resume=first"),
            ("report outputs/runs/s", "outputs/runs/second "),
        ):
            line = f"{program} {typed}"
            assert expected in type_and_read(f"{line}\t", expected)
            type_and_read("\x15echo cle''ared\n", "cleared")  # Ctrl-U: the line is given up
    finally:
        os.write(terminal, b"\x15exit\n")
        os.close(terminal)
        os.waitpid(process, 0)
