"""Weights from a file or from torchvision, loaded into a model before or after methods change it.

    weights = read_weights("outputs/runs/NAME/checkpoints/best.pt", "resnet50")
    fit = load_weights(model, weights)

A state dict has the names of the model that it was saved from. Methods that keep these names (ghost batch norm, weight
standardization, stochastic depth, ...) may be applied before or after loading. Weights of a model whose names a method
changed (group norm has no running statistics, SkipInit adds gains) fit only after that method: `fits` tells which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn

from runner.config.text import first_line
from runner.files.tensors import UNREADABLE, read_safetensors, read_tensors
from runner.layers.classifier import find_classifier
from runner.layers.stem import STEMS
from runner.layers.surgery import CONVOLUTIONS
from runner.models import timm
from runner.models.deeplab import DeepLabV3Plus

# in models with the setting model.stem, or with such a ResNet as backbone
STEM_WEIGHTS = ("conv1.weight", "stem.conv.weight", "backbone.conv1.weight")
NAMES_SHOWN = 3
# keys of a state dict in a file, best first, and prefixes that wrappers of a model add to names
STATE_DICTS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "params")
STATE_DICTS += ("module", "ema", "model_ema", "ema_state_dict", "state_dict_ema")
WRAPPERS = ("module", "_orig_mod", "model", "net", "network", "backbone", "encoder")
AUXILIARY = ("aux_classifier", "aux1", "aux2", "AuxLogits")  # of torchvision's, used in training alone
COUNT_OF_AVERAGES = "n_averaged"  # of torch's AveragedModel, beside the weights


@dataclass(frozen=True)
class PretrainedWeights:
    """A state dict on the CPU; `source` is the setting that named it."""

    source: str
    tensors: Mapping[str, Tensor]


def read_weights(source: str | Path, model_name: str, architecture: str | None = None) -> PretrainedWeights:
    """The weights that `source` names: a file, or torchvision's weights for `model_name`, as IMAGENET1K_V2.

    `architecture`: the library's own name of its model, where `model_name` is timm or torchvision.

    A file holds a state dict by itself, as torchvision's do, or under a key: "model" (a checkpoint of this package),
    another of `STATE_DICTS`, or the only one that has any. Prefixes of wrappers ("module.", "_orig_mod.", "model.",
    ...) are removed. A file of torch.save is read with `weights_only=True`, and its tensors stay on the disk until they
    are used; one that ends in .safetensors holds nothing but tensors. torchvision's weights, for a
    deeplabv3plus_resnetN those of its ResNet, are downloaded to torch's cache folder.

    Raises ValueError, with a remedy, if there is neither such a file nor such a name, if the file is damaged or holds
    anything else, and if the download fails.
    """
    if Path(source).is_file():
        return PretrainedWeights(str(source), _state_dict(_read(Path(source)), source))
    if Path(source).is_dir():
        raise ValueError(f"model.pretrained={source}: this is a folder; give a file in it, as checkpoints/best.pt.")
    if model_name == "timm":
        return PretrainedWeights(str(source), timm.published_weights(architecture or "", str(source)))
    model_name = architecture or model_name
    published = _published(model_name)
    if str(source) not in published:
        names = list(dict.fromkeys(weights.name for weights in published.values()))
        has = f"of that name for {model_name}; it has {', '.join(names)}" if names else f"for {model_name}"
        raise ValueError(f"model.pretrained={source}: there is no such file, and torchvision has no weights {has}.")
    return PretrainedWeights(str(source), _download(published[str(source)], source))


def check_weights(model: nn.Module, weights: PretrainedWeights) -> Fit:
    """`load_weights` without copying; the model may be on the meta device."""
    fit = _compare(model, weights)
    if not fit.is_whole:
        raise ValueError(f"model.pretrained={weights.source}: these weights do not fit the model: {fit.complaint()}")
    wrong = [name for name, tensor in fit.tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        raise ValueError(
            f"model.pretrained={weights.source}: {_count(wrong)} with values that are not finite: {_first(wrong)}. "
            "Give weights of a training that did not diverge."
        )
    return fit


def fits(model: nn.Module, weights: PretrainedWeights) -> bool:
    """Whether `load_weights` would load them."""
    return _compare(model, weights).is_whole


def load_weights(model: nn.Module, weights: PretrainedWeights) -> Fit:
    """Copy the weights into the parameters and buffers of `model`, whose objects stay.

    All names and shapes must be those of the model, with three exceptions:

    - weights for another number of classes: the classifier (`runner.layers.classifier.find_classifier`) keeps its
      initialization;
    - those of a plain ResNet, for a `DeepLabV3Plus`: they go into the backbone, the ResNet's `fc` is left out and the
      head keeps its initialization;
    - `num_batches_tracked`, which files of old versions of torch lack.

    The result's `notes` tell of the first two. Raises ValueError otherwise, with the names and shapes that differ, and
    for values that are not finite; the model does not change then.
    """
    fit = check_weights(model, weights)
    model.load_state_dict({**model.state_dict(), **fit.tensors})
    return fit


@dataclass(frozen=True, eq=False)
class Fit:
    """How weights compare with a model."""

    tensors: dict[str, Tensor]  # by the model's names
    notes: tuple[str, ...]  # sentences on what is left out and what is initialized anew
    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[torch.Size, torch.Size]]  # where they differ: in the weights, in the model

    @property
    def is_whole(self) -> bool:
        return not (self.missing or self.unexpected or self.shapes)

    def complaint(self) -> str:
        """What does not fit, and the remedy."""
        shapes = [f"{name} {tuple(there)} instead of {tuple(here)}" for name, (there, here) in self.shapes.items()]
        parts = [("of another shape", shapes), ("missing", self.missing), ("of no use", self.unexpected)]
        return f"{'; '.join(f'{_count(names)} {what}: {_first(names)}' for what, names in parts if names)}. " + (
            self._other_stem() or "Choose the model they are of, with the methods that changed its layers."
        )

    def _other_stem(self) -> str | None:
        for name, (there, here) in self.shapes.items():
            if name in STEM_WEIGHTS and there[:2] == here[:2]:
                stems = [stem for stem, settings in STEMS.items() if settings.kernel_size == there[-1]]
                if stems and name.startswith("backbone."):
                    return "That is another stem: the backbone takes weights of a ResNet with model.stem=imagenet."
                if stems:
                    return f"That is another stem: set model.stem={' or '.join(stems)}."
        return None


def _compare(model: nn.Module, weights: PretrainedWeights) -> Fit:
    """How all the weights compare, or those with one wrapper's prefix if these alone are whole."""
    fit = _compare_all(model, weights.tensors)
    for wrapper in () if fit.is_whole else WRAPPERS:
        inside = {n.removeprefix(f"{wrapper}."): t for n, t in weights.tensors.items() if n.startswith(f"{wrapper}.")}
        part = _compare_all(model, inside) if inside else fit
        if part.is_whole:
            left_out = len(weights.tensors) - len(inside)
            return replace(part, notes=(*part.notes, f"of the weights {left_out} outside {wrapper} are left out"))
    return fit


def _compare_all(model: nn.Module, tensors: Mapping[str, Tensor]) -> Fit:
    own = model.state_dict()
    tensors, notes, anew = dict(tensors), [], set()
    if isinstance(model, DeepLabV3Plus) and not any(name.startswith("backbone.") for name in tensors):
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
        anew = {name for name in own if not name.startswith("backbone.")}
        notes.append("the weights are those of a ResNet: its fc is left out, the head is initialized anew")
    if left_out := [name for name in tensors if name.partition(".")[0] in AUXILIARY and name not in own]:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
        notes.append(f"the auxiliary classifier {left_out[0].partition('.')[0]} is left out")
    first = next((name for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)), None)
    there, here = tensors.get(f"{first}.weight"), own.get(f"{first}.weight")
    if _differ_in_channels(there, here):
        tensors[f"{first}.weight"] = _with_channels(there, here.shape[1])
        notes.append(f"the first layer {first} had {there.shape[1]} channels of images, and has {here.shape[1]} here")
    classifier = _other_classes(model, own, tensors)
    if classifier is not None:
        weight = f"{classifier}.weight"
        notes.append(
            f"the classifier {classifier} is initialized anew: {len(tensors[weight])} classes in the weights, "
            f"{len(own[weight])} here"
        )
        for name in (weight, f"{classifier}.bias"):
            tensors.pop(name, None)
            anew.add(name)
    return Fit(
        tensors,
        tuple(notes),
        missing=[n for n in own if n not in tensors and n not in anew and not n.endswith("num_batches_tracked")],
        unexpected=[name for name in tensors if name not in own],
        shapes={
            name: (tensor.shape, own[name].shape)
            for name, tensor in tensors.items()
            if name in own and tensor.shape != own[name].shape
        },
    )


def _differ_in_channels(there: Tensor | None, here: Tensor | None) -> bool:
    """Whether two weights of a convolution differ in the number of channels of their input alone."""
    if there is None or here is None or there.dim() != here.dim() or there.shape[1] == here.shape[1]:
        return False
    return there.shape[0] == here.shape[0] and there.shape[2:] == here.shape[2:]


def _with_channels(weight: Tensor, channels: int) -> Tensor:
    """The weights of a first convolution for images of another number of channels, by timm's rule.

    One channel: their sum, which on a grey image does what all did. More: they are taken in turn, and scaled so that
    equal channels give what they gave.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    turns = torch.arange(channels) % weight.shape[1]
    return weight[:, turns] * (weight.shape[1] / channels)


def _other_classes(model: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str | None:
    """The classifier's name, if the weights have it with another number of classes and otherwise the same shape."""
    try:
        classifier = find_classifier(model)
    except ValueError:  # then every shape has to fit
        return None
    name = next(name for name, module in model.named_modules() if module is classifier)
    there, here = tensors.get(f"{name}.weight"), own.get(f"{name}.weight")
    if there is None or here is None or there.dim() != here.dim():
        return None
    return name if len(there) != len(here) and there.shape[1:] == here.shape[1:] else None


def _read(path: Path) -> object:
    try:
        return read_safetensors(path) if path.suffix == ".safetensors" else read_tensors(path, mapped=True)
    except ValueError as error:
        raise ValueError(
            f"model.pretrained={path}: {error}; give a file that torch.save(model.state_dict(), FILE) wrote, or a "
            "checkpoint of a run."
        ) from None


def _state_dict(loaded: object, source: str | Path) -> dict[str, Tensor]:
    """The state dict in a file's content, without the prefixes of wrappers."""
    entries = loaded.items() if isinstance(loaded, Mapping) else ()
    dicts = {key: value for key, value in entries if _is_state_dict(value)}
    if _is_state_dict(loaded):
        tensors = loaded
    elif known := [key for key in STATE_DICTS if key in dicts]:
        tensors = dicts[known[0]]
    elif len(dicts) == 1:
        [tensors] = dicts.values()
    else:
        several = f"it has several, {', '.join(map(str, dicts))}" if dicts else "neither by itself nor under a key"
        raise ValueError(
            f"model.pretrained={source}: this file holds no state dict that could be meant, {several}; give one that "
            "torch.save(model.state_dict(), FILE) wrote."
        )
    tensors = {name: tensor for name, tensor in tensors.items() if name != COUNT_OF_AVERAGES}
    while (first := {name.partition(".")[0] for name in tensors}) and len(first) == 1 and first <= {*WRAPPERS}:
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    return tensors


def _is_state_dict(value: object) -> bool:
    is_named = isinstance(value, Mapping) and bool(value) and all(isinstance(name, str) for name in value)
    return is_named and all(isinstance(tensor, Tensor) for tensor in value.values())


def _published(model_name: str) -> Mapping[str, Enum]:
    """torchvision's weights for a model, or for its backbone, by their names and as DEFAULT."""
    name = model_name.removeprefix("deeplabv3plus_")
    if name not in torchvision.models.list_models():
        return {}
    return torchvision.models.get_model_weights(name).__members__


def _download(weights: Enum, source: str | Path) -> dict[str, Tensor]:
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    try:
        return dict(weights.get_state_dict(check_hash=True, weights_only=True))
    except (OSError, *UNREADABLE) as error:
        if cached.is_file():
            raise ValueError(f"model.pretrained={source}: {cached} is damaged; delete it.") from None
        reason = first_line(error)
        raise ValueError(
            f"model.pretrained={source}: the weights could not be downloaded ({reason}). Put {weights.url} at "
            f"{cached}, or give a file."
        ) from None


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''}"


def _first(names: Iterable[str]) -> str:
    """The first few names."""
    names = list(names)
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
