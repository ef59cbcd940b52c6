"""The records in conf/experiment: header, settings, published numbers, and two steps of each on files of its layout."""

import hashlib
import json
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from runner.config.text import SettingError
from runner.config.validation import CONF, method_nodes
from runner.data import cluttered_digits, digit_scenes, image_folder, mask_folder
from runner.experiment import builders, testing
from runner.layers.stochastic_depth import StochasticDepth
from runner.models import nfnet
from runner.training import state, top_k

FOLDER = CONF / "experiment"
FILES = [file for file in FOLDER.rglob("*.yaml") if "sweep" not in OmegaConf.load(file)]  # the others are studies
RECORDS = sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in FILES)
SYNSETS = ("n01440764", "n01443537", "n01484850", "n01491361")
NUM_TRAIN, NUM_TEST = 8, 4

PROBED = [file for file in FOLDER.rglob("*.yaml") if "override /probe: [" in file.read_text().replace("[]", "")]

# what makes a record small, beside max_steps: sizes of images and batches, and what wants a GPU or a network
SMALL = {
    "cifar10": ["train.global_batch_size=8"],
    "imagenet": [
        *("train.global_batch_size=8", "train.accumulation_steps=2", "train.precision=fp32"),
        *("dataset.num_workers=0", "dataset.image_size=32", "dataset.test_size=32", "dataset.test_resize=36"),
    ],
    "ade20k": [
        *("train.global_batch_size=2", "train.precision=fp32", "model.pretrained=null", "model.head_channels=32"),
        *("dataset.num_workers=0", "dataset.image_size=48", "dataset.test_size=48"),
    ],
    "cluttered_digits": ["train.global_batch_size=8"],
    "digit_scenes": ["train.global_batch_size=4"],
}


@pytest.mark.parametrize("file", PROBED, ids=lambda file: file.stem)
def test_a_study_that_measures_activations_or_gradients_does_so_in_fp32(file):
    assert len(PROBED) >= 14
    assert OmegaConf.load(file).train.precision == "fp32"


def header(record):
    """The fields of a record's comment, and under "title" what stands before them."""
    lines = (FOLDER / f"{record}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    fields = {"title": ""}
    field = "title"
    for line in lines[1 : lines.index("defaults:")]:
        assert line.startswith("#")
        start = re.match(r"# ([a-z ]+): {2,}(.*)", line)
        field = start[1] if start else field
        if line.rstrip() == "#":
            field = "notes" if len(fields) > 1 else "title"
        fields[field] = f"{fields.get(field, '')} {start[2] if start else line.lstrip('# ')}".strip()
    return fields


def write_cifar10(root, monkeypatch):
    """cifar-10-batches-py with 20 images a file; torchvision's checksums are made to fit."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    kind = torchvision.datasets.CIFAR10
    contents = {
        name: {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [*range(10)] * 2}
        for name, _ in kind.train_list + kind.test_list
    }
    contents["batches.meta"] = {"label_names": list("abcdefghij")}
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(kind, part, [[name, sums[name]] for name, _ in getattr(kind, part)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["batches.meta"]})


def write_imagenet(root, monkeypatch):
    """Four synsets with copies of a photograph of odd size."""
    photograph = picture(root / "photograph.jpg", (45, 38)).read_bytes()
    for split, number in (("train", NUM_TRAIN), ("val", NUM_TEST)):
        for index in range(number):
            place = root / split / SYNSETS[index % len(SYNSETS)]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{place.name}_{index}.JPEG").write_bytes(photograph)
    monkeypatch.setattr(image_folder, "IMAGENET_CLASSES", len(SYNSETS))


def write_ade20k(root, monkeypatch):
    """ADEChallengeData2016 with scenes of odd sizes whose masks hold all values from 0, no class, to 150."""
    rng = np.random.default_rng(0)
    for split, prefix, number in (("training", "train", NUM_TRAIN), ("validation", "val", NUM_TEST)):
        images, masks = (root / "ADEChallengeData2016" / kind / split for kind in ("images", "annotations"))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for index in range(number):
            size = (61 + index, 53 - index)
            picture(images / f"ADE_{prefix}_{index:08d}.jpg", size)
            mask = rng.integers(0, 151, size[::-1], dtype=np.uint8)
            Image.fromarray(mask).save(masks / f"ADE_{prefix}_{index:08d}.png")
    monkeypatch.setattr(mask_folder, "ADE20K_SIZES", (NUM_TRAIN, NUM_TEST))


def shrink(module):
    """A writer for a data set that `module` draws from a seed: fewer images of it."""

    def write(root, monkeypatch):
        monkeypatch.setattr(module, "NUM_TRAIN", 40)
        monkeypatch.setattr(module, "NUM_TEST", 20)

    return write


def picture(path, size):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return path


WRITERS = {
    "cifar10": write_cifar10,
    "imagenet": write_imagenet,
    "ade20k": write_ade20k,
    "cluttered_digits": shrink(cluttered_digits),
    "digit_scenes": shrink(digit_scenes),
}


@pytest.fixture
def data_sets(tmp_path, monkeypatch):
    """`data_sets(name)` makes a small data set in the real layout and returns the overrides that name its folder."""
    builders._load_data.cache_clear()

    def write(name):
        root = tmp_path / "data"
        root.mkdir()
        WRITERS[name](root, monkeypatch)
        return [] if WRITERS[name].__name__ == "write" else [f"dataset.root={root}"]

    yield write
    builders._load_data.cache_clear()  # a small set must not be taken for the whole one later


@pytest.fixture
def light(monkeypatch):
    """Two steps take a second or so: narrow NFNets, and checkpoints, of up to 0.8 GB, that stay in memory."""
    monkeypatch.setattr(nfnet, "WIDTHS", (256,) * 4)
    in_memory = {}
    for module in (state, top_k):
        monkeypatch.setattr(module, "save_checkpoint", lambda path, content, **_: in_memory.update({path: content}))
    monkeypatch.setattr(testing, "load_checkpoint", lambda path, device="cpu": in_memory[path])


def test_every_part_of_the_house_has_records():
    assert {record.partition("/")[0] for record in RECORDS} == {*SMALL}


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_composes_and_says_what_it_is(record, composed):
    config = composed(f"experiment={record}")
    assert config.dataset.name == record.partition("/")[0]
    fields = header(record)
    assert shlex.split(fields["command"]) == ["python", "-m", "runner", f"experiment={record}"]
    assert {"hardware", "time"} < fields.keys()
    assert len({"published", "measured"} & fields.keys()) == 1, "a result is someone else's or our own"
    assert re.search(r"\d %", fields.get("published", fields.get("measured")))
    if "published" in fields:
        assert re.search(r"arXiv \d{4}\.\d{5}", fields["title"])
        assert "not run" in fields


@pytest.mark.parametrize("record", RECORDS)
def test_the_settings_that_a_header_proposes_can_be_set(record, composed):
    """Each run of settings in the prose, by itself; a sweep's, with several values, one value each."""
    prose = " ".join(text for field, text in header(record).items() if field != "command").replace(" \\", "")
    for words in re.findall(r"(?:[a-z_]+(?:\.[a-z_]+)*=\S+ ?)+", prose):
        settings = [word.partition(",")[0].rstrip(".;)") for word in words.split()]
        if not settings[0].startswith("experiment="):
            settings.insert(0, f"experiment={record}")
        composed(*settings)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(record, marks=pytest.mark.slow if record.startswith(("ade20k/", "cifar10/resnet101")) else ())
        for record in RECORDS
    ],
)
def test_two_steps_of_a_record_run(record, composed, runner, data_sets, light):
    name = record.partition("/")[0]
    overrides = [f"experiment={record}", "train.max_steps=2", *SMALL[name], *data_sets(name)]
    overrides += ["model.width=0.125"] if record in ("imagenet/nf_resnet50", "imagenet/resnet50") else []
    outcome = runner(*overrides, "train.device=cpu", "wandb.mode=disabled", "name=it")
    assert outcome.code == 0, outcome.err + outcome.out
    folder = Path("outputs/runs/it")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed", summary["error"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "test"] == [2]
    config = composed(f"experiment={record}")
    assert {name for name, count in summary["methods"].items() if count} <= {*method_nodes(config), "sync_batchnorm"}
    assert all(0 <= summary[of][score] <= 1 for of in ("metrics", "last") for score in summary[of] if score != "loss")


@pytest.mark.parametrize(
    ("overrides", "lr", "weight_decays"),
    [
        (["experiment=imagenet/nfnet_f0"], 1.6, {2e-5, 0}),
        (["experiment=imagenet/nf_resnet50"], 0.4, {1e-4, 0}),
        (["experiment=imagenet/nf_resnet50", "train.global_batch_size=4096"], 1.6, {1e-4, 0}),
        (["experiment=imagenet/resnet50"], 0.1, {1e-4, 0}),
        (["experiment=imagenet/resnet50", "train.global_batch_size=8192"], 3.2, {1e-4, 0}),
        (["experiment=cifar10/resnet56"], 0.1, {1e-4, 0}),
        (["experiment=cifar10/resnet110_stochastic_depth"], 0.1, {1e-4}),
        (["experiment=cifar10/resnet110_bjorck"], 0.1, {5e-4}),
        (["experiment=ade20k/deeplabv3plus_resnet101"], 0.01, {5e-4}),
    ],
)
def test_the_optimizer_has_the_published_rate_and_decay(composed, overrides, lr, weight_decays):
    config = composed(*overrides)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = builders.build_optimizer(config.optimizer, model, global_batch_size=config.train.global_batch_size)
    groups = optimizer.param_groups
    assert [group["lr"] for group in groups] == pytest.approx([lr] * len(groups))
    assert {group["weight_decay"] for group in groups} == weight_decays
    assert {group["momentum"] for group in groups} == {0.9}


# images an epoch, and the published learning rate as a share of its largest at some epochs (or steps, if whole)
SCHEDULES = {
    "imagenet/resnet50": (1_281_167, {0.5: 1, 29.99: 1, 30.01: 0.1, 59.99: 0.1, 60.01: 0.01, 79.99: 0.01, 80.01: 1e-3}),
    "imagenet/nf_resnet50": (1_281_167, {2.5: 0.5, 5.0: 1, 47.5: 0.5, 90.0: 0}),
    "imagenet/nfnet_f0": (1_281_167, {2.5: 0.5, 5.0: 1, 182.5: 0.5, 360.0: 0}),
    "cifar10/resnet56": (50_000, {0: 1, 31_999: 1, 32_000: 0.1, 47_999: 0.1, 48_000: 0.01, 63_999: 0.01}),
    "cifar10/resnet110_bjorck": (50_000, {82.49: 1, 82.51: 0.1, 123.74: 0.1, 123.76: 0.01}),
    "cifar10/resnet110_stochastic_depth": (45_000, {249.99: 1, 250.01: 0.1, 374.99: 0.1, 375.01: 0.01}),
    "ade20k/deeplabv3plus_resnet101": (20_210, {0: 1, 63.5: 0.01 + 0.99 * 0.5**0.9, 127.0: 0.01}),
}


@pytest.mark.parametrize("record", SCHEDULES)
def test_the_schedule_falls_when_the_published_one_does(composed, record):
    config = composed(f"experiment={record}")
    images, shares = SCHEDULES[record]
    steps_per_epoch = images // config.train.global_batch_size
    total_steps = min(config.train.epochs * steps_per_epoch, config.train.max_steps or float("inf"))
    share = builders.build_schedule(config.schedule, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    for place, expected in shares.items():
        step = place if isinstance(place, int) else round(place * steps_per_epoch)
        assert share(step) == pytest.approx(expected, abs=5e-3 * expected + 1e-6), place
    assert config.train.max_steps is None or total_steps == config.train.max_steps


@pytest.mark.parametrize(
    ("record", "num_blocks", "active"),
    [
        ("cifar10/resnet110_stochastic_depth", 54, 40.25),  # Huang et al., section 3: about 40 of 54
        ("imagenet/nfnet_f0", 12, 12 - 0.25 * 13 / 2),
    ],
)
def test_as_many_blocks_are_active_as_published(composed, record, num_blocks, active):
    config = composed(f"experiment={record}")
    with torch.device("meta"):
        model = builders.build_model(config.model, num_classes=10)
        builders.build_methods(config)["stochastic_depth"].apply(model, torch.zeros(2, 3, 32, 32))
    rates = [module.drop_rate for module in model.modules() if isinstance(module, StochasticDepth)]
    assert len(rates) == num_blocks
    assert sum(1 - rate for rate in rates) == pytest.approx(active)


def test_the_head_of_deeplab_keeps_its_15_convolutions(composed):
    config = composed("experiment=ade20k/deeplabv3plus_resnet101_weight_standardization")
    model = builders.build_model(config.model, num_classes=150)
    count = builders.build_methods(config)["weight_standardization"].apply(model, torch.zeros(2, 3, 64, 64))
    assert count == sum(isinstance(module, nn.Conv2d) for module in torchvision.models.resnet101().modules()) == 104
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 104 + 15


def test_nfnet_f0_is_trained_and_tested_at_the_sizes_of_the_model(composed):
    config = composed("experiment=imagenet/nfnet_f0")
    published = nfnet.VARIANTS[0]
    assert (config.dataset.image_size, config.dataset.test_size) == (published.train_size, published.test_size)
    assert config.dataset.test_resize == published.test_size + 32
    assert config.model.dropout == published.dropout
    assert config.dataset.rand_augment_magnitude / 30 == published.rand_augment / 10


def test_the_command_line_wins_over_a_record_and_a_record_over_its_groups(composed):
    record = "experiment=imagenet/nfnet_f0"
    assert composed("model=nfnet_f0", "norm=agc").optimizer.weight_decay != composed(record).optimizer.weight_decay
    changed = composed(record, "model=nfnet_f1", "agc.clip=0.02", "dataset.validation=0.01", "train.ema=null")
    assert (changed.model.name, changed.agc.clip, changed.dataset.validation) == ("nfnet_f1", 0.02, 0.01)
    assert changed.train.ema is None


def test_values_of_a_replaced_option_give_way(composed):
    """They were meant for the record's own option; what the command line sets beside it stays."""
    config = composed("experiment=cifar10/resnet56", "schedule=constant", "optimizer=adamw", "optimizer.beta2=0.95")
    target = "runner.optim.schedules.constant"
    assert dict(config.schedule) == {"_target_": target, "name": "constant", "warmup_epochs": 1.0}
    plain = composed("optimizer=adamw", "optimizer.beta2=0.95")
    assert config.optimizer == plain.optimizer
    assert config.train.epochs == composed("experiment=cifar10/resnet56").train.epochs
    assert composed("experiment=cifar10/resnet56", "model=resnet110").model.initialization == "kaiming_fan_in"
    without = composed("experiment=imagenet/nf_resnet50", "norm=batchnorm")
    assert "agc" not in without
    with pytest.raises(SettingError, match="agc is not part of this run"):
        composed("experiment=imagenet/nf_resnet50", "norm=batchnorm", "agc.clip=0.1")
