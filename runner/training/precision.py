"""The device, the number format and the memory format of a run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """The named device; for "auto" the GPU if there is one, else the CPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device=cuda: torch sees no GPU here. Use train.device=cpu, or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Precision:
    """Autocast, TF32, loss scaling and memory format. Weights, gradients and optimizer state are always float32.

    `name` and `channels_last` are as runner.training.formats chooses them. ValueError if the device has no such format.
    """

    def __init__(self, name: str, device: torch.device, channels_last: bool = False) -> None:
        if name in ("fp16", "tf32") and device.type != "cuda":
            kind = {"fp16": "half precision", "tf32": "TensorFloat-32"}[name]
            raise ValueError(f"train.precision={name}: {kind} needs a GPU. Use fp32 or bf16 on a CPU.")
        self.name = name
        self.channels_last = channels_last
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager:
        """The autocast context for the forward pass."""
        if self.name not in DTYPES:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.name])

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the model and its images."""
        return torch.channels_last if self.channels_last else torch.preserve_format

    def set_backends(self) -> None:
        """Disable TF32 on CUDA under fp32; torch uses it in convolutions by default."""
        torch.backends.cuda.matmul.allow_tf32 = self.name != "fp32"
        torch.backends.cudnn.allow_tf32 = self.name != "fp32"
