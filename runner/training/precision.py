"""The device and the number format of a run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """The GPU if there is one, else the CPU; or the one that is named."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device=cuda: torch sees no GPU here. Use train.device=cpu, or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Precision:
    """Autocast and loss scaling. Weights, gradients and the optimizer's state are float32 throughout."""

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "auto":
            name = (
                "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
            )
        if name == "fp16" and device.type != "cuda":
            raise ValueError("train.precision=fp16: half precision needs a GPU. Use fp32 or bf16 on a CPU.")
        self.name = name
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager:
        """The context for the forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.name])
