"""Segmentation from the command line: what is measured, on which part of the model methods act, what is left."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score
from torch.nn import functional as F

from runner import load_run
from runner.data import label_check
from runner.data.dataset import DataFault
from runner.experiment.builders import build_changed_model
from runner.layers.standardized_conv import StandardizedConv
from runner.methods import GhostBatchNorm2d
from runner.training.evaluation import evaluate
from runner.training.precision import Precision
from runner.training.tasks import Classification, Segmentation

RUN = ("train.epochs=1", "name=run")


def test_the_summary_is_measured_at_the_resolution_of_the_labels(runner, make_scenes, tmp_path):
    scenes = make_scenes(tmp_path / "scenes", training=8, validation=3)
    outcome = runner(*scenes, *RUN, "dataset.validation=test")
    assert outcome.code == 0, outcome.out
    assert "test as val. loss" in outcome.out
    assert "the test split stands in for validation" in outcome.out
    model, _ = load_run(tmp_path / "outputs/runs/run")
    labels, predictions, losses = [], [], []
    for file in sorted((tmp_path / "scenes/images/validation").iterdir()):
        image = Image.open(file)
        mask = np.asarray(Image.open(tmp_path / "scenes/annotations/validation" / file.name))
        scale = 24 / min(image.size)
        size = [round(side * scale) for side in image.size]
        pixels = torch.from_numpy(np.asarray(image.resize(size, Image.Resampling.BILINEAR)).copy()).permute(2, 0, 1)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        with torch.no_grad():
            logits = model(((pixels / 255 - mean) / std).unsqueeze(0))
        logits = F.interpolate(logits, mask.shape, mode="bilinear", align_corners=False)[0]
        labelled = mask != 255
        labels.append(mask[labelled])
        predictions.append(logits.argmax(0).numpy()[labelled])
        targets = torch.from_numpy(mask[labelled]).long()
        losses.append(F.cross_entropy(logits[:, torch.from_numpy(labelled)].T, targets).item())
    labels, predictions = np.concatenate(labels), np.concatenate(predictions)
    summary = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())
    # each image by itself here, in a batch with images of other sizes there: that must make no difference
    assert summary["metrics"]["pixel_accuracy"] == pytest.approx((labels == predictions).mean(), abs=2e-3)
    assert summary["metrics"]["mean_iou"] == pytest.approx(
        jaccard_score(labels, predictions, average="macro", labels=np.union1d(labels, predictions)), abs=2e-3
    )
    assert summary["metrics"]["loss"] == pytest.approx(np.mean(losses), rel=1e-3)
    assert list(summary["iou_by_class"]) == ["0", "1", "2"]
    assert confusion_matrix(labels, predictions).sum() == len(labels)


@pytest.mark.parametrize(("part", "norms", "convolutions"), [("all", 34, 33), ("backbone", 20, 18), ("head", 14, 13)])
def test_methods_change_the_part_that_is_asked_for(composed, part, norms, convolutions):
    """20 convolutions in the backbone and 15 in the head, of which the two run last are left alone."""
    config = composed(
        "model=deeplabv3plus_resnet18",
        "dataset=digit_scenes",
        f"model.methods_on={part}",
        "norm=[ghost_batchnorm,weight_standardization]",
        "weight_standardization.n_last_layers_ignore=2",
        "regularization=stochastic_depth",
    )
    with torch.device("meta"):
        built = build_changed_model(config, num_classes=11, example_input=torch.empty(2, 3, 64, 64))
    assert built.counts == {"ghost_batchnorm": norms, "weight_standardization": convolutions, "stochastic_depth": 8}
    for child, changed in (("backbone", part != "head"), ("head", part != "backbone")):
        modules = list(getattr(built.model, child).modules())
        assert any(isinstance(module, GhostBatchNorm2d) for module in modules) == changed
        assert any(isinstance(module, StandardizedConv) for module in modules) == changed


def test_unreadable_files_are_left_out_and_named(runner, make_scenes, tmp_path):
    scenes = make_scenes(tmp_path / "scenes", training=8, validation=3)
    image = tmp_path / "scenes/images/training/07.png"
    image.write_bytes(image.read_bytes()[:-60])  # its header tells of nothing
    outcome = runner(*scenes, *RUN, "dataset.max_unreadable=1", "dataset.validation=test")
    assert outcome.code == 0, outcome.out
    assert "unreadable: 1 file left out" in outcome.out
    [(file, _)] = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())["data"]["unreadable"].items()
    assert file.endswith("07.png")
    outcome = runner(*scenes, *RUN, "dataset.max_unreadable=0", "dataset.validation=test", "name=other")
    assert outcome.code == 1
    assert "dataset.max_unreadable=0: 1 files could not be read" in outcome.out
    image.write_bytes(b"not an image")
    outcome = runner(*scenes, *RUN, "dataset.max_unreadable=0", "dataset.validation=test", "dataset.flip=false")
    assert (outcome.code, outcome.out) == (2, "")
    assert "dataset.max_unreadable=0: 1 files cannot be read: scenes/images/training/07.png" in outcome.err


@pytest.mark.slow
def test_weights_go_from_a_run_into_another(runner, make_scenes, tmp_path):
    """The checkpoint of one run as another's first weights: with its methods, and with other classes."""
    scenes = make_scenes(tmp_path / "scenes", training=8, validation=3)
    assert runner(*scenes, *RUN, "norm=[batch_channel_norm,agc]", "batch_channel_norm.num_groups=4").code == 0
    first = torch.load(tmp_path / "outputs/runs/run/checkpoints/best.pt", weights_only=True)["model"]
    source = "model.pretrained=outputs/runs/run/checkpoints/best.pt"
    still = ("optimizer.lr=1e-30", "train.max_steps=1", "name=second")
    outcome = runner(*scenes, *RUN, "norm=batch_channel_norm", "batch_channel_norm.num_groups=4", source, *still)
    assert outcome.code == 0, outcome.out
    second = torch.load(tmp_path / "outputs/runs/second/checkpoints/last.pt", weights_only=True)["model"]
    weights = [name for name in first if name.endswith("weight")]
    assert all(torch.equal(first[name], second[name]) for name in weights)
    refused = runner(*scenes, *RUN, source, "name=third")
    assert refused.code == 2
    assert "these weights do not fit the model" in refused.err
    assert not (tmp_path / "outputs/runs/third").exists()
    fewer = runner(
        *(word for word in (*scenes, *RUN) if "num_classes" not in word),
        *("dataset.num_classes=4", "dataset.ignore_label=255"),
        *("norm=batch_channel_norm", "batch_channel_norm.num_groups=4", source, "train.max_steps=1", "name=fourth"),
    )
    assert fewer.code == 0, fewer.err
    assert "the classifier head.classifier is initialized anew: 3 classes in the weights, 4 here" in fewer.out


def test_micro_batches_have_the_cross_entropy_of_their_batch():
    """Also where pixels are ignored: each counts once, whichever part of the batch it is in."""
    torch.manual_seed(0)
    task = Segmentation(3)
    targets = torch.randint(3, (4, 8, 8))
    targets[2:, :7] = 255
    logits = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    [whole] = torch.autograd.grad(task.loss(logits, targets), logits)
    parts = zip(logits.chunk(2), targets.chunk(2), strict=True)
    total = sum(task.loss(part, labels) * task.loss_weight(labels, targets) for part, labels in parts)
    torch.testing.assert_close(torch.autograd.grad(total, logits)[0], whole)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_label_that_is_no_class_ends_the_run(runner, make_scenes, tmp_path, num_workers, monkeypatch):
    """It is no file that cannot be read: the number of classes may be wrong, and with it every result."""
    monkeypatch.setattr(label_check, "MAX_MASKS", 1)  # else it would be found before
    scenes = make_scenes(tmp_path / "scenes", training=12, validation=3)
    mask = tmp_path / "scenes/annotations/training/11.png"
    wrong = np.asarray(Image.open(mask)).copy()
    wrong[5, 5] = 9
    Image.fromarray(wrong).save(mask)
    outcome = runner(
        *scenes, *RUN, f"dataset.num_workers={num_workers}", "dataset.max_unreadable=5", "dataset.validation=test"
    )
    assert outcome.code == 1
    summary = json.loads((tmp_path / "outputs/runs/run/summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["error"].startswith(
        "dataset.num_classes=3: the mask scenes/annotations/training/11.png has the value 9"
    )
    assert "Traceback" not in outcome.out
    assert "Traceback" in (tmp_path / "outputs/runs/run/error.txt").read_text()


def test_an_evaluation_without_a_labelled_pixel_is_an_error():
    """Not a mean IoU of "nan %", of which every checkpoint would be the best."""
    masks = [(torch.full((4, 4), 255), (4, 4))]
    model, precision = torch.nn.Conv2d(3, 2, 1), Precision("fp32", torch.device("cpu"))
    with pytest.raises(DataFault, match="None of the 1 masks of an evaluation has a labelled pixel"):
        evaluate(model, [(torch.zeros(1, 3, 4, 4), masks)], precision, Segmentation(2))
    for task in (Segmentation(2), Classification(2)):
        with pytest.raises(DataFault, match="An evaluation had no image"):
            evaluate(model, [], precision, task)
    masks[0][0][0, 0] = 1
    assert evaluate(model, [(torch.zeros(1, 3, 4, 4), masks)], precision, Segmentation(2)).num_images == 1
