"""Which number format and memory format a run trains in, where its settings leave that open.

A table of measurements says what is fastest for a model on a CPU; `python scripts/bench.py formats --write` fills it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

PATH = Path(__file__).with_name("formats.json")
TABLE: list[dict[str, Any]] = json.loads(PATH.read_text())
ORDERS = {False: "contiguous", True: "channels last"}
WORTHWHILE = 1.05  # bf16, and then channels last, must be so many times as fast


class Formats(NamedTuple):
    """Values of `train.precision` and `train.channels_last` that leave nothing open."""

    precision: str
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.precision}, channels last" if self.channels_last else self.precision


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware: on x86 by AVX512_BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def choose_formats(
    precision: str, channels_last: bool | None, device: torch.device, *, family: str, multiply_adds: int
) -> Formats:
    """The formats with what is left open, precision "auto" or channels_last None, chosen.

    A GPU takes channels last, and bf16 if it has it. A CPU without native bf16 takes fp32 and contiguous memory. One
    with it takes what was fastest for the measured model of the same `family`, the module of its builder, that is
    nearest in multiply-adds an image; for a family that was not measured, the nearest of all models.
    """
    native = has_native_bf16(device)
    if device.type == "cuda" or not native:
        default = Formats("bf16" if native else "fp32", device.type == "cuda")
        return Formats(
            default.precision if precision == "auto" else precision,
            default.channels_last if channels_last is None else channels_last,
        )
    own = [row for row in TABLE if row["family"] == family] or TABLE
    nearest = min(own, key=lambda row: abs(math.log(row["multiply_adds"] / max(multiply_adds, 1))))
    candidates = [
        Formats(name, order)
        for name in (("fp32", "bf16") if precision == "auto" else (precision,))
        for order in ((False, True) if channels_last is None else (channels_last,))
    ]
    if len(candidates) == 1:
        return candidates[0]
    speed = {formats: nearest["images_per_second"][key_of(formats)] for formats in candidates}
    return next(formats for formats in candidates if WORTHWHILE * speed[formats] >= max(speed.values()))


def key_of(formats: Formats) -> str:
    """The table's name of the formats."""
    return f"{formats.precision} {ORDERS[formats.channels_last]}"


def begun_formats(train: Mapping[str, Any], device: torch.device) -> Formats:
    """The formats of a run that has begun, from its recorded settings `train.*`.

    Earlier versions recorded what was left open as such: it was bf16 on a GPU that has it, else fp32; and channels last
    on a GPU.
    """
    precision, channels_last = train.get("precision", "auto"), train.get("channels_last")
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and has_native_bf16(device) else "fp32"
    return Formats(precision, device.type == "cuda" if channels_last is None else channels_last)
