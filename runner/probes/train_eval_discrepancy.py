"""The same batch with batch statistics, as in training, and with running statistics, as in evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.layers.preserve_state import preserve_state
from runner.probes.gradients import at_least_float32, listed
from runner.probes.probe import Batch, Loss
from runner.results.measurement import Measurement


def train_eval_discrepancy(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> Measurement:
    """What changes if batch norm uses running instead of batch statistics (Ioffe 2017, arXiv 1702.03275).

    Each batch passes twice: with batch norms (ghost ones too) in training mode, and in evaluation mode. All else is in
    evaluation mode both times, so that only the statistics differ. With p_train and p_eval the softmax of the logits
    over dimension 1, and for layer l with channels c

        KL = mean sum_k p_train,k log(p_train,k / p_eval,k)    (nats; mean over samples, or pixels)
        distance_l = sqrt(mean_c (mu_B,c - running_mean_c)^2 / (running_var_c + eps))

    where mu_B is the mean of the layer's input over the whole batch in the first pass, and the running statistics are
    those before it. Layers without running statistics have no distance.

    Arrays, for N batches and L layers: `loss_batch_statistics`, `loss_running_statistics`, `kl_divergence` and
    `changed_predictions` (share of 1), all (N,); `distance` (N, L), in the order of execution.
    Numbers, means over the batches: the first four; `loss_difference`, running minus batch statistics; and
    `mean_distance` and `largest_distance` over the layers, 0 for a model without batch norm.
    Text `layers`: their names, one per line.

    Raises ValueError without batches.
    """
    batches = listed(batches)
    rows = defaultdict(list)
    distances: list[dict[str, float]] = []
    with preserve_state(model), torch.no_grad():
        model.eval()
        for images, targets in batches:
            with preserve_state(model), torch.no_grad():
                by_layer = _measure_distances(model)
                for module in model.modules():
                    if isinstance(module, _BatchNorm):
                        module.training = True
                train = at_least_float32(model(images))
            distances.append({name: float(np.mean(values)) for name, values in by_layer.items()})
            evaluation = at_least_float32(model(images))
            rows["loss_batch_statistics"].append(loss(train, targets).item())
            rows["loss_running_statistics"].append(loss(evaluation, targets).item())
            train_log, eval_log = train.double().log_softmax(1), evaluation.double().log_softmax(1)
            rows["kl_divergence"].append((train_log.exp() * (train_log - eval_log)).sum(1).mean().item())
            rows["changed_predictions"].append((train.argmax(1) != evaluation.argmax(1)).double().mean().item())
    layers = list(distances[0])
    distance = np.array([[of_batch[name] for name in layers] for of_batch in distances])
    arrays = {name: np.array(values) for name, values in rows.items()}
    numbers = {name: float(values.mean()) for name, values in arrays.items()}
    numbers["loss_difference"] = numbers["loss_running_statistics"] - numbers["loss_batch_statistics"]
    numbers["mean_distance"] = float(distance.mean()) if layers else 0.0
    numbers["largest_distance"] = float(distance.mean(0).max()) if layers else 0.0
    return Measurement({**arrays, "distance": distance}, numbers, {"layers": "\n".join(layers)})


def _measure_distances(model: nn.Module) -> dict[str, list[float]]:
    """The distances that each batch norm will append whenever it runs. Call this inside `preserve_state`."""
    distances: dict[str, list[float]] = {}

    def note(
        name: str, running_mean: Tensor, running_std: Tensor, _module: nn.Module, args: tuple, kwargs: dict[str, Tensor]
    ) -> None:
        x = next(iter((*args, *kwargs.values()))).double()
        mean = x.mean([dim for dim in range(x.dim()) if dim != 1])
        distance = ((mean - running_mean) / running_std).square().mean().sqrt().item()
        distances.setdefault(name, []).append(distance)

    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            mean = module.running_mean.to(torch.float64, copy=True)  # a copy: the run will update it
            std = (module.running_var.double() + module.eps).sqrt()
            module.register_forward_pre_hook(partial(note, name, mean, std), with_kwargs=True)
    return distances
