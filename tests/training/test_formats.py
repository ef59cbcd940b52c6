"""What train.precision=auto and train.channels_last=null are, and that a run goes on in what it has begun in."""

import pytest
import torch
import yaml

from runner.config.options import CONF, TARGET, read_option
from runner.experiment.entry import Entry
from runner.training import formats
from runner.training.checkpoint import load_checkpoint
from runner.training.formats import Formats, begun_formats, choose_formats

CPU = torch.device("cpu")
HAS_NATIVE = formats.has_native_bf16  # before the fixture that makes fp32 the default of the tests
NAMES = ("fp32 contiguous", "fp32 channels last", "bf16 contiguous", "bf16 channels last")


def row(family, multiply_adds, *speeds):
    return {
        "family": family,
        "multiply_adds": multiply_adds,
        "images_per_second": dict(zip(NAMES, speeds, strict=True)),
    }


@pytest.fixture
def native(monkeypatch):
    """`native(True)`: the CPU has bf16; the table says what is fastest for three models of two families."""
    table = [row("a", 10, 1, 2, 3, 4), row("a", 1000, 4, 3, 4.1, 3), row("b", 1000, 1, 3, 2, 2)]
    monkeypatch.setattr(formats, "TABLE", table)
    return lambda has: monkeypatch.setattr(formats, "has_native_bf16", lambda _: has)


@pytest.mark.parametrize(
    ("asked", "family", "multiply_adds", "chosen"),
    [
        (("auto", None), "a", 12, ("bf16", True)),
        (("auto", None), "a", 90, ("bf16", True)),  # nearer to 10 than to 1000 as a ratio
        (("auto", None), "a", 5000, ("fp32", False)),  # 2.5 % is too little
        (("auto", None), "b", 10, ("fp32", True)),
        (("auto", None), "of an extension", 20, ("bf16", True)),
        (("fp32", None), "a", 12, ("fp32", True)),
        (("bf16", None), "a", 5000, ("bf16", False)),
        (("bf16", None), "b", 1, ("bf16", False)),
        (("auto", False), "b", 1000, ("bf16", False)),
        (("auto", True), "b", 1000, ("fp32", True)),
        (("bf16", True), "b", 1000, ("bf16", True)),
    ],
)
def test_a_cpu_with_bf16_takes_what_was_fastest_for_the_nearest_model(native, asked, family, multiply_adds, chosen):
    native(True)
    assert choose_formats(*asked, CPU, family=family, multiply_adds=multiply_adds) == chosen


def test_a_cpu_without_bf16_takes_fp32_and_contiguous_memory(native):
    native(False)
    for asked, chosen in {
        ("auto", None): ("fp32", False),
        ("bf16", None): ("bf16", False),
        ("auto", True): ("fp32", True),
    }.items():
        assert choose_formats(*asked, CPU, family="a", multiply_adds=12) == chosen


@pytest.mark.parametrize("bf16", [True, False])
def test_a_gpu_takes_bf16_if_it_has_it_and_channels_last(native, bf16):
    native(bf16)
    gpu = torch.device("cuda")
    assert choose_formats("auto", None, gpu, family="a", multiply_adds=9) == ("bf16" if bf16 else "fp32", True)
    assert choose_formats("tf32", False, gpu, family="a", multiply_adds=9) == ("tf32", False)


@pytest.mark.parametrize("key", ["avx512_bf16", "amx_bf16"])
def test_native_bf16_is_asked_of_torch(monkeypatch, key):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, key: True})
    assert HAS_NATIVE(CPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, key: False})
    assert not HAS_NATIVE(CPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "arm64", "sve": True})
    assert not HAS_NATIVE(CPU)


def test_every_model_family_of_the_runner_is_in_the_table():
    files = {file.stem: file for file in (CONF / "model").glob("*.yaml")}
    assert {"resnet18", "nfnet_f0"} <= set(files)
    targets = [
        read_option("model", name, file).settings[TARGET]
        for name, file in files.items()
        if name not in ("timm", "torchvision")
    ]
    assert {target.rpartition(".")[0] for target in targets} == {row["family"] for row in formats.TABLE}
    for row in formats.TABLE:
        assert tuple(row["images_per_second"]) == NAMES
        assert min(row["images_per_second"].values()) > 0


def test_what_earlier_versions_left_open_is_what_it_was_then(native):
    gpu = torch.device("cuda")
    native(True)
    assert begun_formats({"precision": "auto", "channels_last": None}, CPU) == ("fp32", False)
    assert begun_formats({"precision": "auto", "channels_last": None}, gpu) == ("bf16", True)
    assert begun_formats({}, CPU) == ("fp32", False)
    assert begun_formats({"precision": "bf16", "channels_last": True}, CPU) == ("bf16", True)
    native(False)
    assert begun_formats({"precision": "auto", "channels_last": None}, gpu) == ("fp32", True)


# ---- runs


@pytest.fixture
def fast(monkeypatch, native):
    """`fast(True)`: a CPU where bf16 and channels last are fastest for any model."""
    monkeypatch.setattr(formats, "TABLE", [row("a", 10, 1, 2, 3, 4)])
    return native


def formats_in(folder):
    train = yaml.safe_load((folder / "config.yaml").read_text())["train"]
    return train["precision"], train["channels_last"]


def is_channels_last(folder):
    weights = [v for v in load_checkpoint(folder / "checkpoints/last.pt")["model"].values() if v.ndim == 4]
    return any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights)


RESUMED = {
    "resume": ("resume=outputs/runs/run", "train.epochs=2"),
    "auto_resume": ("name=run", "train.auto_resume=true", "train.epochs=2"),
}


@pytest.mark.parametrize("way", RESUMED)
@pytest.mark.parametrize("native_at_first", [True, False])
def test_a_run_records_its_formats_and_goes_on_in_them_elsewhere(small, fast, tmp_path, native_at_first, way):
    fast(native_at_first)
    begun = small("train.epochs=1", "name=run")
    assert begun.code == 0, begun.out
    folder, expected = tmp_path / "outputs/runs/run", ("bf16", True) if native_at_first else ("fp32", False)
    text = "bf16, channels last" if native_at_first else "fp32\n"
    fast(not native_at_first)
    resumed = small(*RESUMED[way])
    assert resumed.code == 0, resumed.out + resumed.err
    for outcome in (begun, resumed):
        device = next(line for line in outcome.out.splitlines(keepends=True) if line.lstrip().startswith("device: CPU"))
        assert text in device
    assert formats_in(folder) == expected
    assert is_channels_last(folder) == native_at_first


def test_formats_that_are_asked_for_are_taken_up_on_the_way(small, fast, tmp_path):
    fast(True)
    assert small("train.epochs=1", "name=run", "train.channels_last=false").code == 0
    folder = tmp_path / "outputs/runs/run"
    assert formats_in(folder) == ("bf16", False)
    assert small("resume=outputs/runs/run", "train.epochs=2", "train.precision=fp32").code == 0
    assert formats_in(folder) == ("fp32", False)


def test_a_run_of_an_earlier_version_goes_on_in_fp32(small, fast, tmp_path, monkeypatch):
    begin = Entry.begin
    left_open = {"train.precision": "auto", "train.channels_last": None}
    with monkeypatch.context() as patch:
        patch.setattr(Entry, "begin", lambda entry, settings, words: begin(entry, settings.changed(left_open), words))
        assert small("train.epochs=1", "name=run").code == 0
    folder = tmp_path / "outputs/runs/run"
    assert formats_in(folder) == ("auto", None)
    fast(True)
    resumed = small("resume=outputs/runs/run", "train.epochs=2")
    assert resumed.code == 0, resumed.err
    assert formats_in(folder) == ("fp32", False)


def test_a_run_in_a_format_that_the_device_has_not_is_refused(small, fast, tmp_path, monkeypatch):
    fast(False)
    assert small("train.epochs=1", "name=run").code == 0
    monkeypatch.setattr("runner.experiment.resume.begun_formats", lambda *_: Formats("fp16", False))  # on a GPU
    small("resume=outputs/runs/run", "train.epochs=2").assert_refused("train.precision=fp16", "Use fp32 or bf16")
    assert formats_in(tmp_path / "outputs/runs/run") == ("fp32", False)
