"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import BasicBlock

from runner.__main__ import main
from runner.config.recipes import without_replaced
from runner.config.settings import Settings
from runner.config.validation import CONF, validate
from runner.training import formats

TINY = ("dataset=random", "dataset.num_images=32", "dataset.image_size=8", "train.global_batch_size=8")
TINY += ("wandb.mode=disabled", "train.device=cpu")


def pytest_collection_finish() -> None:
    """Keep the garbage collector from going through all of torch and Hydra again and again: a sixth of a run's time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let libraries clean up at the end of the process."""
    gc.unfreeze()


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def assert_refused(self, *parts: str) -> None:
        """Exit code 2, and one line on stderr that has all of `parts`."""
        assert self.code == 2, self.out + self.err
        assert self.err.startswith("Wrong setting. ")
        assert len(self.err.splitlines()) == 1, self.err
        for part in parts:
            assert part in self.err


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """`runner(...)` runs the command line in this process, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["runner", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Outcome(end.value.code or 0, captured.out, captured.err)

    return call


class SmallNet(nn.Sequential):
    """A class of its own: of a bare nn.Sequential torch 2.11 compiles nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self:
            x = module(x)
        return x


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model in ResNet-18's place, whose checkpoints of 90 MB take the most time."""

    def build(*, num_classes: int, **_: object) -> nn.Module:
        stem = (nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))
        return SmallNet(*stem, BasicBlock(32, 32), *head)

    build.__module__ = "runner.models.resnet"
    monkeypatch.setattr("runner.models.resnet.resnet18", build)


@pytest.fixture
def tiny(runner: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """`tiny(...)` runs the command line on a few random images of 8x8, in 4 batches an epoch, with the real models."""
    return lambda *arguments: runner(*TINY, *arguments)


@pytest.fixture
def small(tiny: Callable[..., Outcome], small_model: None) -> Callable[..., Outcome]:
    """`tiny` with a small model in ResNet-18's place, for a third of the time.

    It has 3 convolutions, 3 batch norms and 1 residual block.
    """
    return tiny


@pytest.fixture(scope="session")
def shared_runs() -> dict[tuple[str, ...], Path]:
    """The runs of `finished` so far by their overrides, for that fixture alone."""
    return {}


@pytest.fixture
def finished(
    small: Callable[..., Outcome],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    shared_runs: dict[tuple[str, ...], Path],
) -> Callable[..., Path]:
    """`finished("train.epochs=1")` is tmp_path/outputs/runs/run, in which `small` did a run with these overrides.

    The tests share it: each gets a copy, to be changed at will. A test that patches the trainer calls `small` instead.
    """

    def call(*overrides: str) -> Path:
        folder = tmp_path / "outputs/runs/run"
        if overrides in shared_runs:
            return shutil.copytree(shared_runs[overrides], folder)
        outcome = small(*overrides, "name=run")
        assert outcome.code == 0, outcome.out + outcome.err
        shared_runs[overrides] = shutil.copytree(folder, tmp_path_factory.mktemp("finished") / "run")
        return folder

    return call


@pytest.fixture
def composed() -> Callable[..., Settings]:
    """`composed(...)` are the validated settings of these overrides."""

    def call(*overrides: str) -> Settings:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return validate(without_replaced(compose("config", overrides=list(overrides)), overrides))

    return call


@pytest.fixture
def make_scenes() -> Callable[..., tuple[str, ...]]:
    """`make_scenes(folder, training=8, validation=4)` writes images and masks of classes 0 to 2, and 255, to be read.

    A class is a colour, so that a network can learn it; the sizes differ. Returns the overrides of a run that trains
    a small model on them, from the folder above.
    """

    def call(folder: Path, *, training: int, validation: int) -> tuple[str, ...]:
        draw = np.random.default_rng(0)
        for split, number in (("training", training), ("validation", validation)):
            for kind in ("images", "annotations"):
                (folder / kind / split).mkdir(parents=True)
            for index in range(number):
                shape = tuple(draw.integers(24, 48, 2))
                mask = np.kron(draw.integers(0, 3, (4, 4)), np.ones((12, 12), int))[: shape[0], : shape[1]]
                image = np.stack([80 * mask, 255 - 80 * mask, draw.integers(0, 255, shape)], axis=2)
                mask[:2] = 255
                Image.fromarray(image.astype(np.uint8)).save(folder / "images" / split / f"{index:02}.png")
                Image.fromarray(mask.astype(np.uint8)).save(folder / "annotations" / split / f"{index:02}.png")
        data = ("dataset=mask_folder", f"dataset.root={folder.name}", "dataset.num_classes=3", "dataset.num_workers=0")
        size = ("dataset.image_size=32", "dataset.test_size=24", "train.global_batch_size=4")
        model = ("model=deeplabv3plus_resnet18", "model.head_channels=8", "train.device=cpu", "wandb.mode=disabled")
        return (*data, *size, *model)

    return call


@pytest.fixture(scope="session", autouse=True)
def fp32_by_default() -> Iterator[None]:
    """`train.precision=auto` is fp32 on any CPU, as on one without bf16: the figures of tests are those of fp32."""
    native = formats.has_native_bf16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "has_native_bf16", lambda device: device.type == "cuda" and native(device))
        yield


@pytest.fixture
def seeded() -> None:
    """torch's global generator starts from 0."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What torch, W&B and others leave in the temporary folder goes into pytest's own, and with it."""
    folder = str(tmp_path_factory.mktemp("temporary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run("agc.clip=0.01", "seed=1", accuracy=0.9)` writes a run of 3 epochs into the sweep `tmp_path/sweep`."""

    def make(*overrides: str, accuracy: float | None = 0.9, test: float | None = None, **summary: object) -> Path:
        folder = tmp_path / "sweep" / (",".join(overrides).replace("/", "_") or "run")
        folder.mkdir(parents=True)
        seed = next((word.removeprefix("seed=") for word in overrides if word.startswith("seed=")), "0")
        (folder / "config.yaml").write_text(yaml.safe_dump({"seed": int(seed), "train": {"epochs": 3}}))
        content = {
            "status": "completed",
            "metrics": {"accuracy": accuracy if test is None else test, "loss": 0.3} if accuracy else {},
            "best": {"accuracy": accuracy, "loss": 0.25, "epoch": 3} if accuracy else {},
            "throughput": {"images_per_second": 812.4, "seconds": 30.5},
            "data": {"test": 359, "validation": 143, "validation_source": "train"},
            "error": None,
            "overrides": list(overrides),
            **summary,
        }
        (folder / "summary.json").write_text(json.dumps(content))
        rows = [
            {"step": epoch, "epoch": epoch, "split": split, "loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch}
            for epoch in (1, 2, 3)
            for split in ("train", "validation")
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return make


@pytest.fixture
def no_host_sync() -> Callable[[], AbstractContextManager]:
    """In `with no_host_sync():` an operator that makes the host wait for the GPU raises RuntimeError."""

    @contextmanager
    def watch() -> Iterator[None]:
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:  # the mode belongs to the process: later tests must not inherit it
            torch.cuda.set_sync_debug_mode("default")

    return watch


class FakeKernels(TorchDispatchMode):
    """Shapes and dtypes of what a kernel gives for which torch has no fake form."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.batch_norm_update_stats.default:
            return tuple(args[0].new_empty(args[0].shape[1], dtype=torch.float32) for _ in ("mean", "variance"))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fake_kernels() -> TorchDispatchMode:
    """In `with FakeTensorMode(), fake_kernels:` kernels work on fake tensors for which torch alone has no answer."""
    return FakeKernels()


@pytest.fixture
def cuda_autocast(fake_kernels: TorchDispatchMode) -> Callable[[], AbstractContextManager]:
    """In `with cuda_autocast():` autocast to bf16 on CUDA is on, and tensors are fake: they need no GPU.

    A fake tensor has a shape, a dtype and a device, but no values, and gradients of those on CUDA want a driver.
    """

    @contextmanager
    def cast() -> Iterator[None]:
        before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True)  # torch.autocast turns itself off where there is no GPU
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), fake_kernels:
                yield
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])
            torch.clear_autocast_cache()

    return cast


@pytest.fixture
def inputs_of_convolutions() -> Callable[[nn.Module], list[tuple[str, torch.dtype]]]:
    """`inputs_of_convolutions(model)` fills with (name, dtype of the input) at each forward pass of a convolution."""

    def watch(model: nn.Module) -> list[tuple[str, torch.dtype]]:
        seen = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, args[0].dtype)))
        return seen

    return watch
