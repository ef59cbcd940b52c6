"""Which methods work on which models of timm and torchvision: each is applied to each, and the model runs, on the meta
device, where nothing is computed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from runner.config.options import CONF, METHOD_GROUPS, read_option
from runner.config.settings import Settings
from runner.experiment.builders import build_model
from runner.experiment.targets import builder_of, without
from runner.methods.method import Method

TIMM = ("resnet18", "resnet50d", "seresnet18", "ecaresnet26t", "res2net50_14w_8s", "resnetv2_50", "resnetv2_50x1_bit")
TIMM += ("nf_resnet26", "densenet121", "dla34", "efficientnet_b0", "tf_efficientnet_b0", "mobilenetv2_100")
TIMM += ("mobilenetv3_large_100", "regnety_002", "repvgg_a0", "xception41", "convnext_atto", "vit_tiny_patch16_224")
TIMM += ("swin_tiny_patch4_window7_224",)
TORCHVISION = ("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "efficientnet_b0")
TORCHVISION += ("efficientnet_v2_s", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "regnet_y_400mf")
TORCHVISION += ("shufflenet_v2_x0_5", "googlenet", "squeezenet1_1", "vgg11_bn", "convnext_tiny", "vit_b_32", "swin_t")
TORCHVISION += ("deeplabv3_resnet50", "lraspp_mobilenet_v3_large")
ARCHITECTURES = [*(("timm", name) for name in TIMM), *(("torchvision", name) for name in TORCHVISION)]
SETTINGS = {name: {"num_groups": 8} for name in ("groupnorm", "batch_channel_norm")}  # 32 divides few models' channels
PIXELS, NUM_IMAGES, NUM_CLASSES = 224, 64, 10
ACTS_ON_LAYERS = 40  # methods up to this order change what the model computes
GENERAL = (  # what a message says of one model, and what stands for all
    (r" in an? \w+ and found none", " and found none"),
    (r"divide the \d+ features of \S+; its divisors are .*", "divide the features of each layer"),
    (r"^\S+ is an? ([\w.]+), which", r"a convolution is a \1, which"),
    (r"the \w+('s convolutions)", r"the model\1"),
    (r"of the \w+ is its classifier", "of the model is its classifier"),
    (r"the \w+ drops before its classifier already: \S+ is an? (\w+)[^;]*", r"the model drops there already, by a \1"),
    (r"(Name the class of its blocks with \S+);.*", r"\1"),
)

Results = dict[str, "int | str"]  # by method, as `try_method` returns them


def methods_by_name() -> dict[str, Method]:
    """A new method of each option, with settings that suit most models."""
    made = {}
    for group in METHOD_GROUPS:
        for file in sorted((CONF / group).glob("*.yaml")):
            node = Settings(read_option(group, file.stem, file).settings | SETTINGS.get(file.stem, {}))
            made[file.stem] = builder_of(file.stem, node)(**without(node))
    return dict(sorted(made.items(), key=lambda item: item[1].order))


def try_method(model: nn.Module, method: Method, images: Tensor) -> int | str:
    """How many modules of `model` the method changes; or why it, or a forward pass in training, is refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            changed = method.apply(model, images)
        if method.order <= ACTS_ON_LAYERS:
            with torch.no_grad():
                model.train()(images)
    except ValueError as error:
        return general(str(error).partition("\n")[0])
    return changed


def support_of(library: str, architecture: str) -> Results:
    """The result of `try_method` for every method on a model of a library."""
    option = read_option("model", library, CONF / "model" / f"{library}.yaml")
    settings = Settings(option.settings | {"architecture": architecture})
    with torch.device("meta"):
        model, images = build_model(settings, num_classes=NUM_CLASSES), torch.empty(NUM_IMAGES, 3, PIXELS, PIXELS)
        return {name: try_method(deepcopy(model), method, images) for name, method in methods_by_name().items()}


def support_table(results: Mapping[tuple[str, str], Results]) -> Iterator[str]:
    """The lines of a Markdown table with the results by (library, architecture), and of the reasons below it."""
    names = list(next(iter(results.values())))
    columns = [name for name in names if any(isinstance(each[name], str) for each in results.values())]
    reasons: dict[str, str] = {}

    def cell(result: int | str) -> str:
        return str(result) if isinstance(result, int) else reasons.setdefault(result, f"({len(reasons) + 1})")

    yield f"| `model=` | `model.architecture=` | {' | '.join(map('`{}`'.format, columns))} |"
    yield f"|---|---|{'---|' * len(columns)}"
    for (library, architecture), each in results.items():
        yield f"| {library} | {architecture} | {' | '.join(cell(each[name]) for name in columns)} |"
    yield ""
    yield from (f"- {mark} {reason}." for reason, mark in reasons.items())
    others = [f"`{name}`" for name in names if name not in columns]
    yield f"- {', '.join(others)}: work on each of them." if others else ""


def general(reason: str) -> str:
    """A message without what it says of one model alone."""
    for pattern, replacement in GENERAL:
        reason = re.sub(pattern, replacement, reason)
    return reason.rstrip(".")


def table_of(architectures: Sequence[tuple[str, str]]) -> str:
    """The table of these models, made in about a second each. Raises ValueError for one that there is not."""
    from rich.console import Console
    from rich.progress import track

    shown = track(architectures, "applying methods", console=Console(stderr=True), transient=True)
    return "\n".join(support_table({each: support_of(*each) for each in shown}))
