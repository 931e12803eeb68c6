"""Which kernels a model on a CPU runs on, the fastest first; loading.py asks.

native: all layers in one call of a small library, compiled here when first needed (layers.cpp).
packed: PyTorch's operators, the weights rearranged for oneDNN's matrix products (packed.py).
plain: PyTorch's operators as they are; what a GPU runs on as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..compiler import Unavailable
from ..config import is_quantized
from ..errors import InputError
from ..instruction_set import has_avx512
from . import layers
from .packed import why_not_packable

KERNELS = ("native", "packed", "plain")


@dataclass(frozen=True)
class Kernels:
    """What was chosen, and why nothing faster was."""

    name: str
    passed_over: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons = [f"not {name}: {why}" for name, why in self.passed_over.items()]
        return f"{self.name} ({'; '.join(reasons)})" if reasons else self.name


def choose_kernels(config: Any, dtype: torch.dtype, device: str, wanted: str = "auto") -> Kernels:
    """The kernels that a model can run on here.

    Args:
        config: of a model that the patched model can run.
        dtype: of the weights.
        device: where they will lie, as a device_map.
        wanted: one of KERNELS, or auto for the fastest of them here.

    Raises:
        InputError: no kernels of that name, or they do not run here; the message says why.
    """
    if wanted not in (*KERNELS, "auto"):
        raise InputError(f"CPU kernels {wanted!r} are not known; give auto, {', '.join(KERNELS)}")
    if wanted == "plain" or (wanted == "auto" and device != "cpu"):
        return Kernels("plain")
    passed_over: dict[str, str] = {}
    for name in KERNELS[:-1] if wanted == "auto" else (wanted,):
        why = f"the device is {device}" if device != "cpu" else why_not(name, config, dtype)
        if not why and wanted == "auto":
            why = why_slow(name, dtype)
        if not why:
            return Kernels(name, passed_over)
        passed_over[name] = why
    if wanted != "auto":
        raise InputError(f"the {wanted} CPU kernels do not run here: {why}; give auto or plain")
    return Kernels("plain", passed_over)


def why_not(name: str, config: Any, dtype: torch.dtype) -> str:
    """What keeps kernels from running a model on this CPU; empty if nothing does."""
    if is_quantized(config):
        return "the checkpoint is quantized"
    if name == "packed":
        return why_not_packable(dtype)
    try:
        layers.check(config, dtype)
        layers.layers_library()
    except Unavailable as error:
        return str(error)
    return ""


def why_slow(name: str, dtype: torch.dtype) -> str:
    """What makes others faster on this CPU than kernels that come first; empty if nothing does."""
    slow = name == "native" and dtype == torch.float32 and not has_avx512()
    if slow and not why_not_packable(dtype):
        return "without AVX-512 their steps over several nodes are slow"
    return ""
