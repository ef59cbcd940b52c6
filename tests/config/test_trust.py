"""What a configuration, a run's folder or a checkpoint from elsewhere may not do: run code, leave outputs/.

And no secret of the environment is told."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal import hydra as application
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from runner import load_run
from runner.commands import evaluate
from runner.config.hydra_loader import CheckedLoader, checked
from runner.config.secrets import check_no_secrets, redact, secret_values
from runner.config.targets import check_defined
from runner.config.text import SettingError
from runner.config.trust import Allowed, check_words, words_again
from runner.config.validation import CONF, validate
from runner.experiment.methods import build_methods
from runner.methods.method import Method
from runner.models.pretrained import read_weights
from runner.results.job import job_name
from runner.results.record import Record
from runner.results.run_folder import RunFolder
from runner.training.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef" * 2 + "deadbeef"  # as long as an API key of W&B
MARK = "ran.txt"  # what the code below writes into the working directory where it runs
SYSTEM = f"os.system, _args_: ['touch {MARK}']"


@pytest.fixture
def elsewhere(tmp_path):
    """`elsewhere(option, text)` writes a YAML file of a search path and returns that path."""

    def write(option, text):
        file = tmp_path / "elsewhere" / f"{option}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return tmp_path / "elsewhere"

    return write


def assert_refused(outcome, tmp_path, *parts):
    outcome.assert_refused(*parts)
    assert not list(tmp_path.rglob(MARK))
    assert not (tmp_path / "outputs").exists()


CALLBACK = "+hydra.callbacks.x._target_"


@pytest.mark.parametrize(
    ("words", "target"),
    [
        ([f"{CALLBACK}=os.getcwd"], "hydra.callbacks.x._target_=os.getcwd"),
        ([f"{CALLBACK}=os.system", f"+hydra.callbacks.x._args_=[touch {MARK}]"], "os.system"),
        ([f"{CALLBACK}=subprocess.call", "+hydra.callbacks.x._partial_=true"], "subprocess.call"),
        ([f"{CALLBACK}=torch.os.system"], "torch.os.system"),
        ([f"{CALLBACK}=torch.hub.load"], "torch.hub.load"),
        ([f"{CALLBACK}=torchvision.datasets.CIFAR10"], "torchvision.datasets.CIFAR10"),
        ([f"{CALLBACK}=runner.sweeps.sweep.time.sleep"], "runner.sweeps.sweep.time.sleep"),
        ([f"{CALLBACK}=runner.sweeps.sweep.Callback"], "hydra.experimental.callback.Callback"),
        ([f"{CALLBACK}=runner.sweeps.sweep.finish_sweep"], "runner.sweeps.sweep.finish_sweep"),
        ([f"{CALLBACK}=runner.methods.agc.AdaptiveGradientClipping"], "this is no callback"),
        ([f"{CALLBACK}=runner"], "it must name a module and a class in it"),
        ([f"{CALLBACK}=runner..sweep.SweepCallback"], "it must name a module and a class in it"),
        (["+hydra.callbacks.x={_target_: " + SYSTEM + "}"], "os.system"),
        (["+hydra.callbacks.x.y.z._target_=os.getcwd"], "hydra.callbacks.x.y.z._target_=os.getcwd"),
        (["+hydra.callbacks.x.y=[1,[{_target_: os.getcwd}]]"], "hydra.callbacks.x.y.1.0._target_=os.getcwd"),
        (["+hydra.callbacks.sweep.x._target_=os.getcwd"], "hydra.callbacks.sweep.x._target_=os.getcwd"),
        (["wandb.project=os.getcwd", CALLBACK + "=${wandb.project}"], "hydra.callbacks.x._target_=os.getcwd"),
        (
            ["++agc.x={_target_: os.getcwd}", "norm=agc", "+hydra.callbacks.x=${agc.x}"],
            "callbacks.x._target_=os.getcwd",
        ),
        (["++agc.x={_target_: os.getcwd}", "norm=agc", "hydra.callbacks=${agc}"], "hydra.callbacks._target_=runner"),
        ([CALLBACK + "=${oc.env:TARGET_HERE}"], "hydra.callbacks.x._target_=os.getcwd"),
        ([CALLBACK + "=${oc.decode:os.getcwd}"], "hydra.callbacks.x._target_=os.getcwd"),
        ([CALLBACK + "=${hydra:nothing}"], "hydra.callbacks.x._target_=${hydra:nothing}: this leads nowhere"),
        (["+hydra.callbacks.x=${nothing}"], "hydra.callbacks.x=${nothing}: this leads nowhere"),
        (["hydra.launcher._target_=os.getcwd"], "hydra.launcher._target_=os.getcwd"),
        (["hydra.launcher._target_=hydra_plugins.other.Launcher"], "hydra_plugins.other.Launcher"),
        (["hydra.sweeper._target_=os.getcwd"], "hydra.sweeper._target_=os.getcwd"),
        (["+hydra.launcher.x._target_=os.getcwd"], "hydra.launcher.x._target_=os.getcwd"),
        (["+hydra.help.x._target_=os.getcwd"], "hydra.help.x._target_=os.getcwd"),
        (["+hydra.help._target_=hydra._internal.core_plugins.basic_launcher.BasicLauncher"], "basic_launcher"),
        (["+hydra.job_logging.handlers.x.class=subprocess.Popen"], "subprocess.Popen"),
        (["+hydra.hydra_logging.handlers.x={class: logging.StreamHandler, stream: 'ext://this.s'}"], "ext://this.s"),
        (["+hydra.callbacks.x._target_=mine.X", "paths.allowed_packages=[mine]"], "there is no mine"),
        (["+hydra.callbacks.x._target_=os.system", "paths.allowed_packages=[os]"], "has no class system"),
        (["+hydra.callbacks.x._target_=shlex.StringIO", "paths.allowed_packages=[shlex]"], "_io.StringIO"),
        (["norm=agc", "+agc.x._target_=os.getcwd"], "agc.x._target_=os.getcwd"),
        (["norm=agc", "++agc.groups={a: [{_target_: os.getcwd}]}"], "agc.groups.a.0._target_=os.getcwd"),
        (["norm=agc", "agc._target_=${wandb.project}", "wandb.project=os.getcwd"], "agc._target_=os.getcwd"),
        (["norm=agc", "agc._target_=torch.os.system"], "agc._target_=torch.os.system"),
        (["norm=agc", "agc._target_=runner.methods.agc.torch.hub.load"], "runner.methods.agc.torch"),
        (["norm=agc", "agc._target_=runner.methods.agc.Tensor"], "agc is built by runner.methods.agc.AdaptiveGrad"),
        (["+model.x._target_=os.getcwd"], "model.x._target_=os.getcwd"),
        (["+wandb.tags=[{_target_: os.getcwd}]"], "wandb.tags"),
    ],
)
def test_a_target_is_refused(monkeypatch, words, target):
    monkeypatch.setenv("TARGET_HERE", "os.getcwd")
    with pytest.raises(SettingError) as refusal:
        build(words)
    assert target in str(refusal.value)


def build(words):
    """The methods of what these words compose, as far as they come."""
    with checked(words, typed=words), initialize_config_dir(str(CONF), version_base="1.3"):
        return build_methods(validate(compose("config", overrides=list(words))))


@pytest.mark.parametrize(
    ("words", "target"),
    [
        ([f"{CALLBACK}=os.getcwd"], "hydra.callbacks.x._target_=os.getcwd"),
        (
            [f"{CALLBACK}=os.system", f"+hydra.callbacks.x._args_=[touch {MARK}]"],
            "hydra.callbacks.x._target_=os.system",
        ),
        (["norm=agc", "agc._target_=os.getcwd"], "agc._target_=os.getcwd"),
    ],
)
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=0,1", "sweep.name=s")])
def test_a_target_on_the_command_line_is_refused(small, tmp_path, monkeypatch, words, target, sweep):
    monkeypatch.setattr(os, "getcwd", lambda: pytest.fail("it was instantiated") if in_hydra() else str(tmp_path))
    assert_refused(small(*words, *sweep), tmp_path, target)


def in_hydra():
    """Whether the caller's caller is what instantiates."""
    frame = sys._getframe(2)
    return "instantiate" in frame.f_code.co_filename


GLOBAL = "# @package _global_\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hydra:\n  callbacks:\n    x: {_target_: SYSTEM}\n", ["callbacks.x._target_=os.system"]),
        ("hydra:\n  callbacks: {x: '${evil}'}\nevil: {_target_: SYSTEM}\n", ["x._target_=os.system"]),
        ("hydra:\n  callbacks: '${evil}'\nevil: {x: {_target_: SYSTEM}}\n", ["hydra.callbacks=${evil}"]),
        ("defaults:\n  - /harmless@hydra.callbacks.x: evil\n", ["callbacks.x._target_=os.system"]),
        ("defaults:\n  - /harmless@hydra.job.env_set: evil\n", ["hydra.job.env_set._target_=os.system"]),
        ("hydra: {callbacks: {x: '${oc.create:{_target_: os.getcwd}}'}}\n", ["callbacks.x._target_=os.getcwd"]),
        ("hydra: {job_logging: {root: {}, formatters: {x: {'()': os.system}}}}\n", ["formatters.x.()=os.system"]),
        ("hydra: {job_logging: null}\n", ["it sets hydra.job_logging=null"]),
        ("defaults:\n  - override /hydra/launcher: evil\n", ["hydra.launcher.setup.0=touch ran.txt"]),
        ("hydra: {job: {env_set: {PATH: /evil}}}\n", ["hydra.job.env_set.PATH=/evil"]),
        ("hydra: {output_subdir: x}\n", ["hydra.output_subdir=x"]),
        ("hydra: {run: {dir: /tmp/x}}\n", ["hydra.run.dir=/tmp/x"]),
        ("hydra: {sweeper: {params: {seed: 1}}}\n", ["hydra.sweeper.params"]),
        ('hydra: {launcher: {partition: "x\\n#SBATCH"}}\n', ["hydra.launcher.partition"]),
        ("hydra: null\n", ["it sets hydra=null"]),
        ("norm: {_target_: os.getcwd}\n", []),
        ("agc: {groups: {a: {_target_: os.getcwd}}}\n", ["agc.groups.a._target_=os.getcwd"]),
        ("agc: {_target_: evil.Agc}\npaths: {allowed_packages: [evil]}\n", ["paths.allowed_packages=[evil]"]),
        ("paths: {extensions: /tmp}\n", ["add paths.extensions=/tmp to the command line"]),
        ("paths: '${evil}'\nevil: {extensions: /tmp, allowed_packages: [evil], outputs: x}\n", ["paths"]),
        ("sweep: {axes: {hydra.callbacks.x._target_: os.getcwd}}\n", ["hydra.callbacks.x._target_=os.getcwd"]),
        ("sweep: {axes: {--experimental-rerun: evil.pkl}}\n", ["--experimental-rerun=evil.pkl"]),
        ("sweep: {axes: {paths.allowed_packages: '[evil],[evil]'}}\n", ["add 'paths.allowed_packages"]),
    ],
)
def test_a_record_from_elsewhere_is_refused(small, tmp_path, elsewhere, text, parts):
    callback = "x: {_target_: SYSTEM}\n".replace("SYSTEM", SYSTEM)
    text = text.replace("SYSTEM", SYSTEM)
    elsewhere("harmless/evil", callback.removeprefix("x: "))
    elsewhere("hydra/launcher/evil", f"defaults: [basic]\nsetup: [touch {MARK}]\n")
    folder = elsewhere("experiment/evil", GLOBAL + text)
    assert_refused(small("norm=agc", "experiment=evil", f"hydra.searchpath=[file://{folder}]"), tmp_path, *parts)


@pytest.mark.parametrize("way", ["--config-dir", "-cd", "a path", "--config-path", "pkg", "--cfg", "-m"])
def test_every_way_to_a_file_is_watched(small, runner, tmp_path, elsewhere, monkeypatch, way):
    callbacks = "hydra:\n  callbacks:\n    x: {_target_: SYSTEM}\n".replace("SYSTEM", SYSTEM)
    folder = elsewhere("experiment/evil", GLOBAL + callbacks)
    elsewhere("primary", callbacks)
    elsewhere("searching", "hydra: {searchpath: ['pkg://evil_package']}\n")
    (folder / "evil_package").mkdir()
    (folder / "evil_package/__init__.py").write_text(f"open({str(tmp_path / MARK)!r}, 'w')")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    ways = {
        "--config-dir": [*TINY_WORDS, "experiment=evil", "--config-dir", str(folder)],
        "-cd": [*TINY_WORDS, "experiment=evil", "-cd", str(folder)],
        "a path": [*TINY_WORDS, f"experiment=../../{os.path.relpath(folder, CONF.parent)}/experiment/evil"],
        "--config-path": [f"--config-path={folder}", "--config-name=primary"],
        "pkg": [f"--config-path={folder}", "--config-name=searching"],
        "--cfg": ["--cfg", "job", "experiment=evil", "--config-dir", str(folder)],
        "-m": ["-m", "experiment=cluttered_digits/resnet20,evil", f"hydra.searchpath=[file://{folder}]"],
    }
    target = "hydra.searchpath.0=pkg://evil_package" if way == "pkg" else "hydra.callbacks.x._target_=os.system"
    assert_refused(runner(*ways[way]), tmp_path, target)
    assert runner("--help", "experiment=evil", "--config-dir", str(folder)).code == 0  # which composes nothing
    assert not (tmp_path / MARK).exists()


TINY_WORDS = ("dataset=random", "train.max_steps=1", "wandb.mode=disabled")


@pytest.mark.parametrize("option", ["--experimental-rerun", "--experimental-re", "--exp"])
def test_a_pickled_job_is_not_run(runner, tmp_path, option):
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(Evil()))
    assert_refused(runner(f"{option}={tmp_path / 'job.pickle'}"), tmp_path, "--experimental-rerun")


@pytest.mark.parametrize(
    "words",
    [
        ["~hydra.callbacks.sweep"],
        ["hydra.callbacks.sweep=null"],
        ["hydra.callbacks.sweep._target_=hydra.experimental.callback.Callback"],
    ],
)
def test_a_sweep_keeps_its_check(small, tmp_path, words):
    """Without it Hydra would make the sweep's folder before any job's settings are checked."""
    assert_refused(small("-m", "seed=0,1", "sweep.name=away", *words), tmp_path, "hydra.callbacks.sweep._target_=")


@pytest.fixture
def hydra_node():
    """`hydra_node(words, typed)` is what Hydra composes of the words under the check."""

    def call(words, typed=None):
        with (
            checked(words, typed=words if typed is None else typed),
            initialize_config_dir(str(CONF), version_base="1.3"),
        ):
            return compose("config", overrides=list(words), return_hydra_config=True).hydra

    return call


def test_what_is_harmless_stays_possible(hydra_node, elsewhere):
    """A launcher for a cluster in a folder of one's own, a copy of our own file, logging to the console."""
    request = "_target_: hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher\n"
    folder = elsewhere("hydra/launcher/cluster", request + "partition: gpu-a100\ntimeout_min: 60\n")
    elsewhere("experiment/mine", GLOBAL + "defaults:\n  - override /hydra/launcher: cluster\nhydra: {run: {dir: .}}\n")
    words = [f"hydra.searchpath=[file://{folder}]", "experiment=mine"]
    words.append("hydra.launcher.timeout_min=30")
    found = hydra_node(words)
    assert (found.launcher.partition, found.launcher.timeout_min) == ("gpu-a100", 30)
    assert hydra_node(["hydra/job_logging=none", "+hydra.job.env_set.OMP_NUM_THREADS=1"]).job.env_set
    assert hydra_node(["hydra.job_logging.root={level: INFO}"]).job_logging.root


def test_logging_names_no_code_that_lies_elsewhere(hydra_node, elsewhere):
    folder = elsewhere("experiment/evil", GLOBAL + "evil: {x: {'()': os.getcwd}}\n")
    words = [f"hydra.searchpath=[file://{folder}]", "experiment=evil", "+hydra.job_logging.formatters=${evil}"]
    with pytest.raises(SettingError, match=r"hydra\.job_logging\.formatters\.x\.\(\)=os\.getcwd"):
        hydra_node(words)


def test_a_callback_of_an_allowed_package(hydra_node, tmp_path, monkeypatch):
    (tmp_path / "my_callbacks.py").write_text("class Mine:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    words = ["+hydra.callbacks.x._target_=my_callbacks.Mine", "paths.allowed_packages=[my_callbacks]"]
    assert hydra_node(words).callbacks.x._target_ == "my_callbacks.Mine"
    with pytest.raises(SettingError, match=r"my_callbacks\.Mine"):
        hydra_node(words[:1])
    with pytest.raises(SettingError, match=r"add 'paths\.allowed_packages=\[my_callbacks\]' to the command line"):
        hydra_node(words[1:], typed=[])


def test_the_check_ends_with_the_run(hydra_node):
    before = application.ConfigLoaderImpl
    assert hydra_node(["seed=1"])
    with pytest.raises(SettingError):
        hydra_node(["+hydra.help._target_=os.getcwd"])
    assert application.ConfigLoaderImpl is before


def test_the_check_goes_along_to_other_processes():
    """A launcher's processes get the configuration loader by pickle, and compose each job with it."""
    with (
        checked([], typed=["paths.allowed_packages=[mine]"]),
        initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        copied = pickle.loads(pickle.dumps(GlobalHydra.instance().config_loader()))
    assert type(copied) is CheckedLoader
    assert copied.allowed == Allowed(("mine",))
    with pytest.raises(SettingError, match=r"os\.getcwd"):
        copied.load_configuration("config", ["+hydra.callbacks.x._target_=os.getcwd"], RunMode.RUN)


def test_what_the_command_line_allows():
    words = [
        "-m",
        "++paths.allowed_packages=[a,'b.c']",
        "paths.extensions=x/../y",
        "seed=1,2",
        "paths.allowed_packages=[d],[e]",
    ]
    assert Allowed.typed(words) == Allowed(("a", "b.c", "d", "e"), Path("y").resolve())
    assert Allowed.typed(["paths.allowed_packages=[]", "paths.extensions=null"]) == Allowed()
    Allowed(("a", "b")).check(None, ["b"])
    with pytest.raises(
        SettingError, match=r"add 'paths\.allowed_packages=\[a,b\]' paths\.extensions=/m to the command line"
    ):
        Allowed(("a",)).check("/m", ["b"], source="here")
    paths = OmegaConf.create({"extensions": "/m", "allowed_packages": ["a"]})
    assert words_again(paths) == ["paths.extensions=/m", "paths.allowed_packages=[a]"]
    assert words_again(OmegaConf.create({"extensions": None, "allowed_packages": []})) == []


@pytest.mark.parametrize(
    ("word", "part"),
    [
        (f"{CALLBACK}=os.getcwd", "os.getcwd"),
        ("hydra={callbacks: {x: {_target_: os.getcwd}}}", "os.getcwd"),
        ("hydra/launcher=evil", "hydra/launcher=evil"),
        ("~hydra.callbacks.sweep", "~hydra.callbacks.sweep"),
        ("hydra.searchpath=[pkg://evil]", "pkg://evil"),
        ("norm@hydra.callbacks.x=agc", "norm@hydra.callbacks.x=agc"),
        ("--experimental-rerun=evil.pickle", "--experimental-rerun"),
        ("-cd=/evil", "-cd=/evil"),
        ("paths.allowed_packages=[os]", "add 'paths.allowed_packages=[os]'"),
        ("++paths.allowed_packages=[os]", "add 'paths.allowed_packages=[os]'"),
        ("paths={extensions: /evil, allowed_packages: [evil], outputs: outputs}", "paths="),
        ("paths.extensions='/evil'", "add paths.extensions=/evil to"),
    ],
)
def test_a_planted_run_folder_is_refused(small, tmp_path, word, part):
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "overrides.yaml").write_text(yaml.safe_dump(["seed=1", word]))
    assert_refused(small(f"resume={planted}"), tmp_path, f"resume={planted}: overrides.yaml: ", part)
    with pytest.raises(SettingError):
        evaluate.evaluate_run(planted, "best", "test", [])


@pytest.mark.parametrize("words", ["{a: b}", "[1]", "text", "[[a]]"])
def test_overrides_of_another_kind_are_refused(small, tmp_path, words):
    (tmp_path / "overrides.yaml").write_text(words)
    assert_refused(small(f"resume={tmp_path}"), tmp_path, "it must be a list of overrides")


def plant(run, settings):
    """Settings in all places of a run's folder, each with its checksum."""
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    record = replace(Record.parse((run / "record.json").read_text(), "record.json"), settings=settings)
    (run / "record.json").write_text(record.text)
    for path in (run / "checkpoints").glob("*.pt"):
        checkpoint = load_checkpoint(path)
        save_checkpoint(path, {**checkpoint, "about": {**checkpoint["about"], "record": record.text}})


def test_a_planted_configuration_loads_no_code(small, tmp_path):
    assert small("norm=agc", "train.max_steps=1", "name=run").code == 0
    run = tmp_path / "outputs/runs/run"
    (run / "evil.py").write_text(f"open({str(tmp_path / MARK)!r}, 'w')\nclass Agc:\n    pass\n")
    config = yaml.safe_load((run / "config.yaml").read_text())
    for change, message in (
        ({"agc": {**config["agc"], "_target_": "evil.Agc"}}, r"agc\._target_=evil\.Agc"),
        ({"agc": {**config["agc"], "_target_": "os.system"}}, r"agc\._target_=os\.system"),
        ({"agc": {**config["agc"], "groups": {"_target_": "os.system"}}}, r"agc\.groups\._target_=os\.system"),
        ({"paths": {**config["paths"], "allowed_packages": ["evil"]}}, r"allowed_packages=\['evil'\]"),
        ({"paths": {**config["paths"], "extensions": str(run)}}, r"extensions='/"),
    ):
        plant(run, {**config, **change})
        with pytest.raises(SettingError, match=message):
            load_run(run)
    assert not (tmp_path / MARK).exists()


# checkpoints


class Evil:
    """What runs code where it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, (MARK,))


@pytest.fixture
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_here")
def test_a_checkpoint_that_would_run_code_is_refused(small, tmp_path):
    pickle.loads(pickle.dumps(Evil()))
    (tmp_path / MARK).rmdir()  # so it does run where it may
    assert small("train.epochs=1", "name=run").code == 0
    run = tmp_path / "outputs/runs/run"
    for name, write in (("last", torch.save), ("best", lambda content, path: save_checkpoint(path, content))):
        path = run / f"checkpoints/{name}.pt"
        kept = path.read_bytes()
        write({**load_checkpoint(path), "model": {"weight": Evil()}}, path)
        with pytest.raises(ValueError, match=rf"{name}\.pt: this checkpoint cannot be used"):
            load_checkpoint(path)
        with pytest.raises(ValueError, match=rf"{name}\.pt"):
            load_run(run, name)
        with pytest.raises(ValueError, match="it is damaged, or holds more than tensors"):
            read_weights(str(path), "resnet18")
        outcome = small(f"model.pretrained={path}", "name=next")
        assert outcome.code == 2, outcome.err
        assert f"model.pretrained={path}" in outcome.err
        path.write_bytes(kept)
    assert not list(tmp_path.rglob(MARK))


@pytest.mark.usefixtures("_here")
def test_a_resumed_checkpoint_that_would_run_code_is_refused(small, tmp_path):
    assert small("train.epochs=1", "name=run").code == 0
    checkpoints = tmp_path / "outputs/runs/run/checkpoints"
    for path in checkpoints.glob("*.pt"):
        save_checkpoint(path, {**load_checkpoint(path), "model": {"weight": Evil()}})
    outcome = small("resume=outputs/runs/run", "train.epochs=2")
    assert outcome.code == 2, outcome.out
    assert "last.pt" in outcome.err
    assert not list(tmp_path.rglob(MARK))


def test_downloaded_weights_are_read_as_weights(monkeypatch):
    """torch.hub would run what lies in its cache otherwise, which it does not check against the hash."""
    given_options = {}

    def load(url, **options):
        given_options.update(options)
        return {}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    read_weights("IMAGENET1K_V1", "resnet18")
    assert given_options["weights_only"] is True


SOURCES = sorted([*(ROOT / "runner").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])
RUN_CODE = ("eval", "exec", "compile", "__import__", "execfile")
RUN_CODE += ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.hub.load")
RUN_CODE += ("hydra.utils.instantiate", "hydra.utils.call", "instantiate", "yaml.unsafe_load", "yaml.full_load")
UNPICKLE = ("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "pandas")


def unsafe_calls(source):
    """What a module's source calls that may run code out of a file, with the line."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        module, _, function = name.rpartition(".")
        wrong = name in RUN_CODE or (function.startswith(("exec", "spawn")) and module == "os")
        wrong |= module in UNPICKLE and function in ("load", "loads", "Unpickler", "open", "read_pickle")
        wrong |= name in ("torch.load", "load_state_dict_from_url") and options.get("weights_only") != "True"
        wrong |= function == "get_state_dict" and "weights" in module and options.get("weights_only") != "True"
        wrong |= options.get("allow_pickle") not in (None, "False") or options.get("shell") not in (None, "False")
        loader = ast.unparse(node.args[1]) if len(node.args) > 1 else options.get("Loader", "")
        wrong |= name in ("yaml.load", "yaml.load_all") and "SafeLoader" not in loader
        wrong |= name in ("yaml.load", "yaml.load_all") and any(word in loader for word in ("Unsafe", "Full"))
        if wrong:
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_read_in_a_way_that_runs_code(path):
    assert not list(unsafe_calls(path.read_text()))


@pytest.mark.parametrize(
    "call",
    [
        *("torch.load(f)", "torch.load(f, weights_only=False)", "pickle.load(f)", "pickle.Unpickler(f)", "eval(x)"),
        *("np.load(f, allow_pickle=True)", "yaml.load(f, yaml.Loader)", "yaml.load(f, Loader=yaml.FullLoader)"),
        *("subprocess.run(x, shell=True)", "os.system(x)", "weights.get_state_dict()", "yaml.unsafe_load(f)"),
    ],
)
def test_the_reader_of_sources_finds_what_is_unsafe(call):
    assert list(unsafe_calls(f"def f():\n    return {call}\n"))


def test_the_source_reader_takes_what_is_safe():
    text = "torch.load(f, weights_only=True); np.load(f); model.eval(); yaml.load(f, yaml.SafeLoader); re.compile(x)"
    assert not list(unsafe_calls(text))


# names


@pytest.mark.parametrize("name", ["../x", "..", ".", "a/b", "/x", "a\\b", "", "a\nb", "~", ".x", "-x", "x" * 121])
def test_a_name_is_that_of_one_folder(plain, name):
    for key in ("name", "sweep.name"):
        config = plain.copy()
        OmegaConf.update(config, key, name)
        with pytest.raises(SettingError, match=f"^{key}="):
            validate(config)


@pytest.fixture(scope="module")
def plain():
    """The default configuration, composed."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config")


@pytest.mark.parametrize("name", ["../x", "..", "a/b"])
@pytest.mark.parametrize("key", ["name", "sweep.name"])
def test_a_name_leaves_nothing_elsewhere(small, tmp_path, key, name):
    sweep = ["-m", "seed=0,1"] if key == "sweep.name" else []
    outcome = small(f"{key}={name}", "train.max_steps=1", *sweep)
    assert outcome.code == 2, outcome.out + outcome.err
    assert not list(tmp_path.iterdir())


words = st.one_of(
    st.text(max_size=80),
    st.builds(
        "{}={}".format, st.sampled_from(["norm", "agc.clip", "name", "x"]), st.text(alphabet="./\\~ab", max_size=200)
    ),
)


@hypothesis.settings(max_examples=50)
@given(st.lists(words, max_size=6), st.sets(st.sampled_from(["norm", "agc.clip"])))
def test_a_job_has_the_name_of_one_folder(overrides, varied):
    name = job_name(overrides, "0123abcd", varied)
    assert name == os.path.basename(name)
    assert name not in ("", ".", "..")
    assert not name.startswith(".")
    assert len(name.encode()) <= 120
    assert all(character.isascii() and character.isprintable() for character in name)


@pytest.mark.slow
def test_the_record_of_a_sweep_leads_nowhere_else(small, tmp_path):
    """A sweep that is run again takes up the names of the jobs in its record, which somebody may have planted."""
    words = ("-m", "seed=choice(0)", "train.max_steps=1", "sweep.name=s")
    assert small(*words).code == 0
    sweep = tmp_path / "outputs/sweeps/s"
    [job] = [path for path in sweep.iterdir() if (path / "summary.json").is_file()]
    shutil.rmtree(job)
    digits = job.name.rpartition("-")[2]
    (sweep / "sweep.yaml").write_text(yaml.safe_dump({"jobs": {f"../../../away-{digits}": ["seed=0"]}}))
    assert small(*words).code == 0
    assert (sweep / f"away-{digits}/summary.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_is_a_name_that_is_taken(tmp_path, target):
    """A link in the place of a run's folder leads elsewhere; nothing is written behind it."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/run").symlink_to(tmp_path / target)
    assert RunFolder.create(tmp_path / "runs", "run").path == tmp_path / "runs/run-2"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_name_of_a_method_is_none_of_a_path(small, tmp_path, elsewhere):
    """A run's own name is made of its methods' names, and these are keys of a file."""
    node = '"../../../x": {_target_: runner.methods.label_smoothing.LabelSmoothing, smoothing: 0.1}\n'
    folder = elsewhere("experiment/evil", GLOBAL + node)
    elsewhere("norm/sub", GLOBAL + node)
    for parent in (tmp_path / "elsewhere", tmp_path, tmp_path.parent):
        (parent / "x.yaml").write_text(GLOBAL + node)
    outcome = small(f"hydra.searchpath=[file://{folder}]", "experiment=evil", "train.max_steps=1")
    assert_refused(outcome, tmp_path, "../../../x: a method's name has up to 64 letters")


# secrets


@pytest.fixture
def _key(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)


@pytest.mark.usefixtures("_key")
@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["wandb.entity=${oc.env:WANDB_API_KEY}"], "wandb.entity"),
        (["wandb.entity=x${oc.env:WANDB_API_KEY}y"], "wandb.entity"),
        (["wandb.tags=[a,${oc.env:WANDB_API_KEY}]"], "wandb.tags"),
        (["wandb.project=" + KEY], "wandb.project"),
        (["wandb.prject=" + KEY], "wandb.prject"),
        (["train.epochs=${oc.env:WANDB_API_KEY}"], "train.epochs"),
        (["name=" + KEY], "name"),
        (["sweep.title=${oc.env:WANDB_API_KEY}"], "sweep.title"),
        (["+sweep.names={a: {b: '${oc.env:WANDB_API_KEY}'}}"], "sweep.names"),
        (["norm=agc", "++agc.groups={" + KEY + ": 0.1}"], "agc.groups"),
        (["+hydra.job.env_set.WANDB_API_KEY=" + KEY], "hydra.job.env_set.WANDB_API_KEY"),
        (["hydra.job.env_copy=[WANDB_API_KEY]"], "hydra.job.env_set.WANDB_API_KEY"),
        (["-m", "seed=0,1", "sweep.name=${oc.env:WANDB_API_KEY}"], "hydra.sweep.dir"),
        (["-m", "wandb.entity=a,${oc.env:WANDB_API_KEY}", "sweep.name=s"], "wandb.entity"),
        ([KEY], "the command line"),
        (["norm=" + KEY], "norm"),
    ],
)
def test_a_setting_with_a_secret_is_refused(small, tmp_path, words, key):
    outcome = small(*words)
    assert_refused(outcome, tmp_path, f"{key}: it holds the value of the environment variable WANDB_API_KEY")
    assert KEY not in outcome.out + outcome.err


@pytest.mark.usefixtures("_key")
def test_a_file_with_a_secret_is_refused(small, tmp_path, elsewhere):
    for text, part in (
        (f"wandb: {{group: {KEY}}}\n", "wandb.group: it holds the value of the environment variable WANDB_API_KEY"),
        ("wandb: {entity: '${oc.env:WANDB_API_KEY}'}\n", "A file may not read the environment"),
        ("wandb: {entity: '${oc.decode:${oc.env:HOME}}'}\n", "A file may not read the environment"),
    ):
        folder = elsewhere("experiment/mine", GLOBAL + text)
        outcome = small(f"hydra.searchpath=[file://{folder}]", "experiment=mine")
        assert_refused(outcome, tmp_path, part)
        assert KEY not in outcome.out + outcome.err


@pytest.mark.usefixtures("_key")
def test_no_file_of_a_run_holds_a_secret(small, tmp_path, monkeypatch):
    """Also of one that fails with it in its message. W&B finds the key in the environment."""
    monkeypatch.setenv("SOME_TOKEN", 'it\'s a "token" of ours')
    words = ("wandb.mode=offline", f"paths.outputs={tmp_path / 'outputs'}")  # W&B's process may have another folder
    runs = [small(*words, "train.max_steps=2", "name=run")]

    def fail(*_, **__):
        raise RuntimeError(f"no entry for {KEY}, {os.environ['SOME_TOKEN']!r}")

    monkeypatch.setattr("runner.training.loop.Trainer.train", fail)
    runs.append(small(*words, "name=failed"))
    assert [run.code for run in runs] == [0, 1], runs[-1].err
    assert "no entry for <WANDB_API_KEY>, '<SOME_TOKEN>'" in (tmp_path / "outputs/runs/failed/error.txt").read_text()
    assert "<WANDB_API_KEY>" in runs[-1].out + runs[-1].err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"record.json", "summary.json", "error.txt", "last.pt", "debug.log"} <= {path.name for path in files}
    assert sum(path.suffix == ".wandb" for path in files) == 2
    for path in files:
        for secret in (KEY, "of ours"):
            assert secret.encode() not in path.read_bytes(), path
    assert not any(secret in run.out + run.err for run in runs for secret in (KEY, "of ours"))


@pytest.mark.slow
@pytest.mark.usefixtures("_key")
def test_no_file_of_a_sweep_holds_a_secret(small, tmp_path):
    assert small("-m", "seed=0,1", "train.max_steps=1", "sweep.name=s", "wandb.mode=offline").code == 0
    assert (tmp_path / "outputs/sweeps/s/report.html").is_file()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_which_values_are_secret(monkeypatch, tmp_path):
    for name in os.environ.keys() - {"WANDB_SERVICE"}:
        monkeypatch.delenv(name)
    file = tmp_path / "credentials.json"
    file.write_text("")
    values = {"MY_TOKEN": "12345678", "My_Password": "correct horse", "SECRETS": "short", "HOME": "/home/somebody"}
    values |= {"APPLICATION_CREDENTIALS": str(file), "API_KEY": "12345678-and-more"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert list(secret_values()) == ["API_KEY", "My_Password", "MY_TOKEN"]
    assert redact("12345678-and-more, 12345678, correct horse") == "<API_KEY>, <MY_TOKEN>, <My_Password>"
    assert redact("correct%20horse short /home/somebody") == "<My_Password> short /home/somebody"
    for settings in ({"a": {"b": [1, 12345678]}}, {"a": {"b": "x12345678x"}}):
        with pytest.raises(SettingError, match=r"^a\.b: it holds the value of the environment variable MY_TOKEN"):
            check_no_secrets(settings)
    check_no_secrets({"a": [None, True, 1.5, str(file)], "short": "short"})


def test_a_secret_ends_no_process_with_a_trace(tmp_path):
    """As a user meets it: in a process of its own, with the key in the environment and in a setting."""
    environment = {**os.environ, "WANDB_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "runner", "wandb.entity=${oc.env:WANDB_API_KEY}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "WANDB_API_KEY" in done.stderr
    assert KEY not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
    done = subprocess.run(
        [*command[:3], f"resume={KEY}"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, KEY in done.stderr) == (2, False)
    assert "resume=<WANDB_API_KEY>: no run lies there" in done.stderr


def test_a_class_is_defined_where_its_name_leads():
    check_defined(Method, "runner.methods.method.Method")
    with pytest.raises(ValueError, match=r"torch\.Tensor"):
        check_defined(torch.Tensor, "runner.methods.agc.Tensor")


def test_words_of_a_file_that_are_harmless():
    check_words(
        ["norm=agc", "agc.clip=0.01", "seed=range(3)", "experiment=bjorck/fig1", "name='a=b'", "no form"], "here"
    )


def test_a_run_folder_chooses_no_place_and_reads_no_environment(small, tmp_path, monkeypatch):
    monkeypatch.setenv("PRIVATE_PLACE", "something-private")
    assert small("train.epochs=1", "name=run", "seed=3").code == 0
    run = tmp_path / "outputs/runs/run"
    record = Record.parse((run / "record.json").read_text(), "record.json")
    kept = (run / "record.json").read_text()
    words = ("wandb.mode=online", "wandb.entity=stranger", f"paths.outputs={tmp_path}/else", "train.num_devices=2")
    (run / "record.json").write_text(replace(record, overrides=(*record.overrides, *words)).text)
    outcome = small("resume=outputs/runs/run", "train.epochs=2")
    assert outcome.code == 0, outcome.err
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["wandb"]["mode"], config["wandb"]["entity"]) == ("disabled", None)  # the first was typed
    assert (config["paths"]["outputs"], config["train"]["num_devices"]) == ("outputs", 1)
    assert "wandb.entity=stranger" in outcome.out
    assert not (tmp_path / "else").exists()
    for file, text in (
        ("record.json", replace(record, overrides=(*record.overrides, "wandb.tags=['${oc.env:PRIVATE_PLACE}']")).text),
        ("overrides.yaml", yaml.safe_dump(["name=${oc.env:PRIVATE_PLACE}"])),
    ):
        (run / "record.json").write_text(kept)
        if file == "overrides.yaml":
            (run / "record.json").unlink()
            shutil.rmtree(run / "checkpoints")
        (run / file).write_text(text)
        outcome = small("resume=outputs/runs/run", "train.epochs=3")
        assert outcome.code == 2, outcome.out
        assert "A file may not read the environment" in outcome.err
    assert not any(b"something-private" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_typed_word_may_read_the_environment_and_is_recorded_resolved(small, tmp_path, monkeypatch):
    monkeypatch.setenv("RATE", "0.02")
    assert small("optimizer.lr=${oc.env:RATE}", "train.epochs=1", "name=run").code == 0
    monkeypatch.setenv("RATE", "0.5")
    assert small("resume=outputs/runs/run", "train.epochs=2").code == 0
    record = json.loads((tmp_path / "outputs/runs/run/record.json").read_text())
    assert "optimizer.lr=0.02" in record["overrides"]
    assert record["settings"]["optimizer"]["lr"] == 0.02
