"""The benchmark: that it runs and writes what it should, that it times what it says, and compares like with like."""

import copy
import json
import os
import runpy
import statistics
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from runner.config.validation import CONF, METHOD_GROUPS
from runner.experiment import builders
from runner.methods import GhostBatchNorm2d, StdConv2d, adaptive_clip_grad_, apply_weight_standardization
from runner.optim.optimizers import adamw, parameter_groups, sgd

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(scope="module")
def benchmarks():
    """The modules beside bench.py, which Python finds when it runs that file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        from benchmarks import methods, peers, photos, result, timing, training, watched_run, whole_runs

        yield SimpleNamespace(
            methods=methods,
            peers=peers,
            photos=photos,
            result=result,
            timing=timing,
            training=training,
            watched_run=watched_run,
            whole_runs=whole_runs,
        )


# ---- the command


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a quick run of everything writes."""
    path = tmp_path_factory.mktemp("bench") / "made/by/it/methods.json"
    command = [sys.executable, SCRIPTS / "bench.py", "methods", "--quick", "--blocks", "1", "--image-size", "40"]
    command += ["--device", "cpu", "--threads", "1", "--json", path]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    for comparison in report["comparisons"]:
        assert comparison["title"] in done.stdout
    return report


@pytest.mark.slow
def test_every_comparison_is_in_the_report(report):
    titles = [comparison["title"] for comparison in report["comparisons"]]
    parts = [*["ghost batch norm layer"] * 4, "clip of", "clip of", "standardization of one layer"]
    parts += [*["ghost batch norm of"] * 4, ": weight standardization", ": stochastic depth", ": every method"]
    assert len(titles) == len(set(titles)) == len(parts)
    assert all(part in title for part, title in zip(parts, titles, strict=True))
    assert report["settings"]["threads"] == 1
    assert report["settings"]["device"] == "cpu"
    assert report["provenance"]
    assert report["machine"].startswith("CPU, 1 threads of ")
    for part in "ghost batch norm layer", "ghost batch norm of":  # both formats, in both precisions
        precisions = [each["precision"] for each in report["comparisons"] if part in each["title"]]
        assert precisions == ["fp32", "bf16"] * 2
    assert sum(each["precision"] == "bf16" for each in report["comparisons"]) == 4


@pytest.mark.slow
def test_ratios_are_over_the_plain_arm(report):
    plains = {"nn.BatchNorm2d", "nn.Conv2d", "plain", "batchnorm", "ours"}  # of the clips our own
    for comparison in report["comparisons"]:
        arms = comparison["arms"]
        plain = next(iter(arms))
        assert plain in plains
        assert arms[plain]["ratio"] == arms[plain]["ratio_of_medians"] == 1
        for arm in arms.values():
            assert arm["ms"] > 0
            assert arm["ratio"] == pytest.approx(arm["ms"] / arms[plain]["ms"])
            statistic = {"min": min, "mean": lambda blocks: sum(blocks) / len(blocks)}[comparison["statistic"]]
            assert arm["ms"] == pytest.approx(statistic(arm["blocks_ms"]), abs=1e-4)


@pytest.mark.slow
def test_targets_are_judged_by_their_ratios(report):
    measured = {comparison["title"]: comparison for comparison in report["comparisons"]}
    for result in report["results"]:
        title = result["what"].removesuffix(", added to the plain step")
        title, after, _ = title.partition(", GhostBatchNorm2d, ReLU")  # an arm that is not named in `what` is ours
        ms = {name: each["ms"] for name, each in measured[title]["arms"].items()}
        own = "ours" if "ours" in ms else "GhostBatchNorm2d" + ", ReLU" * bool(after)
        less = ms["plain"] if "added to" in result["what"] else 0
        ratio = (ms[own] - less) / (ms[result["beside_what"]] - less)
        assert result["value"] == pytest.approx(ratio)
        assert result["met"] is (ratio <= result["at_most"])
        blocks = [measured[title]["arms"][name]["blocks_ms"] for name in (own, result["beside_what"])]
        if not less:
            assert result["blocks"] == pytest.approx([a / b for a, b in zip(*blocks, strict=True)], rel=0.01)
    assert len(report["results"]) == 4 * 2 + 2 * 2 + 4 + 2


@pytest.mark.slow
def test_every_method_of_the_command_line_is_measured(report):
    options = {path.stem for group in METHOD_GROUPS for path in (CONF / group).glob("*.yaml")}
    # a change before an evaluation, not of a step
    assert set(report["comparisons"][-1]["arms"]) == options - {"precise_batchnorm"}


@pytest.mark.slow
def test_memory_kept_for_backward_is_in_the_report(report):
    norms, convs = report["kept_for_backward"].values()
    assert norms["GhostBatchNorm2d"] <= norms["nn.BatchNorm2d"] + 2 * 2 * 8 * 4  # a mean and a deviation a ghost batch
    assert convs["nn.Conv2d"] == 0
    weight = 4 * 64 * 64 * 9
    assert weight <= convs["StdConv2d"] <= 1.01 * weight


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_a_script_finds_the_runner_beside_it_from_any_folder(tmp_path, name):
    """Whether or not one is installed: here another one would be found first, which cannot be imported."""
    (tmp_path / "runner.py").write_text("raise ImportError('another runner')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, SCRIPTS / name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_a_baseline_has_the_runners_optimizer(benchmarks, monkeypatch):
    """Else a ratio would be one of fused to plain SGD."""
    scale = benchmarks.methods.MethodScale(torch.device("cpu"), blocks=1, model="resnet18", batch_size=2, image_size=64)
    made = []
    monkeypatch.setattr(
        benchmarks.methods, "sgd", lambda *args, **kwargs: made.append(sgd(*args, **kwargs)) or made[-1]
    )
    next(c for c in benchmarks.methods.comparisons(scale) if c.title.startswith("step of")).arms()
    assert len(made) == 3
    assert all(optimizer.defaults["fused"] and optimizer.defaults["nesterov"] for optimizer in made)


@pytest.mark.parametrize("what", ["methods", "train"])
def test_a_gpu_that_is_not_there_is_named(monkeypatch, what):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "argv", ["bench.py", what, "--device", "cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of this process, for the tests after
    with pytest.raises(SystemExit, match="--device cuda: torch sees no GPU here"):
        runpy.run_path(str(SCRIPTS / "bench.py"), run_name="__main__")


# ---- the table of all parts


def test_a_result_is_judged_by_its_ratio_or_by_itself(benchmarks):
    result = benchmarks.result.Result
    faster = result("speed", 300.0, "images/s", 200.0, "timm", 1.3, is_upper=False, blocks=(1.1, 1.5, 1.3, 1.7, 1.9))
    assert (faster.value, faster.met, faster.quartiles) == (1.5, True, (1.3, 1.7))
    assert faster.cells() == ("speed", "300 images/s", "timm: 200", "1.5", "1.3 to 1.7", "at least 1.3", "yes")
    assert result("time", 2.5, "s", bound=2.0).cells() == ("time", "2.5 s", "", "", "", "at most 2", "NO")
    assert result("time", 2.0, "s", bound=2.0).met
    assert result("size", 1234.5, "MiB", 1000.0, "plain").cells()[1:] == (
        "1,234 MiB",
        "plain: 1,000",
        "1.23",
        "",
        "",
        "",
    )
    for each in (faster, result("time", 2.5, "s", bound=2.0), result("size", 1.0, "MiB")):
        saved = json.loads(json.dumps(each.as_dict()))
        assert result.from_dict(saved).cells() == each.cells()


@pytest.mark.slow
def test_all_prints_every_part_and_its_table_goes_into_a_readme(tmp_path):
    command = [sys.executable, SCRIPTS / "bench.py", "all", "--quick", "--device", "cpu", "--threads", "1"]
    command += ["--folder", tmp_path, "--parts", "train"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "train.json").read_text())["results"]
    assert len(results) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        bench = runpy.run_path(str(SCRIPTS / "bench.py"))
    readme = tmp_path / "README.md"
    begin, end = bench["BEGIN"], bench["END"]
    readme.write_text(f"before\n{begin}old\n{end}after\n")
    for _ in range(2):
        bench["write_table"](tmp_path, readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\nCPU, 1 threads of")
    assert text.endswith(f"|\n\n{end}after\n")
    assert text.count("training loop, resnet18") == 1
    assert "old" not in text


def test_images_per_second_of_timms_script_are_the_last_mean_in_its_log(benchmarks):
    lines = [
        "Train: 0 [   3/20 ( 15%)]  Loss: 2.31 (2.35)  Time: 0.139s,  460.11/s  (0.201s,  318.20/s)  LR: 5.000e-02",
        "Train: 1 [  19/20 (100%)]  Loss: 0.31 (0.35)  Time: 0.039s, 1460.11/s  (0.101s,  618.20/s)  LR: 5.000e-03",
        "Test: [   0/2]  Time: 0.050 (0.050)  Loss:   0.3 ( 0.3)  Acc@1:  90.0 ( 90.0)",
    ]
    assert benchmarks.whole_runs.speed_in("\n".join(lines)) == 618.2
    with pytest.raises(RuntimeError, match="no images/s"):
        benchmarks.whole_runs.speed_in(lines[2])


def test_a_whole_command_is_timed_on_the_wall_and_on_the_cpu(benchmarks, tmp_path):
    work = "import time; time.sleep(0.3); print(sum(range(10**6)))"
    seconds, cpu_seconds, output = benchmarks.whole_runs._timed([sys.executable, "-c", work], tmp_path)
    assert output == "499999500000\n"
    assert 0 < cpu_seconds < seconds
    assert seconds > 0.3
    with pytest.raises(RuntimeError, match="not a number"):
        benchmarks.whole_runs._timed([sys.executable, "-c", "raise SystemExit('not a number')"], tmp_path)


# ---- the training loop


@pytest.fixture(scope="module")
def training_report(tmp_path_factory):
    """What a quick run of the training benchmark writes, of a run with a method and an average of the weights."""
    path = tmp_path_factory.mktemp("bench") / "train.json"
    command = [sys.executable, SCRIPTS / "bench.py", "train", "--quick", "--model", "resnet20", "--device", "cpu"]
    command += ["--threads", "1", "--json", path, "--set", "train.ema=0.9", "norm=agc"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    for part in ("training loop, resnet20", "norm of the gradient", "before the first step"):
        assert part in done.stdout
    return json.loads(path.read_text())


@pytest.mark.slow
def test_the_training_report_compares_three_loops(training_report):
    arms, ratios = training_report["arms"], training_report["ratios"]
    assert list(arms) == ["runner", "bare loop", "default optimizer"]
    for arm in arms.values():
        assert len(arm["blocks_s"]) == len(arm["blocks_cpu_s"]) == training_report["settings"]["blocks"] == 2
        assert arm["images_per_second"] == pytest.approx(8 / statistics.median(arm["blocks_s"]), rel=1e-3)
    for name, ratio in ratios.items():
        speeds = [arms[arm]["images_per_second"] for arm in ("runner", name)]
        assert ratio["wall"]["of_medians"] == pytest.approx(speeds[0] / speeds[1])
        low, middle, high = ratio["wall"]["quartiles_over_blocks"]
        assert low <= middle <= high
    assert training_report["optimizer"] == {"bare loop": "SGD, fused", "default optimizer": "SGD, as torch chooses"}
    assert training_report["settings"]["settings"] == ["train.ema=0.9", "norm=agc"]
    assert training_report["precision"] in ("fp32", "bf16")  # as the processor has it


@pytest.mark.slow
def test_the_training_report_shows_where_the_rest_goes(training_report):
    breakdown = training_report["breakdown"]
    parts = {"average of the weights", "method agc", "sums of loss and counts", "norm of the gradient", "schedule"}
    assert parts <= set(breakdown["parts_ms"])
    assert all(milliseconds > 0 for milliseconds in breakdown["parts_ms"].values())
    step, known = breakdown["step_ms"], sum(breakdown["parts_ms"].values())
    assert breakdown["rest_ms"] == pytest.approx(step["runner"] - step["bare loop"] - known)
    assert set(breakdown["between_epochs_s"]) == {"evaluation", "checkpoints"}
    assert all(seconds > 0 for seconds in breakdown["between_epochs_s"].values())


@pytest.mark.slow
def test_the_training_report_tells_what_comes_before_the_first_step(training_report):
    start = training_report["start"]
    assert {"model and methods", "optimizer", "the rest"} <= set(start["parts_s"])
    assert sum(start["parts_s"].values()) == pytest.approx(start["to_first_step_s"])
    assert all(start[key] > 0 for key in ("imports_s", "data_s", "first_step_s", "second_step_s"))
    loop, start_time, first_line, first_step = training_report["results"]
    ratio = training_report["ratios"]["bare loop"]["wall"]
    assert loop["value"] == pytest.approx(ratio["of_medians"])
    assert loop["at_least"] == 0.97
    assert loop["quartiles"] == ratio["quartiles_over_blocks"][::2]
    assert start_time["value"] == start["to_first_step_s"]
    assert (first_line["value"], first_line["at_most"]) == (start["first_line_s"], 1.0)
    assert first_step["value"] > start["to_first_step_s"] + start["imports_s"] + start["data_s"]
    for result in (loop, start_time, first_line):
        assert result["met"] is (result.get("at_least", -1) <= result["value"] <= result.get("at_most", 1e9))


def test_the_bare_loop_trains_as_the_runner_does(benchmarks, composed, tmp_path):
    """On the same batches it comes to the same weights: so both do the same work."""
    scale = replace(
        benchmarks.training.TrainingScale(torch.device("cpu"), blocks=1), **benchmarks.training.QUICK, model="resnet20"
    )
    config = composed(*scale.overrides(epochs=1, outputs=tmp_path))
    seen = {}

    def take(trainer):
        seen["trainer"], seen["start"] = trainer, copy.deepcopy(trainer.state.model)

    benchmarks.watched_run.run(config, take)
    trainer, model = seen["trainer"], seen["start"]
    optimizer = builders.build_optimizer(config.optimizer, model, global_batch_size=4)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    benchmarks.training.train_bare(model, optimizer, trainer.train_batches, trainer.state.precision, 0)
    moved = 0
    for own, other, start in zip(model.parameters(), trainer.state.model.parameters(), before, strict=True):
        change = (other - start).detach()
        torch.testing.assert_close(own - start, change, rtol=1e-3, atol=1e-3 * change.abs().max().item())
        moved += bool(change.any())
    assert moved == len(before)


def test_a_clock_counts_a_call_within_another_once(benchmarks, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(benchmarks.watched_run.time, "perf_counter", lambda: clock.now)
    clocks = benchmarks.watched_run.Clocks(torch.device("cpu"), "wall")
    calls = SimpleNamespace(inner=lambda: clock.take("inner", 3.0), missing=None)
    calls.outer = lambda: (clock.take("outer", 1.0), calls.inner(), clock.take("outer", 1.0))
    with clocks.on_all(calls, [("outer", "a"), ("inner", "b"), ("missing.part", "c")]):
        calls.outer()
        calls.inner()
    calls.outer()
    assert dict(clocks.seconds) == {"a": 2.0, "b": 6.0}


def test_the_plain_optimizer_has_the_settings_of_the_other(benchmarks):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    groups = parameter_groups(model, weight_decay=0.3)
    for fused in (sgd(groups, lr=0.7, momentum=0.8), adamw(groups, lr=0.7, beta1=0.8)):
        plain = benchmarks.training.plain_optimizer(fused)
        assert type(plain) is type(fused)
        assert fused.defaults["fused"]
        assert not plain.defaults["fused"]
        for own, other in zip(plain.param_groups, fused.param_groups, strict=True):
            assert all(own[key] == other[key] for key in own if key not in ("fused", "foreach"))


# ---- timing


class Clock:
    """Stands still but for what is told to take time."""

    def __init__(self):
        self.now = 0.0
        self.events = []

    def take(self, event, seconds):
        self.events.append(event)
        self.now += seconds


@pytest.fixture
def clock(benchmarks, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(benchmarks.timing.time, "perf_counter", lambda: clock.now)
    return clock


def arms_of(benchmarks, clock, names):
    return {
        name: benchmarks.timing.Arm(partial(clock.take, name, seconds), partial(clock.take, f"prepare {name}", 100.0))
        for seconds, name in enumerate(names, start=1)
    }


def test_arms_take_turns_in_an_order_that_rotates(benchmarks, clock):
    benchmarks.timing.interleaved(arms_of(benchmarks, clock, "abc"), blocks=4, repeats=1, device=torch.device("cpu"))
    assert clock.events[::2] == [f"prepare {event}" for event in clock.events[1::2]]
    runs = "".join(clock.events[1::2])
    assert runs == "abcabc" + "abc" + "bca" + "cab" + "abc"  # the first two are a warm-up


def test_preparations_are_not_timed_and_a_block_is_the_mean_of_its_repeats(benchmarks, clock):
    seconds = benchmarks.timing.interleaved(
        arms_of(benchmarks, clock, "ab"), blocks=3, repeats=2, device=torch.device("cpu")
    )
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3}
    durations = iter([0, 0, 1, 3, 5, 9])  # two of the warm-up
    arm = benchmarks.timing.Arm(lambda: clock.take("run", next(durations)))
    found = benchmarks.timing.interleaved({"a": arm}, blocks=2, repeats=2, device=torch.device("cpu"))
    assert found == {"a": [2.0, 7.0]}


def test_kept_for_backward_counts_each_storage_once(benchmarks):
    kept = benchmarks.timing.kept_for_backward
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert kept(lambda: x.exp(), set()) == 3 * 5 * 8  # the result
    assert kept(lambda: x * x, set()) == 3 * 5 * 8  # the input, twice
    assert kept(lambda: x * x[:, :2].sum(), set()) == 3 * 5 * 8 + 8
    assert kept(lambda: x * x, {x.untyped_storage().data_ptr()}) == 0
    assert kept(lambda: x + 1, set()) == 0
    linear = nn.Linear(5, 7).double()
    assert kept(lambda: linear(x), set()) == 8 * (3 * 5 + 7 * 5)  # input and weight


# ---- the peers' forms compute what ours do: else their times would say nothing


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(12, 5, 6, 7) * 2 + 1


def output_and_gradients(module, x):
    x = x.clone().requires_grad_()
    out = module(x)
    torch.manual_seed(1)
    out.backward(torch.randn_like(out))
    return [out, x.grad, *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize(("batch", "ghost"), [(12, 4), (12, 6), (4, 16)])
def test_the_chunk_loop_is_ghost_batch_norm(benchmarks, images, batch, ghost):
    ours, theirs = GhostBatchNorm2d(5, ghost_batch_size=ghost), benchmarks.peers.ChunkedBatchNorm2d(5)
    theirs.ghost_batch_size = ghost
    for norm in (ours, theirs):
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(2))
    pairs = zip(*(output_and_gradients(norm, images[:batch]) for norm in (ours, theirs)), strict=True)
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def plain_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(5, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, (1, 3)))


@pytest.mark.parametrize("way", ["standardize_by_batch_norm_calls", "standardize_by_parametrization"])
def test_the_other_forms_of_weight_standardization_are_ours(benchmarks, images, way):
    ours, theirs = plain_net(), plain_net()
    assert apply_weight_standardization(ours) == getattr(benchmarks.peers, way)(theirs) == 2
    assert type(ours[0]) is StdConv2d
    assert not torch.allclose(plain_net()(images), ours(images), rtol=0.1)
    own, other = (output_and_gradients(net, images) for net in (ours, theirs))
    shapes = [tensor.shape for tensor in own]
    assert sorted(shapes) == sorted(tensor.shape for tensor in other)
    for tensor in other:  # a parametrized weight stands at another place among the parameters
        candidates = [mine for mine in own if mine.shape == tensor.shape]
        assert any(torch.allclose(mine, tensor, rtol=1e-4, atol=1e-5) for mine in candidates)


def test_chunk_loops_take_the_place_of_batch_norms(benchmarks, images):
    net = plain_net()
    assert benchmarks.peers.chunk_batch_norms(net, 4) == 1
    expected = plain_net()
    expected[1] = GhostBatchNorm2d(6, ghost_batch_size=4)
    torch.testing.assert_close(net(images), expected(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip", [0.01, 0.3])
def test_clipping_each_parameter_is_our_clip_where_no_floor_acts(benchmarks, clip):
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(6, 5, 3, 3), (7, 4), (9,), (3, 2, 5)]]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    for own, other in zip(ours, theirs, strict=True):
        own.grad = torch.randn_like(own) * torch.linspace(0.01, 1, len(own)).view(-1, *(1,) * (own.ndim - 1))
        other.grad = own.grad.clone()
    share = adaptive_clip_grad_(ours, clip=clip)["clipped_share"].item()
    assert 0.3 < share <= 1
    benchmarks.peers.clip_each_parameter(theirs, clip)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_gradients_are_restored_before_each_clip(benchmarks):
    """Else nothing would be clipped after the first."""
    scale = benchmarks.methods.MethodScale(torch.device("cpu"), blocks=1, model="resnet18", batch_size=2, image_size=64)
    arms = next(c for c in benchmarks.methods.comparisons(scale) if c.title.startswith("clip of")).arms()
    for way in ("ours", "ours, as a function"):
        for _ in range(2):
            arms[way].prepare()
            metrics = arms[way].run()
            assert metrics["clipped_share"] > 0.9
            assert metrics["largest_ratio"] > 0.02
        assert arms[way].run()["largest_ratio"] < 0.010001  # of gradients that are clipped already


# ---- photos


def test_each_way_of_reading_photos_gives_the_same_number_of_images(benchmarks, tmp_path):
    photos = benchmarks.photos
    scale = photos.PhotosScale(**photos.QUICK)
    photos.write_photos(tmp_path, scale.photos)
    assert len(list(tmp_path.glob("train/*/*.jpg"))) == scale.photos
    images = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "_consume", lambda batches: [image for batch, _ in batches for image in batch])
        for name, run in photos._loaders(str(tmp_path), scale, workers=0):
            images[name] = run()
    assert {photos.OURS, photos.PIL_WAY} <= images.keys()
    for name, loaded in images.items():
        assert len(loaded) == scale.photos, name
        assert {image.shape for image in loaded} == {(3, scale.image_size, scale.image_size)}, name
        assert abs(torch.stack(loaded).mean()) < 1, name  # normalized
    for _, run in photos._readers(str(tmp_path), scale):
        assert len(run()) == scale.photos


def test_a_result_of_photos_is_the_fastest_pass_over_the_fastest(benchmarks):
    photos = benchmarks.photos
    speeds = {"reading": {photos.OURS: [300.0, 100.0], photos.PIL_WAY: [100.0, 150.0]}}
    [result] = photos._results(speeds)
    assert (result.value, result.met, result.bound, list(result.blocks)) == (2.0, True, 1.6, [3.0, 100 / 150])


# ---- sweeps


@pytest.mark.parametrize(("at_once", "bound"), [("sweep.jobs_at_once=auto", None), ("sweep.jobs_per_device=4", 3.0)])
def test_runs_an_hour_are_compared(benchmarks, monkeypatch, at_once, bound):
    from benchmarks import sweep

    taken = {False: iter([80.0, 160.0]), True: iter([20.0, 40.0])}
    monkeypatch.setattr(sweep, "run_sweep", lambda settings, threads: next(taken[at_once in settings]))
    arguments = SimpleNamespace(at_once=[at_once], set=["train.epochs=2"], quick=True, blocks=2)
    report = sweep.measure(arguments, torch.device("cpu"), Mock())
    [result] = report.results
    assert (result.beside, result.ours) == (8 * (45 + 22.5) / 2, 8 * (180 + 90) / 2)
    assert (result.value, result.blocks, result.bound) == (4, [4, 4], bound)
    assert report.measured["seconds"] == {"one after the other": [80, 160], at_once: [20, 40]}
    assert report.settings["settings"][-1] == "train.epochs=2"
