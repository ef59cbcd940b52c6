"""A method in a folder outside the repository: a module and a YAML file, nothing else, from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from runner import load_run
from runner.commands.evaluate import evaluate_run
from runner.config import extensions
from runner.config.extensions import add_search_path, search_folders
from runner.config.overrides import prepare_overrides
from runner.config.text import SettingError
from runner.config.validation import CONF
from runner.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
README = ROOT / "runner/methods/README.md"
ALLOWED = "paths.allowed_packages=[gradient_centralization]"
CHOSEN = "regularization=gradient_centralization"
NODE = "# @package _global_\ngradient_centralization:\n  _target_: gradient_centralization.GradientCentralization\n"


def example():
    """The module and the YAML file that README shows for an own method."""
    readme = README.read_text().split("## Adding a method")[1].split("\n## ")[0]
    module, settings = (readme.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "yaml"))
    return module, settings


def write(folder, module=None, settings=NODE, group="regularization"):
    (folder / group).mkdir(parents=True)
    (folder / "gradient_centralization.py").write_text(example()[0] if module is None else module)
    (folder / group / "gradient_centralization.yaml").write_text(settings)
    return folder


@pytest.fixture
def own(tmp_path):
    """The folder `own` with the example of README."""
    return write(tmp_path / "own", *example())


@pytest.fixture(autouse=True)
def _path_as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name in ("gradient_centralization", "inner"):
            del sys.modules[name]
    extensions._on_path = None


def test_the_command_of_the_readme_trains_with_the_method(own, tmp_path):
    """As a user calls it, in a process of its own and with a relative folder."""
    tiny = ["dataset=random", "dataset.num_images=16", "dataset.image_size=8", "train.global_batch_size=8"]
    tiny += ["wandb.mode=disabled", "train.device=cpu", "train.max_steps=1", "name=run"]
    command = [sys.executable, "-m", "runner", "paths.extensions=own", ALLOWED, CHOSEN, *tiny]
    assert " ".join(command[2:6]).replace("=own", "=FOLDER") in README.read_text().replace("'", "")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gradient_centralization: 21 weights" in done.stdout
    assert json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())["status"] == "completed"


def test_the_method_acts(own, small, tmp_path):
    """Without momentum and decay the mean of each filter stays what it was."""
    plain = ("optimizer.weight_decay=0", "train.max_steps=2", "seed=3")
    for name, settings in (("own", (f"paths.extensions={own}", ALLOWED, CHOSEN)), ("without", ())):
        assert small(*plain, *settings, f"name={name}").code == 0
    start = small("train.max_steps=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0", "seed=3", "name=start")
    assert start.code == 0
    means = {
        name: load_checkpoint(tmp_path / f"outputs/runs/{name}/checkpoints/last.pt")["model"]["0.weight"].mean(
            (1, 2, 3)
        )
        for name in ("own", "without", "start")
    }
    torch.testing.assert_close(means["own"], means["start"], rtol=0, atol=1e-6)
    assert (means["without"] - means["start"]).abs().max() > 1e-4


def test_the_run_goes_on_and_is_read_from_anywhere(own, small, tmp_path, monkeypatch):
    assert small("paths.extensions=own", ALLOWED, CHOSEN, "train.epochs=1", "name=run").code == 0
    run = tmp_path / "outputs/runs/run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["paths"] == {
        "outputs": "outputs",
        "extensions": str(own),
        "allowed_packages": ["gradient_centralization"],
    }
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    outcome = small(f"resume={run}", "train.epochs=2")
    assert outcome.code == 2
    again = f"add paths.extensions={own} '{ALLOWED}' to the command line."
    assert again in outcome.err.replace("\n", " ")
    outcome = small(f"resume={run}", "train.epochs=2", f"paths.extensions={own}", ALLOWED)
    assert outcome.code == 0, outcome.err
    recorded = json.loads((run / "record.json").read_text())["overrides"]
    assert len(recorded) == len(set(recorded))
    extensions._on_path, sys.path[:] = None, [entry for entry in sys.path if entry != str(own)]
    del sys.modules["gradient_centralization"]  # as in a process of its own
    with pytest.raises(SettingError, match=r"load_run\(FOLDER, extensions='.*own', allowed_packages=\['gradient_cent"):
        load_run(run)
    packages = ["gradient_centralization"]
    _, loaded = load_run(run, extensions=own, allowed_packages=packages)
    assert "gradient_centralization" in loaded
    own.rename(tmp_path / "gone")
    with pytest.raises(SettingError, match=r"paths\.extensions=.*own: there is no such folder"):
        load_run(run, extensions=own, allowed_packages=packages)
    assert load_run(run, extensions=tmp_path / "gone", allowed_packages=packages)
    outcome = small(f"resume={run}", f"paths.extensions={tmp_path / 'gone'}", ALLOWED, "train.epochs=3")
    assert outcome.code == 0, outcome.err


def test_a_run_of_it_is_evaluated(own, small, tmp_path, monkeypatch):
    assert small("paths.extensions=own", ALLOWED, CHOSEN, "train.max_steps=1", "name=run").code == 0
    monkeypatch.chdir("/")
    folder = tmp_path / "outputs/runs/run"
    accuracy = json.loads((folder / "summary.json").read_text())["metrics"]["accuracy"]
    with pytest.raises(SettingError, match=r"add paths\.extensions=.* to the command line"):
        evaluate_run(folder, "best", "test", [])
    words = [f"paths.extensions={own}", ALLOWED]
    assert f"accuracy {100 * accuracy:.2f} %" in evaluate_run(folder, "best", "test", words)
    with pytest.raises(SettingError, match=r"no option gradient_c\. Did you mean"):
        evaluate_run(folder, "best", "test", [*words, "regularization=gradient_c"])


def test_a_sweep_over_it(own, small, tmp_path):
    outcome = small(
        "train.max_steps=1", "paths.extensions=own", ALLOWED, "-m", f"{CHOSEN},label_smoothing", "sweep.name=s"
    )
    assert outcome.code == 0, outcome.err
    names = {path.parent.name for path in (tmp_path / "outputs/sweeps/s").glob("*/summary.json")}
    assert len(names) == 2
    assert all("own" not in name for name in names)


def test_settings_have_the_type_of_their_defaults(tmp_path, small):
    module = example()[0] + "\n    def __init__(self, *, share=1.0):\n        self.share = share\n"
    folder = write(tmp_path / "own", module, NODE + "  share: 1.0\n", group="norm")
    own = (f"paths.extensions={folder}", ALLOWED, "norm=[batchnorm,gradient_centralization]", "train.max_steps=1")
    outcome = small(*own, "gradient_centralization.share=0.5")
    assert outcome.code == 0, outcome.err
    assert "gradient_centralization: 4 weights; share=0.5" in outcome.out
    for override, words in (
        ("gradient_centralization.share=x", "gradient_centralization.share=x: it must be a number."),
        ("gradient_centralization.shar=1", "Did you mean share?"),
    ):
        outcome = small(*own, override)
        assert outcome.code == 2
        assert words in outcome.err


def test_cfg_job_and_help_with_it(own, runner):
    outcome = runner("--cfg", "job", "paths.extensions=own", CHOSEN)
    assert outcome.code == 0, outcome.err
    assert "_target_: gradient_centralization.GradientCentralization" in outcome.out
    assert runner("--help", "paths.extensions=own").code == 0


def test_hydras_own_search_path_stays(own, small, tmp_path):
    write(tmp_path / "second", "", NODE.replace("gradient_centralization:", "smooth:"))
    option = (
        "# @package _global_\nsmooth:\n  _target_: runner.methods.label_smoothing.LabelSmoothing\n  smoothing: 0.3\n"
    )
    (tmp_path / "second/regularization/gradient_centralization.yaml").unlink()
    (tmp_path / "second/regularization/smooth.yaml").write_text(option)
    both = (f"hydra.searchpath=[file://{tmp_path / 'second'}]", "paths.extensions=own", ALLOWED)
    outcome = small(*both, "regularization=[gradient_centralization,smooth]", "train.max_steps=1")
    assert outcome.code == 0, outcome.err
    assert "smoothing=0.3" in outcome.out
    outcome = small(*both, "regularization=smoth")
    assert "Did you mean smooth?" in outcome.err


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        ("import nothing_of_this_name\n", ["line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"]),
        ("from runner.methods import Nothing\n", ["line 1: ImportError: cannot import name 'Nothing'"]),
        ("x = 1\nclass :\n", ["line 2: SyntaxError: "]),
        ("x = 1\n\ny = z\n", ["line 3: NameError: name 'z' is not defined"]),
        ("x = 1\n", ["has no class or function GradientCentralization"]),
        ("GradientCentralization = 1\n", ["has no class or function GradientCentralization"]),
    ],
)
def test_a_faulty_module_is_named_with_the_reason(small, tmp_path, module, parts):
    folder = write(tmp_path / "own", module)
    assert_refused(small, tmp_path, str(folder / "gradient_centralization.py"), *parts)


def test_a_class_must_have_the_places_of_a_method(small, tmp_path):
    write(tmp_path / "own", "class GradientCentralization:\n    order = 50\n")
    assert_refused(
        small, tmp_path, "it lacks ", "counted, ", "apply, ", "derive the class from runner.methods.method.Method"
    )


def test_a_class_must_take_the_settings(small, tmp_path):
    write(tmp_path / "own", settings=NODE + "  rate: 0.1\n")
    assert_refused(small, tmp_path, "it does not take its settings (got an unexpected keyword argument 'rate')")


def test_a_missing_module_is_named(small, tmp_path, own):
    (own / "gradient_centralization.py").unlink()
    assert_refused(small, tmp_path, f"{own / 'gradient_centralization.py'} is missing")
    outcome = small(f"hydra.searchpath=[file://{own}]", ALLOWED, CHOSEN)
    assert outcome.code == 2
    assert "there is no gradient_centralization; say where it lies by paths.extensions=FOLDER" in outcome.err


@pytest.mark.parametrize("name", ["random", "torch", "runner"])
def test_a_module_of_a_known_name_is_refused(small, tmp_path, own, name):
    (own / f"{name}.py").write_text("")
    assert_refused(small, tmp_path, str(own / f"{name}.py"), "has the name of a module", "rename it")
    assert "torch" in sys.modules


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ("gradient_centralization:\n  _target_: x.Y\n", "the first line of an option's YAML file must be # @package"),
        (NODE.replace("\ngradient_c", "\nc"), "it must hold a node gradient_centralization with _target_"),
        (
            "# @package _global_\ngradient_centralization:\n  a: 1\n",
            "a node gradient_centralization with _target_: ",
        ),
        ("# @package _global_\ngradient_centralization: [\n", "line 3: this is not YAML"),
    ],
)
def test_a_faulty_yaml_file_is_refused(small, tmp_path, settings, part):
    write(tmp_path / "own", settings=settings)
    assert_refused(small, tmp_path, part)


def test_what_is_not_allowed_is_not_imported(small, tmp_path):
    write(tmp_path / "own", "raise SystemExit('imported')\n")
    outcome = small("paths.extensions=own", CHOSEN)
    assert outcome.code == 2
    assert "add paths.allowed_packages=[gradient_centralization]" in outcome.err


@pytest.mark.parametrize(
    ("folder", "part"),
    [("nowhere", "paths.extensions=nowhere: there is no such folder"), ("a,b", "it must be one folder")],
)
def test_a_wrong_folder_is_refused(small, tmp_path, folder, part):
    assert_refused(small, tmp_path, part, folder=folder)


@pytest.mark.parametrize("name", ["label_smoothing", "train", "sync_batchnorm"])
def test_an_option_of_a_taken_name_is_refused(small, tmp_path, own, name):
    (own / "norm").mkdir()
    (own / f"norm/{name}.yaml").write_text(NODE)
    assert_refused(small, tmp_path, f"paths.extensions=own: norm/{name}.yaml has a name of the runner's own")


def assert_refused(small, tmp_path, *parts, folder="own"):
    small(f"paths.extensions={folder}", ALLOWED, CHOSEN).assert_refused(*parts)
    assert not (tmp_path / "outputs").exists()


def test_two_folders_with_modules_of_one_name(small, tmp_path):
    """As in a notebook that loads runs of both: the second is not taken for the first."""
    for name in ("first", "second"):
        module = (
            example()[0].replace('"weights"', "inner.COUNTED").replace("from runner", "import inner\nfrom runner", 1)
        )
        write(tmp_path / name, module)
        (tmp_path / name / "inner.py").write_text(f"COUNTED = '{name} weights'\n")
    for name in ("first", "second", "first"):
        outcome = small(f"paths.extensions={name}", ALLOWED, CHOSEN, "train.max_steps=1")
        assert outcome.code == 0, outcome.err
        assert f"{name} weights" in outcome.out
    assert [entry for entry in sys.path if entry.startswith(str(tmp_path))] == [str(tmp_path / "first")]


def test_the_arguments_with_the_search_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "it's, a"
    odd.mkdir()
    quoted = "'" + str(odd).replace("'", r"\'") + "'"
    arguments = ["norm=agc", r"paths.extensions='it\'s, a'", "hydra.searchpath=[pkg://x]", "train.epochs=[1"]
    found = add_search_path(arguments)
    assert found[:3] == ["norm=agc", "train.epochs=[1", f"paths.extensions={quoted}"]
    assert found[3] == f"hydra.searchpath=['pkg://x','file://{quoted[1:]}]"
    assert add_search_path(found)[:3] == found[:3]
    assert search_folders(found) == [CONF, odd]
    assert add_search_path(["paths.extensions=null", "a=1"]) == ["paths.extensions=null", "a=1"]
    assert add_search_path(["-m", "norm=agc"]) == ["-m", "norm=agc"]


def test_an_error_of_the_method_has_its_choice_in_front(tmp_path, small):
    module = example()[0] + "\n    def __init__(self):\n        raise ValueError('the moon is full; wait.')\n"
    own = write(tmp_path / "full_moon", module)
    outcome = small(f"paths.extensions={own}", ALLOWED, CHOSEN)
    assert outcome.code == 2
    assert "regularization=gradient_centralization: the moon is full; wait." in outcome.err.replace("\n", " ")


def test_a_mapping_among_the_settings_is_open(tmp_path, composed):
    own = write(tmp_path / "own", settings=f"{NODE}  shares: {{}}\n")
    words = add_search_path([f"paths.extensions={own}", ALLOWED, CHOSEN, "gradient_centralization.shares={a.b:word}"])
    assert prepare_overrides(words) == [
        word.replace("gradient_centralization.s", "++gradient_centralization.s") for word in words
    ]
    assert composed(*prepare_overrides(words)).gradient_centralization.shares == {"a.b": "word"}
