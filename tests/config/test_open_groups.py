"""Options of every group from a folder outside the repository, and recipes and studies beside them."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from matplotlib.image import imread

from runner import load_run
from runner.commands.evaluate import evaluate_run
from runner.commands.report import main as report
from runner.config import extensions
from runner.config.text import SettingError
from runner.results.record import Record, read_record
from runner.training.checkpoint import load_checkpoint, save_checkpoint

OPTIONS = {
    "mynet.py": """
from collections import OrderedDict

from torch import nn


def mynet(*, num_classes, width=16):
    stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
    rest = (nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
    return nn.Sequential(OrderedDict(stem=stem, rest=nn.Sequential(*rest)))
""",
    "model/mynet.yaml": "_target_: mynet.mynet\nname: mynet\nwidth: 128\n",
    "stripes.py": """
import torch

from runner.data.splits import Split, make_data


def stripes(*, num_images=64, image_size=8, validation=0.25):
    rows = (torch.arange(image_size) // 2 % 2).float().repeat(image_size, 1)
    targets = torch.arange(num_images) % 2
    images = torch.stack([rows, rows.T])[targets].unsqueeze(1).expand(-1, 3, -1, -1)
    every = Split(images, targets)
    train, test = every.part(torch.arange(num_images)[16:]), every.part(torch.arange(16))
    return make_data("stripes", train, test, num_classes=2, validation=validation)
""",
    "dataset/stripes.yaml": """_target_: stripes.stripes
name: stripes
num_images: 64
image_size: 8
validation: 0.25
""",
    "sign_sgd.py": """
import torch


class SignSGD(torch.optim.Optimizer):
    def __init__(self, groups, *, lr, shrink=0.0):
        super().__init__(groups, {"lr": lr, "shrink": shrink})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad.sign())
""",
    "optimizer/sign_sgd.yaml": """_target_: sign_sgd.SignSGD
name: sign_sgd
lr: 0.01
shrink: 0.0
_ranges_:
  shrink: "[0, 1)"
""",
    "halves.py": """
def halves(total_steps, warmup_steps, *, factor=0.5):
    return lambda step: factor ** step
""",
    "schedule/halves.yaml": "_target_: halves.halves\nname: halves\nfactor: 0.5\n",
    "weight_norms.py": """
import numpy as np
import torch
from matplotlib.figure import Figure

from runner.results.measurement import Measurement


def weight_norms(model, batches, *, order=2.0):
    norms = np.array([p.detach().norm(order).item() for p in model.parameters()])
    return Measurement({"norms": norms}, {"mean": float(norms.mean())}, {})


def figure(arms):
    [(label, [measured])] = arms
    figure = Figure(figsize=(3, 2), facecolor="#123456")
    figure.add_subplot(title=label).plot(measured.arrays["norms"])
    return figure
""",
    "probe/weight_norms.yaml": "weight_norms:\n  _target_: weight_norms.weight_norms\n  num_batches: 1\n  order: 2.0\n",
    "experiment/mine.yaml": """# @package _global_
defaults:
  - override /model: mynet
  - override /norm: [agc]

agc:
  clip: 0.02

train:
  max_steps: 2
""",
    "experiment/widths.yaml": """# @package _global_
defaults:
  - override /model: resnet20

train:
  max_steps: 1
sweep:
  axes: {seed: "0,1"}
""",
    "experiment/norms.yaml": """# @package _global_
defaults:
  - override /model: mynet
  - override /probe: [weight_norms]

train:
  max_steps: 1
sweep:
  axes: {model.width: "8,64", seed: "0,1"}
  measures: [probe/weight_norms/mean]
  claims:
    - claim: wider is larger
      measure: probe/weight_norms/mean@step=0
      plus: {model.width: 64}
      minus: {model.width: 8}
      holds: {above: 0}
""",
}
NET = "_target_: mynet.mynet\nname: x\nwidth: 8\n"
PACKAGES = ("mynet", "stripes", "sign_sgd", "halves", "weight_norms")
ALLOWED = f"paths.allowed_packages=[{','.join(PACKAGES)}]"
OUTSIDE = ("paths.extensions=own", ALLOWED)
ALL = ("model=mynet", "dataset=stripes", "optimizer=sign_sgd", "schedule=halves", "probe=weight_norms")
FEW = ("train.global_batch_size=8", "wandb.mode=disabled", "train.device=cpu")


@pytest.fixture
def own(tmp_path):
    """The folder `own` with an option of each group."""
    for name, text in OPTIONS.items():
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "own"


@pytest.fixture(autouse=True)
def _path_as_before(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    extensions.use_folder(None)
    assert not {*PACKAGES} & {*sys.modules}


def test_a_model_trains_sweeps_resumes_and_is_evaluated_reported_and_loaded(own, tiny, runner, tmp_path):
    outcome = tiny(*OUTSIDE, "model=mynet", "model.width=96", "train.epochs=1", "name=run")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "outputs/runs/run"
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert recorded["model"] == {"_target_": "mynet.mynet", "name": "mynet", "width": 96}
    refused = tiny(f"resume={run}", "train.epochs=2")
    assert refused.code == 2
    assert f"add paths.extensions={own} '{ALLOWED}' to the command line" in refused.err.replace("\n", " ")
    assert runner(f"resume={run}", "train.epochs=2", *OUTSIDE).code == 0
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    assert "test, 8 images, best.pt: accuracy" in evaluate_run(run, "best", "test", list(OUTSIDE))
    with pytest.raises(SettingError, match=r"load_run\(FOLDER, extensions='.*own', allowed_packages=\["):
        load_run(run)
    extensions.use_folder(None)
    model, config = load_run(run, extensions=own, allowed_packages=PACKAGES)
    assert model.stem.out_channels == config.model.width == 96
    assert not model.training

    outcome = tiny("-m", *OUTSIDE, "model=mynet", "model.width=8,16", "train.max_steps=1", "sweep.name=s")
    assert outcome.code == 0, outcome.err
    sweep = tmp_path / "outputs/sweeps/s"
    widths = {read_record(path).settings["model"]["width"] for path in sweep.glob("*/record.json")}
    assert widths == {8, 16}
    report([str(sweep)])
    assert "model.width" in (sweep / "report.md").read_text()


def test_every_other_group_is_open_too(own, runner, tmp_path):
    outcome = runner(*OUTSIDE, *ALL, *FEW, "train.epochs=1", "train.log_every_steps=1", "name=run")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "outputs/runs/run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if "lr" in row]
    assert rates[1] == pytest.approx(0.5 * rates[0])
    [measured] = [row["weight_norms/mean"] for row in rows if row["split"] == "probe"]
    assert measured == pytest.approx(np.load(run / "probes/weight_norms.npz")["norms"].mean())
    outcome = runner(f"resume={run}", "train.epochs=2", *OUTSIDE)
    assert outcome.code == 0, outcome.err
    assert load_run(run, extensions=own, allowed_packages=PACKAGES)[0](torch.zeros(1, 3, 8, 8)).shape == (1, 2)
    outcome = runner(*OUTSIDE, *ALL, *FEW, "optimizer.shrink=1.0")
    assert outcome.code == 2
    assert "optimizer.shrink=1.0: it must lie in [0, 1)." in outcome.err
    outcome = runner(*OUTSIDE, *ALL, *FEW, "dataset.num_images=many")
    assert outcome.code == 2
    assert "dataset.num_images=many: it must be a whole number." in outcome.err


def test_an_optimizer_of_torchs_own_takes_a_yaml_file_alone(own, tiny, tmp_path):
    (own / "optimizer/rmsprop.yaml").write_text("_target_: torch.optim.RMSprop\nname: rmsprop\nlr: 0.01\nalpha: 0.9\n")
    words = ("paths.extensions=own", "paths.allowed_packages=[torch]")
    outcome = tiny(*words, "optimizer=rmsprop", "model=resnet20", "train.epochs=2", "name=whole")
    assert outcome.code == 0, outcome.err
    assert tiny(*words, "optimizer=rmsprop", "model=resnet20", "train.epochs=1", "name=run").code == 0
    outcome = tiny(*words, f"resume={tmp_path}/outputs/runs/run", "train.epochs=2")
    assert outcome.code == 0, outcome.err
    states = [load_checkpoint(tmp_path / f"outputs/runs/{name}/checkpoints/last.pt") for name in ("whole", "run")]
    assert states[1]["optimizer"]["state"][0]["step"] == states[0]["optimizer"]["state"][0]["step"] == 8


@pytest.mark.parametrize("way", ["paths.extensions", "--config-dir", "hydra.searchpath"])
def test_recipes_and_studies_come_from_every_folder(own, tiny, tmp_path, way):
    words = {
        "paths.extensions": ["paths.extensions=own"],
        "--config-dir": ["--config-dir", str(own)],
        "hydra.searchpath": [f"hydra.searchpath=[file://{own}]"],
    }[way]
    outcome = tiny(*words, "experiment=widths", "sweep.name=s")
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "outputs/sweeps/s").glob("*/summary.json"))) == 2
    if way == "paths.extensions":
        outcome = tiny(*OUTSIDE, "experiment=mine", "agc.groups={stem:0.5}", "name=run", "agc.clip=0.03")
        assert outcome.code == 0, outcome.err
        recorded = yaml.safe_load((tmp_path / "outputs/runs/run/config.yaml").read_text())
        assert (recorded["model"]["name"], recorded["agc"]["clip"]) == ("mynet", 0.03)


def test_a_probe_from_outside_has_its_figure_and_its_measures_in_claims(own, runner, tmp_path):
    outcome = runner(*OUTSIDE, *FEW, "dataset=stripes", "experiment=norms", "sweep.name=s", "dataset.image_size=16")
    assert outcome.code == 0, outcome.err
    sweep = tmp_path / "outputs/sweeps/s"
    pictures = sorted(sweep.glob("*/probes/weight_norms.png"))
    assert len(pictures) == 4
    assert tuple((imread(pictures[0])[0, 0, :3] * 255).round()) == (0x12, 0x34, 0x56)
    means = {width: [] for width in (8, 64)}
    for path in sweep.glob("*/record.json"):
        norms = np.load(path.parent / "probes/weight_norms.npz")["norms"]
        means[read_record(path).settings["model"]["width"]].append(norms.mean())
    holds = min(means[64]) > max(means[8])
    assert holds or max(means[64]) < min(means[8])
    report([str(sweep)])
    text = (sweep / "report.md").read_text()
    assert f"1 x {'holds' if holds else 'does not hold'}" in text
    assert "mean (weight norms)" in text
    assert "weight_norms.png" in text
    (own / "experiment/wrong.yaml").write_text(
        (own / "experiment/norms.yaml").read_text().replace("/weight_norms/", "/weight_norm/")
    )
    outcome = runner(*OUTSIDE, *FEW, "dataset=stripes", "experiment=wrong", "sweep.name=t")
    assert outcome.code == 2
    assert "there is no probe weight_norm. Did you mean weight_norms?" in outcome.err


def test_an_error_in_a_figure_from_outside_is_a_warning(own, tiny, tmp_path):
    (own / "weight_norms.py").write_text((own / "weight_norms.py").read_text().replace("Figure(fig", "undefined(fig"))
    outcome = tiny(*OUTSIDE, "model=mynet", "probe=weight_norms", "train.max_steps=1", "name=run")
    assert outcome.code == 0, outcome.err
    assert "weight_norms.py, line 16: NameError: name 'undefined'" in (outcome.out + outcome.err).replace("\n", " ")
    assert (tmp_path / "outputs/runs/run/probes/weight_norms.npz").is_file()


X = "_target_: mynet.mynet\nname: x\n"


@pytest.mark.parametrize(
    ("file", "text", "parts"),
    [
        ("model/x.yaml", f"# @package _global_\n{X}", ["must not be a line # @package"]),
        ("model/x.yaml", "name: x\n", ["it must hold _target_: MODULE.NAME"]),
        ("model/x.yaml", "_target_: mynet.mynet\nname: y\n", ["it must hold name: x"]),
        ("model/x.yaml", "_target_: mynet.mynet\nwidth: [\n", ["line 3", "this is not YAML"]),
        ("model/x.yaml", "_target_: mynet.nothing\nname: x\n", ["mynet.py has no class or function nothing"]),
        ("model/x.yaml", f"{X}depth: 1\n", ["model._target_=mynet.mynet", "does not take its settings", "depth"]),
        ("model/x.yaml", "_target_: os.getcwd\nname: x\n", ["model._target_=os.getcwd", "a model must come from"]),
        ("optimizer/x.yaml", "_target_: os.getcwd\nname: x\nlr: 1.0\n", ["an optimizer must come from runner.optim"]),
        ("model/x.yaml", "_target_: runner.data.digits.digits\nname: x\n", ["must come from runner.models or"]),
        ("model/x.yaml", "_target_: mynet.nn.Linear\nname: x\n", ["there is no mynet.nn"]),
        ("model/resnet18.yaml", "_target_: mynet.mynet\nname: resnet18\n", ["model/resnet18.yaml has a name of"]),
        ("dataset/x.yaml", "_target_: stripes.torch\nname: x\n", ["has no class or function torch"]),
        ("optimizer/x.yaml", "_target_: sign_sgd.SignSGD\nname: x\n", ["it must hold lr, the learning rate"]),
        ("schedule/x.yaml", "_target_: halves.halves\nname: x\nb: 1\n", ["does not take its settings"]),
        ("probe/x.yaml", "y:\n  _target_: weight_norms.weight_norms\n", ["it must hold a node x with _target_"]),
        ("probe/x.yaml", "x:\n  _target_: weight_norms.no\n  num_batches: 1\n", ["no class or function no"]),
        ("model/x.yaml", NET + "_ranges_: {width: [0, 1]}", ["x.yaml: _ranges_.width=[0,1]: it must be an interval"]),
        ("model/x.yaml", NET + "_ranges_: {wide: text}", ["x.yaml: _ranges_.wide: there is no such setting", "width?"]),
        ("model/x.yaml", NET + "_ranges_: 5", ["x.yaml: _ranges_=5: it must be a mapping"]),
        ("model/x.yaml", NET + "_ranges_: {width: '> 9 int'}", ["model.width=8: it must be a whole number in (9"]),
        ("model/x.yaml", NET + "_kind_: [segments]", ["x.yaml: _kind_=[segments]: it must be a list of "]),
        ("norm/x.yaml", "x:\n  _target_: mynet.mynet\n", ["first line", "must be # @package _global_"]),
    ],
)
def test_a_wrong_option_is_told_what_is_wrong_with_it(own, runner, tmp_path, file, text, parts):
    (own / file).parent.mkdir(exist_ok=True)
    (own / file).write_text(text)
    outcome = runner(*OUTSIDE, file.removesuffix(".yaml").replace("/", "="), *FEW)
    assert outcome.code == 2, outcome.out + outcome.err
    assert len(outcome.err.splitlines()) == 1, outcome.err
    for part in parts:
        assert part in outcome.err
    assert not (tmp_path / "outputs").exists()


def test_an_option_from_outside_has_ranges_of_its_own_and_ours_where_they_mean_the_same(own, tiny):
    """`width` of our models is at most 64; `pretrained` is the runner's."""
    text = f"{NET}pretrained: null\n_ranges_: {{width: '[8, 128] int', pretrained: text}}\n"
    (own / "model/x.yaml").write_text(text)
    assert tiny(*OUTSIDE, "model=x", "model.width=128", "train.max_steps=1").code == 0
    for word, message in (("width=129", "a whole number in [8, 128]."), ("pretrained=''", "it must be a path")):
        outcome = tiny(*OUTSIDE, "model=x", f"model.{word}")
        assert outcome.code == 2
        assert message in outcome.err


def test_what_is_no_setting_is_not_shown_and_cannot_be_set(own, runner):
    shown = runner("--cfg", "job", *OUTSIDE, "norm=agc", "model=mynet", "optimizer=sign_sgd", "probe=clipping")
    assert shown.code == 0
    assert "shrink: 0.0" in shown.out
    assert "_kind_" not in shown.out
    assert "_ranges_" not in shown.out
    outcome = runner("norm=agc", "agc._ranges_.clip=text")
    assert outcome.code == 2
    assert "agc._ranges_={clip:text}: this is no setting; leave it out." in outcome.err
    outcome = runner("norm=agc", "+agc._ranges_={clip:text}")
    assert "agc._ranges_={clip:text}: this is no setting; leave it out." in outcome.err


def test_an_error_in_a_function_from_outside_is_told_with_its_place(own, tiny):
    (own / "mynet.py").write_text("def mynet(*, num_classes, width=1):\n    return undefined\n")
    outcome = tiny(*OUTSIDE, "model=mynet")
    assert outcome.code == 2
    assert f"{own / 'mynet.py'}, line 2: NameError: name 'undefined' is not defined." in outcome.err


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("paths:\n  outputs: /evil\n", "paths.outputs=/evil"),
        ("paths: ${evil}\nevil: {outputs: x}\n", "paths=${evil}"),
        ("wandb:\n  mode: online\n", "wandb.mode=online"),
        ("wandb:\n  entity: other\n", "wandb.entity=other"),
        ("wandb:\n  project: other\n", "wandb.project=other"),
        ("train:\n  num_devices: 64\n", "train.num_devices=64"),
        ("train:\n  device: cuda\n", "train.device=cuda"),
        ("defaults:\n  - /part@paths: evil\n", "outputs=/evil"),
    ],
)
@pytest.mark.parametrize("group", ["experiment", "case", "sweep"])
def test_a_file_from_outside_does_not_choose_where_things_go(own, tiny, tmp_path, group, text, word):
    for folder in (group, "part"):
        (own / folder).mkdir(exist_ok=True)
    (own / "part/evil.yaml").write_text("outputs: /evil\n")
    (own / group / "evil.yaml").write_text(f"# @package _global_\n{text}")
    outcome = tiny(*OUTSIDE, f"{group}=evil")
    assert outcome.code == 2, outcome.out
    assert f"add {word} to the command line" in outcome.err.replace("add paths.outputs=", "add outputs=", 1) or (
        f"add {word} to the command line" in outcome.err
    )
    assert ".yaml: it sets " in outcome.err
    assert not (tmp_path / "outputs").exists()


def test_axes_from_outside_do_not_choose_where_things_go(own, runner, tiny, tmp_path):
    (own / "experiment/evil.yaml").write_text("# @package _global_\nsweep: {axes: {paths.outputs: 'a,b'}}\n")
    outcome = tiny(*OUTSIDE, "experiment=evil")
    assert outcome.code == 2
    assert "paths.outputs=a,b" in outcome.err
    (own / "experiment/evil.yaml").write_text("# @package _global_\nsweep: {axes: {train.device: 'cpu,cuda'}}\n")
    outcome = runner(*OUTSIDE, "experiment=evil")
    assert outcome.code == 2
    assert "sweep.axes: it holds train.device=cpu,cuda" in outcome.err
    assert not (tmp_path / "outputs").exists()


def plant(run, settings, overrides=None):
    """Other settings in all places of a run's folder, each with its checksum."""
    record = Record.parse((run / "record.json").read_text(), "record.json")
    record = replace(record, settings=settings, overrides=record.overrides if overrides is None else overrides)
    (run / "record.json").write_text(record.text)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    for path in (run / "checkpoints").glob("*.pt"):
        saved = load_checkpoint(path)
        save_checkpoint(path, {**saved, "about": {**saved["about"], "record": record.text}})


def test_the_former_name_of_the_folder_is_refused_and_read(own, tiny, runner, tmp_path):
    outcome = tiny("paths.methods=own")
    assert outcome.code == 2
    assert "paths.methods=own: it is paths.extensions now" in outcome.err
    assert tiny(*OUTSIDE, "model=mynet", "train.epochs=1", "name=run").code == 0
    run = tmp_path / "outputs/runs/run"
    record = read_record(run / "record.json")
    paths = {"methods" if key == "extensions" else key: value for key, value in record.settings["paths"].items()}
    words = tuple(word.replace("paths.extensions", "paths.methods") for word in record.overrides)
    assert words != record.overrides
    plant(run, {**record.settings, "paths": paths}, words)
    assert load_run(run, extensions=own, allowed_packages=PACKAGES)[1].paths.extensions == str(own)
    refused = tiny(f"resume={run}", "train.epochs=2")
    assert f"add paths.extensions={own}" in refused.err.replace("\n", " ")
    outcome = runner(f"resume={run}", "train.epochs=2", *OUTSIDE)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("target", [None, "runner.models.of_another_version.Net"])
def test_a_record_with_other_targets_goes_on(tiny, runner, tmp_path, target):
    """As a run from before options named what builds them, or that named it otherwise."""
    assert tiny("model=resnet20", "probe=clipping", "train.epochs=1", "name=run").code == 0
    run = tmp_path / "outputs/runs/run"
    settings = read_record(run / "record.json").settings
    nodes = [settings[key] for key in ("model", "dataset", "optimizer", "schedule")]
    for node in (*nodes, *settings["probe"].values()):
        node.pop("_target_") if target is None else node.update(_target_=target)
    plant(run, settings)
    assert load_run(run)[1].model["_target_"] == "runner.models.cifar_resnet.resnet20"
    assert "accuracy" in evaluate_run(run, "best", "test", ["train.device=cpu"])
    outcome = runner(f"resume={run}", "train.epochs=2")
    assert outcome.code == 0, outcome.err
