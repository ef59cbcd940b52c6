"""Any classification model of timm, by its own name (Wightman, https://github.com/huggingface/pytorch-image-models)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from runner.config.text import first_line
from runner.models.architecture import build_architecture, check_architecture

WEIGHTS = "model.safetensors"  # the file of a repository


def timm_model(
    num_classes: int = 1000,
    *,
    architecture: str = "resnet50",
    settings: Mapping[str, object] | None = None,
    in_channels: int = 3,
) -> nn.Module:
    """timm's model of that name, with weights drawn as timm draws them; `settings` are its keyword arguments.

    Raises ValueError where timm is not installed, for a name that it does not have (a tag of weights, as in
    `resnet50.a1_in1k`, is `model.pretrained`), and for settings that the model does not take.

    >>> from runner.models.timm import timm_model
    >>> timm_model(10, architecture="resnet18d", settings={"drop_path_rate": 0.1}).get_classifier()
    Linear(in_features=512, out_features=10, bias=True)
    """
    timm = import_timm()
    name, _, tag = architecture.partition(".")
    if tag:
        raise ValueError(
            f"model.architecture={architecture}: {tag} names weights; write model.architecture={name}, and "
            f"model.pretrained={tag} for these weights."
        )
    check_architecture("timm", architecture, timm.list_models())
    return build_architecture(
        "timm",
        architecture,
        lambda **settings: timm.create_model(architecture, num_classes=num_classes, in_chans=in_channels, **settings),
        dict(settings or {}),
    )


def published_weights(architecture: str, tag: str) -> dict[str, Tensor]:
    """The state dict of timm's weights for a model, by their tag; DEFAULT names those that timm prefers.

    They are read from the cache of the Hugging Face hub, to which they are downloaded once. Raises ValueError, with
    the remedy, if there are no such weights or none can be had.
    """
    timm = import_timm()
    check_architecture("timm", architecture, timm.list_models())
    tags = [name.partition(".")[2] for name in timm.list_models(architecture, pretrained=True)]
    if tag not in (tags and [*tags, "DEFAULT"]):
        raise ValueError(
            f"model.pretrained={tag}: there is no such file, and timm has no weights of that name for {architecture}; "
            f"it has {', '.join([*tags, 'DEFAULT']) if tags else 'none'}."
        )
    name = architecture if tag == "DEFAULT" else f"{architecture}.{tag}"
    file = _downloaded(timm.get_pretrained_cfg(name), f"model.pretrained={tag}")
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": file}).state_dict()


def _downloaded(published: object, setting: str) -> str:
    """The file of a timm model's weights on this machine."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, name = published.hf_hub_id, published.hf_hub_filename or WEIGHTS
    if repository is None:
        raise ValueError(f"{setting}: these weights are in no hub. Download {published.url}, and give that file.")
    with suppress(LocalEntryNotFoundError):
        return hf_hub_download(repository, name, local_files_only=True)
    try:
        HfApi().model_info(repository, timeout=10)  # without a network the download itself tries for a minute
        return hf_hub_download(repository, name)
    except Exception as error:  # of the libraries beneath, one for each kind of connection
        reason = first_line(error)
        folder = Path(HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
        raise ValueError(
            f"{setting}: {name} of {repository} could not be downloaded ({reason}). On a machine with a network "
            f"`hf download {repository}` fetches it into such a folder; copy this to {folder}, or give a file."
        ) from None


def import_timm() -> ModuleType:
    """The library. Raises ValueError with the way to install it."""
    try:
        import timm
    except ImportError:
        raise ValueError("model=timm: timm is not installed. Install it: pip install '.[timm]'.") from None
    return timm
