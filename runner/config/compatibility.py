"""Which methods go together, and in which order they act. Plain data in, no torch: checked before anything runs.

**The order** is fixed, whatever the order on the command line (`order` of each method in runner.methods.method):

1. norms are replaced (none, ghost_batchnorm, groupnorm, layernorm, instancenorm, batch_channel_norm);
2. norms are changed (train.sync_batchnorm);
3. convolutions are changed (weight_standardization);
4. blocks are changed (stochastic_depth);
5. all the rest, which changes no norm, convolution or block (agc, dropout, label_smoothing, mixup, cutmix, ...).

In a training step each place to act is run through in the same order: so what stochastic depth does to the gradients
of dropped blocks comes before clipping, and clipping before weight decay and momentum. MixUp and CutMix act on parts
of a batch that do not overlap, so that their order makes no difference; label smoothing then acts on their targets.

**What is refused** is in the functions below, one rule each, with its reason and what to do instead. What only the
model can tell (a network without batch norm, convolutions that are standardized already) is refused by the surgery.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from runner.config.options import KIND, options_of_kind
from runner.config.text import to_override

Settings = Mapping[str, object]

HALVES = ("first_half", "second_half")


def check_combinations(
    methods: Mapping[str, Settings], *, model: Settings, train: Settings, dataset: Settings, optimizer: Settings
) -> None:
    """Raise a ValueError with the reason and the remedy if `methods`, the settings of each by its name, do not go
    together, or not with the settings of the model, of training, of the data set or the optimizer; or if these do not.
    """
    if not (_is("segmentation", dataset) and _is("classification", dataset)):  # else its files alone tell
        _model_of_the_task(model, dataset)
        _loss_of_the_task(train, dataset)
        _labels_to_mix(methods, dataset)
    _weights_of_classes(train)
    _random_weights_do_not_decay(train, optimizer)
    _one_normalization(methods)
    _one_clip(methods)
    _ghost_batches_fill_a_batch(methods, train)
    _sync_batchnorm_needs_batch_norm(methods, train)
    _precise_batchnorm_needs_batch_statistics(methods)
    _one_way_without_norm(methods)
    _fixup_sets_the_scale(methods)
    _fixup_draws_the_weights(methods, model)
    _one_source_of_weights(model)
    _one_clip_for_a_name(methods)
    _one_dropout(methods, model)
    _halves_to_mix(methods, train)


def _is(kind: str, node: Settings) -> bool:
    return kind in node.get(KIND, ())


def _of_kind(kind: str, methods: Mapping[str, Settings]) -> list[str]:
    return [name for name, node in methods.items() if _is(kind, node)]


def _model_of_the_task(model: Settings, dataset: Settings) -> None:
    segments, has_masks = _is("segmentation", model), _is("segmentation", dataset)
    if has_masks and not segments:
        raise ValueError(
            f"model={model['name']}: it gives one class for an image, and dataset={dataset['name']} has one for each "
            f"pixel. Choose a model that segments: {', '.join(options_of_kind('model', 'segmentation'))}."
        )
    if segments and not (has_masks or _is("classification", model)):
        raise ValueError(
            f"model={model['name']}: it gives a class for each pixel, and dataset={dataset['name']} has one for an "
            f"image. Choose a data set with masks: {', '.join(options_of_kind('dataset', 'segmentation'))}."
        )


def _loss_of_the_task(train: Settings, dataset: Settings) -> None:
    weights = {key: train[key] for key in ("cross_entropy_weight", "dice_weight")}
    if _is("segmentation", dataset):
        if not any(weights.values()):
            raise ValueError(
                "train.cross_entropy_weight=0.0 with train.dice_weight=0.0: no loss is left; set one of them."
            )
    elif weights != {"cross_entropy_weight": 1, "dice_weight": 0}:
        key = "dice_weight" if weights["dice_weight"] else "cross_entropy_weight"
        raise ValueError(
            f"train.{key}={weights[key]}: it weighs a loss of segmentation, and dataset={dataset['name']} has no "
            "masks. Leave it out."
        )
    if not (weights["dice_weight"] or train.get("dice_squared", True)):
        raise ValueError("train.dice_squared=false: there is no Dice loss; set train.dice_weight, or leave it out.")


def _weights_of_classes(train: Settings) -> None:
    weights = train.get("class_weights")
    are_numbers = isinstance(weights, (list, tuple)) and all(
        isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight < inf for weight in weights
    )
    if not (are_numbers or weights in (None, "balanced")):
        raise ValueError(
            f"train.class_weights={to_override(weights)}: it must be balanced, null, or a list of positive numbers, "
            "one for each class."
        )


def _random_weights_do_not_decay(train: Settings, optimizer: Settings) -> None:
    decay = optimizer.get("weight_decay") or 0
    if train.get("trained_parameters") == "random" and decay:
        raise ValueError(
            f"optimizer.weight_decay={decay} with train.trained_parameters=random: it would shrink the weights beside "
            "the random ones too. Set optimizer.weight_decay=0."
        )


def _labels_to_mix(methods: Mapping[str, Settings], dataset: Settings) -> None:
    for name in _of_kind("mixes_labels", methods):
        if _is("segmentation", dataset):
            raise ValueError(
                f"regularization={name}: it mixes the classes of whole images, and dataset={dataset['name']} has "
                f"masks. Leave {name} out."
            )


def choose_portions(methods: Mapping[str, Settings]) -> dict[str, str]:
    """The part of a batch that MixUp and CutMix each act on, where `portion` is auto: alone all of it; together
    MixUp the first half and CutMix the second, as NFNets were trained (arXiv 2102.06171).

    >>> from runner.config.compatibility import choose_portions
    >>> choose_portions({"mixup": {"portion": "auto"}})
    {'mixup': 'all'}
    >>> choose_portions({"mixup": {"portion": "auto"}, "cutmix": {"portion": "auto"}})
    {'mixup': 'first_half', 'cutmix': 'second_half'}
    >>> choose_portions({"mixup": {"portion": "second_half"}, "cutmix": {"portion": "auto"}})
    {'mixup': 'second_half', 'cutmix': 'first_half'}
    """
    portions = {name: str(methods[name].get("portion", "auto")) for name in ("mixup", "cutmix") if name in methods}
    if len(portions) == 1:
        return {name: "all" if portion == "auto" else portion for name, portion in portions.items()}
    for name, half in zip(portions, HALVES, strict=False):
        if portions[name] == "auto":
            [other] = [portion for key, portion in portions.items() if key != name]
            portions[name] = next((free for free in (half, *HALVES) if free != other), half)
    return portions


def _one_normalization(methods: Mapping[str, Settings]) -> None:
    norms = _of_kind("normalization", methods)
    if len(norms) > 1:
        raise ValueError(f"norm=[{','.join(norms)}]: a model has one of these; choose one and drop the other.")


def _one_clip(methods: Mapping[str, Settings]) -> None:
    clips = _of_kind("clip", methods)
    if len(clips) > 1:
        raise ValueError(
            f"norm=[{','.join(clips)}]: gradients are clipped once, else the first clip decides what the second sees; "
            "choose one and drop the other."
        )


def _ghost_batches_fill_a_batch(methods: Mapping[str, Settings], train: Settings) -> None:
    batch_size, steps, devices = train["global_batch_size"], train["accumulation_steps"], train.get("num_devices", 1)
    most = batch_size // (steps * devices)
    size = methods.get("ghost_batchnorm", {}).get("ghost_batch_size", 0)
    if size > most:
        cut = f"train.global_batch_size={batch_size} over train.accumulation_steps={steps}"
        cut += f" and train.num_devices={devices}" if devices > 1 else ""
        raise ValueError(
            f"ghost_batchnorm.ghost_batch_size={size}: larger than the batch on a device, {most} ({cut}). Choose at "
            f"most {most}."
        )


def _sync_batchnorm_needs_batch_norm(methods: Mapping[str, Settings], train: Settings) -> None:
    others = [name for name in _of_kind("normalization", methods) if name != "batchnorm"]
    if train.get("sync_batchnorm") and others:
        raise ValueError(
            f"train.sync_batchnorm=true: it takes the statistics of plain batch norm over all devices, and "
            f"norm={others[0]} leaves none. Set train.sync_batchnorm=false, or leave norm={others[0]} out."
        )


def _precise_batchnorm_needs_batch_statistics(methods: Mapping[str, Settings]) -> None:
    if "precise_batchnorm" not in methods:
        return
    need = "precise_batchnorm measures the running statistics of batch norm again"
    for name in _of_kind("no_batch_statistics", methods):
        raise ValueError(
            f"norm=[{name},precise_batchnorm]: {need}, and norm={name} leaves none. Leave precise_batchnorm out."
        )
    if methods.get("batch_channel_norm", {}).get("estimate"):
        raise ValueError(
            f"batch_channel_norm.estimate=true with norm=precise_batchnorm: {need}, which training normalizes with "
            "already under estimate. Set batch_channel_norm.estimate=false, or leave precise_batchnorm out."
        )


def _one_way_without_norm(methods: Mapping[str, Settings]) -> None:
    settings = methods.get("none", {})
    if settings.get("skipinit") and settings.get("fixup"):
        raise ValueError(
            "none.skipinit=true with none.fixup=true: each is an initialization of its own that starts a block as its "
            "shortcut. Set one of them to false."
        )


def _fixup_sets_the_scale(methods: Mapping[str, Settings]) -> None:
    if methods.get("none", {}).get("fixup") and "weight_standardization" in methods:
        raise ValueError(
            "none.fixup=true with norm=weight_standardization: standardization gives every filter the same scale, "
            "which undoes that of Fixup's initialization. Set none.fixup=false, or leave weight_standardization out."
        )


def _fixup_draws_the_weights(methods: Mapping[str, Settings], model: Settings) -> None:
    for key, default in (("pretrained", None), ("initialization", "default")):
        if methods.get("none", {}).get("fixup") and model.get(key, default) != default:
            raise ValueError(
                f"none.fixup=true with model.{key}={model[key]}: Fixup draws the weights itself. Set none.fixup=false, "
                f"or leave model.{key} out."
            )


def _one_source_of_weights(model: Settings) -> None:
    scheme, layers = model.get("initialization", "default"), model.get("initialized_layers", "conv")
    if scheme == "default" and layers != "conv":
        raise ValueError(
            f"model.initialized_layers={layers}: it says what model.initialization draws, which is default. Set "
            "model.initialization, or leave it out."
        )


def _one_clip_for_a_name(methods: Mapping[str, Settings]) -> None:
    settings = methods.get("agc", {})
    groups = settings.get("groups") or {}
    for name in settings.get("exclude") or ():
        if name in groups:
            raise ValueError(
                f"agc.exclude and agc.groups both name {name}: it cannot be left out of clipping and have a clip of "
                "its own. Name it in one of them."
            )


def _one_dropout(methods: Mapping[str, Settings], model: Settings) -> None:
    rate = model.get("dropout") or 0
    if "dropout" in methods and rate > 0:
        raise ValueError(
            f"regularization=dropout: model.dropout={rate} of {model['name']} drops before the classifier already. "
            "Set model.dropout=0, or leave regularization=dropout out."
        )


def _halves_to_mix(methods: Mapping[str, Settings], train: Settings) -> None:
    portions = choose_portions(methods)
    together = " and ".join(f"{name}.portion={portion}" for name, portion in portions.items())
    if len(portions) == 2 and ("all" in portions.values() or len(set(portions.values())) == 1):
        raise ValueError(
            f"{together}: an image is mixed once. Set mixup.portion=auto and cutmix.portion=auto, which give each one "
            "half of the batch."
        )
    size = train["global_batch_size"] // train.get("num_devices", 1)
    if set(portions.values()) & set(HALVES) and size < 4:
        raise ValueError(
            f"train.global_batch_size={train['global_batch_size']}: too few for {together}, which needs two images in "
            f"each half to mix. Choose at least {4 * train.get('num_devices', 1)}."
        )
    if portions and size < 2:
        raise ValueError(
            f"train.global_batch_size={train['global_batch_size']}: too few for {together}, which needs two images to "
            f"mix. Choose at least {2 * train.get('num_devices', 1)}."
        )
