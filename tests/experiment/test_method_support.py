"""The contract of methods with the libraries' models: each works, or is refused with the reason that the README has."""

import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from runner.experiment.method_support import ARCHITECTURES, methods_by_name, support_of, table_of
from runner.methods.method import Method
from runner.models.timm import timm_model
from runner.models.torchvision import torchvision_model

README = (Path(__file__).parents[2] / "runner/methods/README.md").read_text()
TABLE = re.search(r"<!-- describe --methods -->\n\n(.*?)\n\n<!-- end -->", README, re.DOTALL)[1]


def cells(line):
    return [cell.strip(" `") for cell in line.strip("|").split("|")]


def documented():
    """What the README says of each (library, architecture), by method: a number, or a reason."""
    header, _, *rows = [cells(line) for line in TABLE.splitlines() if line.startswith("|")]
    reasons = dict(re.findall(r"^- (\(\d+\)) (.*)\.$", TABLE, re.MULTILINE))
    return {
        (library, architecture): {
            name: reasons[cell] if cell in reasons else int(cell) for name, cell in zip(header[2:], rest, strict=True)
        }
        for library, architecture, *rest in rows
    }


def test_the_readme_has_20_models_of_each_library():
    assert list(documented()) == ARCHITECTURES
    assert [sum(library == each for each, _ in ARCHITECTURES) for library in ("timm", "torchvision")] == [20, 20]


@pytest.mark.parametrize(
    "model", [("timm", "resnet18"), ("timm", "vit_tiny_patch16_224"), ("torchvision", "squeezenet1_1")], ids=str
)
def test_the_readme_says_what_the_methods_do(model):
    results = support_of(*model)
    assert {name: results[name] for name in documented()[model]} == documented()[model]
    assert all(isinstance(results[name], int) for name in results.keys() - documented()[model].keys())


@pytest.mark.slow
def test_the_whole_table_of_the_readme_is_what_the_command_prints():
    assert table_of(ARCHITECTURES).strip() == TABLE


SMALL = {
    "timm": lambda: timm_model(10, architecture="mobilenetv3_small_050"),
    "torchvision": lambda: torchvision_model(10, architecture="mnasnet0_5", settings={"dropout": 0.0}),
}
REFUSED = {"torchvision": {"stochastic_depth"}, "timm": set()}


@pytest.mark.parametrize("library", SMALL)
def test_with_each_method_a_model_takes_a_step(library):
    """On tensors with values: what the table says of layers and shapes alone."""
    torch.manual_seed(0)
    plain, images, labels = SMALL[library](), torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    for name, method in methods_by_name().items():
        model = deepcopy(plain)
        if name in REFUSED[library]:
            with pytest.raises(ValueError, match="no residual block"):
                method.apply(model, images)
            continue
        changed = method.apply(model, images)
        assert (changed > 0) == (type(method).apply is not Method.apply and name not in ("mixup", "cutmix")), name
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        inputs, targets = method.transform_batch(images, labels, 10)
        method.on_step(0.5)
        loss = F.cross_entropy(model.train()(inputs), targets, **method.loss_options())
        loss.backward()
        method.transform_gradients(model)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        moved = [key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])]
        assert moved, name
        assert loss.isfinite(), name
        assert all(parameter.isfinite().all() for parameter in model.parameters()), name
