"""The command line as a user meets it: help without torch, wrong settings refused in a few lines."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from runner import __version__
from runner.commands import SUBCOMMANDS
from runner.commands.help import HOW_TO_RUN, print_help
from runner.config.validation import CONF

# the program where torch cannot be imported: whatever needs it ends in a traceback
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from runner.__main__ import main; main()"


def without_torch(folder, *arguments):
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def assert_refused(code, out, err, folder, *parts):
    """A short message on stderr with all of `parts`, exit code 2, nothing written."""
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("Wrong setting. ")
    assert len(err.strip().splitlines()) <= 3
    for part in parts:
        assert part in err
    assert list(folder.iterdir()) == []


def test_help_says_how_to_run_and_lists_subcommands_groups_and_options_without_torch(tmp_path):
    done = without_torch(tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: runner ")
    for name in ("plan", *SUBCOMMANDS):
        assert f"\n  {name} " in done.stdout
    lines = dict(line.strip().split(": ", 1) for line in done.stdout.splitlines() if re.match(r"  [\w/]+\*?: ", line))
    folders = [file.parent.relative_to(CONF) for file in CONF.glob("*/**/*.yaml")]
    assert {name.rstrip("*") for name in lines} == {str(f) for f in folders if f.parts[0] not in ("case", "sweep")}
    assert {name for name in lines if name.endswith("*")} == {"norm*", "regularization*", "probe*"}
    for name, options in lines.items():
        files = {file.stem for file in (CONF / name.rstrip("*")).glob("*.yaml")}
        assert set(options.split(", ")) == {option for option in files if not option.endswith("_paper")}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    print_help([])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= columns


def test_the_commands_in_the_help_compose(composed):
    """Every example that the help shows, but the sweep and the placeholder of a run's name."""
    examples = HOW_TO_RUN.partition("Examples:\n")[2].strip().splitlines()
    plain = [shlex.split(line.split("   ")[0])[1:] for line in map(str.strip, examples)]
    plain = [words for words in plain if "-m" not in words and not any("NAME" in word for word in words)]
    assert len(plain) >= 4
    for words in plain:
        assert composed(*words)


def test_help_ends_quietly_when_nobody_reads_on(tmp_path):
    command = f"{shlex.quote(sys.executable)} -m runner --help"
    shell = ["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == "0\n"


def test_the_version_is_this_programs(runner):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "runner.__version__"}
    assert runner("--version").out == f"runner {__version__}\n"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_subcommand_has_a_help_of_its_own_without_torch(tmp_path, name):
    done = without_torch(tmp_path, name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: runner {name} ")
    assert f"example: runner {name} " in done.stdout
    script = {"workspace": "wandb_workspace"}.get(name, name)
    by_script = [sys.executable, Path(__file__).parents[1] / f"scripts/{script}.py", "--help"]
    assert subprocess.run(by_script, cwd=tmp_path, capture_output=True, text=True).stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repport", "a"], "repport: there is no such subcommand. Did you mean report?"),
        (["nothing"], "nothing: there is no such subcommand. Subcommands: plan, report, compare"),
        (["--help", "paths.extensions=gone"], "paths.extensions=gone: there is no such folder."),
    ],
)
def test_a_wrong_subcommand_is_refused(runner, arguments, message):
    outcome = runner(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"Wrong setting. {message}")
    assert outcome.err.count("\n") == 1


def test_a_subcommand_is_one_in_the_first_place_only(runner):
    assert "report: this is not of the form KEY=VALUE" in runner("norm=agc", "report").err


def test_cfg_job_shows_the_settings_without_torch(tmp_path):
    done = without_torch(tmp_path, "--cfg", "job", "norm=agc", "agc.clip=0.25")
    assert done.returncode == 0, done.stderr
    assert "clip: 0.25" in done.stdout
    assert "global_batch_size: 64" in done.stdout
    assert list(tmp_path.iterdir()) == []


WRONG = [
    (["trian.epochs=3"], ["trian.epochs=3", "Did you mean train?"]),
    (["train.epoch=3"], ["train.epoch=3", "Did you mean epochs?"]),
    (["norm=agx"], ["norm=agx", "Did you mean agc?", "weight_standardization"]),
    (["norm=[agc,foo]"], ["norm=[agc,foo]", "foo", "Options: agc, batch"]),
    (["train.epochs=abc"], ["train.epochs=abc", "a whole number"]),
    (["agc.clip=0.1"], ["agc.clip=0.1", "add norm=agc"]),
    (["norm=ghost_batchnorm", "ghost_batchnorm.ghost_batch_size=65"], ["ghost_batch_size=65", "at most 64"]),
    (
        ["norm=ghost_batchnorm", "train.accumulation_steps=4", "ghost_batchnorm.ghost_batch_size=17"],
        ["ghost_batchnorm.ghost_batch_size=17", "train.accumulation_steps=4", "Choose at most 16"],
    ),
    (["regularization=stochastic_depth", "stochastic_depth.drop_rate=1"], ["drop_rate=1", "[0, 1)"]),
    (["norm=agc", "agc.groups=[layer4]"], ["agc.groups=[layer4]", "a mapping, as in {layer4: 0.02}"]),
    (["norm=agc", "agc.groups=0.1"], ["agc.groups=0.1", "a mapping, as in {layer4: 0.02}"]),
    (["norm=agc", "agc.exclude={a:1}"], ["agc.exclude={a:1}", "a list, as in [a,b]"]),
    (["agc.groups={layer4:0.1}"], ["agc.groups={layer4:0.1}", "add norm=agc"]),
    (["norm=[agc,batchnorm]", "+norm=clip_by_norm"], ["+norm=clip_by_norm", "'norm=[agc,batchnorm,clip_by_norm]'"]),
    (["norm=agc", "~agc"], ["~agc", "'norm=[]'"]),
    (["norm@foo=agc"], ["norm@foo=agc", "write norm=agc"]),
    (["resume=nowhere"], ["resume=nowhere", "no run lies there"]),
    (["-m", "norm=[agc],[batchnorm]", "agc.groups={layer4:0.1}"], ["agc.groups={layer4:0.1}: not every job"]),
    (["-m", "norm=agc", "agc.clip=0.1,0"], ["agc.clip=0", "(0, 10^9]"]),
    (["-m", "batchnorm._target_=x", "norm=[agc"], ["norm=[agc", "not of the form KEY=VALUE"]),
    (["norm=agc", "-m", "agc.clip=0.1,0.2", "train.epoch=3"], ["train.epoch=3", "Did you mean epochs?"]),
]
# all of them in one process, since Hydra takes half a second to import; of each its end, and what lies in the folder
ONE_AFTER_THE_OTHER = """
import contextlib, io, json, os, sys, traceback
sys.modules["torch"] = None
from runner.__main__ import main

for words in json.load(sys.stdin):
    sys.argv, code = ["runner", *words], None
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
    print(json.dumps([code, out.getvalue(), err.getvalue(), os.listdir()]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER],
        input=json.dumps([arguments for arguments, _ in WRONG]),
        cwd=tmp_path_factory.mktemp("refusals"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("number", "parts"), [(number, parts) for number, (_, parts) in enumerate(WRONG)])
def test_a_wrong_setting_is_refused_without_torch(refusals, tmp_path, number, parts):
    code, out, err, files = refusals[number]
    assert files == []
    assert_refused(code, out, err, tmp_path, *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["model=nf_resnet26", "norm=ghost_batchnorm"], ["norm=ghost_batchnorm", "nf_resnet26"]),
        (["model=nf_resnet26", "norm=groupnorm"], ["norm=groupnorm", "nf_resnet26"]),
        (
            ["dataset=cifar10", "dataset.download=false"],
            ["dataset.root=data", "dataset.download", "cifar-10-batches-py"],
        ),
        (["norm=agc", "agc.groups={layr4:0.02}"], ["agc.groups", "layr4", "Did you mean layer4?"]),
        (["regularization=stochastic_depth", "stochastic_depth.target_layer_name=5"], ["target_layer_name=5"]),
        (["train.precision=fp16", "train.device=cpu"], ["train.precision=fp16", "GPU"]),
        (["train.global_batch_size=5000"], ["train.global_batch_size=5000"]),
    ],
)
def test_what_only_the_model_or_the_data_shows_is_refused(runner, tmp_path, arguments, parts):
    outcome = runner(*arguments)
    assert_refused(outcome.code, outcome.out, outcome.err, tmp_path, *parts)
    if "dataset=cifar10" in arguments:
        assert str(tmp_path / "data") in outcome.err  # where the files belong


def test_a_remedy_is_not_followed_by_another(runner):
    model = "model=nf_resnet26"
    bare, with_remedy = (runner(model, f"norm={name}").err for name in ("groupnorm", "weight_standardization"))
    assert "found none. Choose a method that suits the model. (model=nf_resnet26)" in bare
    assert "or choose a model without it. (model=nf_resnet26)" in with_remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(runner, tmp_path):
    outcome = runner("train.device=cuda")
    assert_refused(outcome.code, outcome.out, outcome.err, tmp_path, "train.device=cuda", "train.device=cpu")


def test_a_ghost_batch_that_fills_a_micro_batch_runs(small):
    methods = ("norm=ghost_batchnorm", "ghost_batchnorm.ghost_batch_size=4", "train.accumulation_steps=2")
    assert small(*methods, "train.max_steps=1").code == 0
    outcome = small(*methods, "ghost_batchnorm.ghost_batch_size=5", "train.max_steps=1")
    assert outcome.code == 2
    assert "Choose at most 4" in outcome.err


def test_a_mapping_with_names_with_dots_runs_and_is_recorded_as_typed(small, tmp_path):
    words = ["norm=agc", "agc.groups={3.conv1:0.02}", "train.max_steps=1"]
    outcome = small(*words, "name=run")
    assert outcome.code == 0, outcome.err
    assert "groups={3.conv1:0.02}" in outcome.out
    run = tmp_path / "outputs/runs/run"
    assert json.loads((run / "record.json").read_text())["overrides"][-4:] == [*words, "name=run"]
    assert yaml.safe_load((run / "config.yaml").read_text())["agc"]["groups"] == {"3.conv1": 0.02}
    outcome = small("-m", *words[::2], "agc.groups={3.conv1:0.02},{3.conv2:0.1}", "sweep.name=both")
    assert outcome.code == 0, outcome.err
    found = [path.parent.name for path in (tmp_path / "outputs/sweeps/both").rglob("config.yaml")]
    assert len(found) == 2
    assert not any("++" in name for name in found)


def test_a_folder_that_cannot_be_made_is_a_wrong_setting(small, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = small("paths.outputs=file")
    assert outcome.code == 2
    assert "paths.outputs=file" in outcome.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["runner.experiment.check.check", "runner.experiment.run.prepare"])
def test_ctrl_c_before_training_ends_with_130(small, tmp_path, monkeypatch, place):
    """While settings are checked nothing is written; later the run is marked as interrupted."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(place.replace("runner.experiment.check.check", "runner.experiment.run.check"), interrupted)
    outcome = small("name=run")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err + outcome.out
    summary = tmp_path / "outputs/runs/run/summary.json"
    if place.endswith("prepare"):
        assert json.loads(summary.read_text())["status"] == "interrupted"
    else:
        assert not summary.exists()


@pytest.mark.parametrize("override", ["experiment=[1,2]", "model=[resnet18,resnet34]", "dataset=[digits]"])
def test_a_list_of_options_is_refused_where_one_is_taken(runner, override):
    outcome = runner(override)
    assert outcome.code == 2
    assert f"{override}: {override.partition('=')[0]} takes one option, not a list" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["optimizer.lr=${oc.env:NO_SUCH}"],
            ["lr=${oc.env:NO_SUCH}: this leads to no value", "'NO_SUCH' not"],
        ),
        (
            ["optimizer.lr=${nothing.here}"],
            ["lr=${nothing.here}: this leads to no value", "'nothing.here' not"],
        ),
        (["name=${name}"], ["name=${name}: this leads to no value", "Recursive"]),
        (["name=${no.such:1}"], ["name=${no.such:1}: this leads to no value", "no.such"]),
        (["optimizer.lr=${oc.decode:[}"], ["optimizer.lr=${oc.decode:[}: this leads to no value"]),
        (["-m", "seed=${nope},1"], ["seed=${nope}: this leads to no value"]),
        (["-m", "paths.outputs=${nope}", "seed=0,1"], ["paths.outputs=${nope}: this leads to no value"]),
        (["optimizer.lr=${"], ["optimizer.lr=${: this is not of the form KEY=VALUE", "a closing brace: '${KEY}'"]),
        (["train.epochs=???"], ["train.epochs=???: this setting needs a value."]),
        (["paths.outputs='\x1b[31mred\x1b[0m'"], [r"paths.outputs=\x1b[31mred\x1b[0m", "control a terminal"]),
        (["name='a\nb'"], [r"name=a\nb: it has characters that control"]),
        (["norm=[null]"], ["norm=[null]", "write an empty list: norm=[]"]),
        (["wandb.tags=[{a:1}]"], ["wandb.tags=[{a:1}]: it must be a list"]),
        (["probe_at=[[1]]"], ["probe_at=[[1]]: it must be a list of whole numbers, as in [0,100]"]),
        (["-m", "seed=range(0,100000000)"], ["100,000,000 jobs"]),
        (["--cfg", "jb"], ["--cfg", "'jb'"]),
        (["seed=1", "--no-such"], ["--no-such"]),
        (["+resume=1"], ["resume=1: it must be the folder of a run"]),
    ],
)
def test_a_wrong_setting_is_told_in_one_line_without_noise(tmp_path, runner, recwarn, arguments, parts):
    outcome = runner(*arguments)
    assert_refused(outcome.code, outcome.out, outcome.err, tmp_path, *parts)
    assert len(outcome.err.splitlines()) == 1
    assert "\x1b" not in outcome.err
    assert not recwarn.list


def test_flags_between_overrides_and_values_without_quotes(small, tmp_path):
    outcome = small("norm=agc", "--cfg", "job", "agc.clip=0.5")
    assert outcome.code == 0, outcome.err
    assert "clip: 0.5" in outcome.out
    outcome = small("train.max_steps=0", "wandb.project=größe", "name=run")
    assert outcome.code == 0, outcome.err
    config = yaml.safe_load((tmp_path / "outputs/runs/run/config.yaml").read_text())
    assert config["wandb"]["project"] == "größe"


def test_a_setting_of_a_swept_option_is_set_in_each_job(runner, tmp_path):
    words = ("-m", "model=resnet20,resnet32", "model.shortcut=projection", "dataset=random", "dataset.num_images=16")
    outcome = runner(*words, "train.global_batch_size=8", "train.max_steps=1", "wandb.mode=disabled", "sweep.name=s")
    assert outcome.code == 0, outcome.err
    jobs = [file.parent.name for file in (tmp_path / "outputs/sweeps/s").glob("*/summary.json")]
    assert len(jobs) == 2
    assert all(any(model in name for name in jobs) for model in ("model=resnet20", "model=resnet32"))


@pytest.mark.parametrize(("words", "times"), [([], 1), (["hydra.mode=RUN"], 2)])
def test_a_run_composes_once(small, monkeypatch, words, times):
    """Not a second time for Hydra's mode, unless a word sets that."""
    composed, compose = [], ConfigLoaderImpl._load_configuration_impl

    def counted(*args, **options):
        composed.append(args)
        return compose(*args, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    assert small("train.max_steps=0", *words).code == 0
    assert len(composed) == times


def test_what_is_imported_before_the_first_line_is_light():
    """These take a second and more; a run without them imports them never."""
    heavy = ["torch", "torchvision", "scipy", "sklearn", "pandas", "matplotlib", "wandb", "timm", "PIL", "joblib"]
    script = f"import runner.__main__, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_default_run_imports_no_package_that_it_does_not_use(tmp_path):
    unused = ["scipy", "sklearn", "pandas", "matplotlib", "wandb", "timm", "datasets"]
    settings = ["train.max_steps=1", "train.device=cpu", "wandb.mode=disabled", f"paths.outputs={tmp_path}"]
    script = f"""
import atexit, sys
from runner.__main__ import main
atexit.register(lambda: print("imported:", [name for name in {unused} if name in sys.modules]))
sys.argv[1:] = {[*settings, "model=resnet20", "dataset.image_size=8"]}
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "imported: []" in done.stdout
    assert "Preparing" not in done.stdout  # on a terminal alone
