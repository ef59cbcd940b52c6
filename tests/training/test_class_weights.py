"""train.class_weights, and the accuracy of each class."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

from runner import load_run
from runner.experiment import builders
from runner.training.class_weights import class_counts, with_class_weights
from runner.training.evaluation import Precision, evaluate
from runner.training.tasks import Classification, Segmentation, task_of

CPU = torch.device("cpu")


def data_of(composed, *overrides):
    config = composed(*overrides)
    data = builders.build_data(config.dataset)
    return data, task_of(data, config.train), config.train


def test_balanced_weights_are_scikit_learns(composed):
    data, task, _ = data_of(composed, "dataset=digits")
    labels = data.train.targets.numpy()
    expected = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    found = with_class_weights(task, "balanced", data, CPU).class_weights
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_the_pixels_of_masks_in_files_are_counted(composed, make_scenes, tmp_path):
    make_scenes(tmp_path / "scenes", training=8, validation=4)
    words = (
        f"dataset.root={tmp_path}/scenes",
        "dataset.num_classes=4",
        "dataset.num_workers=0",
        "dataset.ignore_label=255",
    )
    data, task, _ = data_of(composed, "dataset=mask_folder", *words, "model=deeplabv3plus_resnet18")
    masks = [torch.from_numpy(np.asarray(Image.open(mask)).copy()) for _, mask in data.train]
    expected = sum(torch.stack([(mask == number).sum() for number in range(4)]) for mask in masks)
    assert class_counts(data, CPU).tolist() == expected.tolist()
    weights = with_class_weights(task, "balanced", data, CPU).class_weights
    assert weights[3] == 1  # of a class without a pixel
    assert (weights * expected)[:3].tolist() == pytest.approx([expected.sum().item() / 3] * 3, rel=1e-6)


@pytest.mark.parametrize("task", [Classification(3), Segmentation(3)])
def test_micro_batches_do_not_change_the_weighted_loss_of_a_batch(task):
    torch.manual_seed(0)
    shape = (8, 5, 4) if isinstance(task, Segmentation) else (8,)
    targets = torch.randint(3, shape)
    if isinstance(task, Segmentation):
        targets[:3] = torch.where(targets[:3] == 1, 255, targets[:3])
    logits = torch.randn(8, 3, *shape[1:], dtype=torch.float64)
    task = replace(task, class_weights=torch.tensor([0.2, 1.0, 5.0]))
    whole = task.loss(logits, targets)
    parts = sum(
        task.loss(logits[half], targets[half]) * task.loss_weight(targets[half], targets)
        for half in (slice(0, 3), slice(3, 8))
    )
    assert parts.item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("even", "train.class_weights=even: it must be balanced, null, or a list of positive numbers"),
        ("3", "train.class_weights=3: it must be balanced"),
        ("[1,0]", "train.class_weights=[1,0]: it must be balanced"),
        ("[1,2]", "train.class_weights=[1,2]: 2 weights, and random has 10 classes"),
    ],
)
def test_wrong_weights_are_refused(small, tmp_path, weights, message):
    outcome = small(f"train.class_weights={weights}")
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "outputs").exists()


def test_a_run_learns_with_them_and_its_summary_has_the_accuracy_of_each_class(small, composed, tmp_path):
    weights = [1.0, 50.0, *[1.0] * 8]
    settings = ["train.epochs=2", "train.accumulation_steps=2", "regularization=[mixup,label_smoothing]"]
    assert small(*settings, f"train.class_weights={weights}".replace(" ", ""), "name=weighted").code == 0
    assert small(*settings, "train.class_weights=balanced", "name=balanced").code == 0
    assert small(*settings, "name=plain").code == 0
    folder = tmp_path / "outputs/runs"
    states = [torch.load(folder / n / "checkpoints/last.pt")["model"] for n in ("weighted", "balanced", "plain")]
    assert all(not torch.equal(states[2]["0.weight"], state["0.weight"]) for state in states[:2])
    summary = json.loads((folder / "weighted/summary.json").read_text())
    by_class = summary["accuracy_by_class"]
    model, config = load_run(folder / "weighted")
    data = builders.build_data(config.dataset)
    right, every = [0] * 10, [0] * 10
    images = (data.test.images - data.mean.view(-1, 1, 1)) / data.std.view(-1, 1, 1)
    for guess, label in zip(model(images).argmax(1).tolist(), data.test.targets.tolist(), strict=True):
        right[label] += guess == label
        every[label] += 1
    expected = {str(k): right[k] / every[k] if every[k] else None for k in range(10)}
    assert by_class == expected
    batches = data.evaluation_batches("test", batch_size=5, device=CPU)
    task = task_of(data, config.train)
    result = evaluate(model, batches, Precision("fp32", CPU), task)
    again = {key: None if math.isnan(value) else value for key, value in task.by_class(result.counts).items()}
    assert again == expected
