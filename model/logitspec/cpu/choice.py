"""Which kernels a model on a CPU can run on; fastest.py chooses among them.

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
from . import layers
from .packed import why_not_packable

KERNELS = ("native", "packed", "plain")


@dataclass(frozen=True)
class Kernels:
    """What was chosen, and why nothing that comes before it in KERNELS was."""

    name: str
    passed_over: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons = [f"not {name}: {why}" for name, why in self.passed_over.items()]
        return f"{self.name} ({'; '.join(reasons)})" if reasons else self.name


def available(config: Any, dtype: torch.dtype, device: str, wanted: str) -> dict[str, str]:
    """The kernels that are wanted, by name: why they do not run here, empty for those that do.

    Args:
        config: of a model that the patched model can run.
        dtype: of activations and cache.
        device: where the model will lie, as a device_map.
        wanted: one of KERNELS, or auto for all of them.

    Raises:
        InputError: no kernels of that name, or they do not run here; the message says why.
    """
    if wanted not in (*KERNELS, "auto"):
        raise InputError(f"CPU kernels {wanted!r} are not known; give auto, {', '.join(KERNELS)}")
    if device != "cpu":
        if wanted not in ("auto", "plain"):
            raise InputError(
                f"the {wanted} CPU kernels do not run here: the device is {device}; "
                "give auto or plain"
            )
        return {"plain": ""}
    names = KERNELS if wanted == "auto" else (wanted,)
    found = {name: why_not(name, config, dtype) for name in names}
    if wanted != "auto" and found[wanted]:
        raise InputError(
            f"the {wanted} CPU kernels do not run here: {found[wanted]}; give auto or plain"
        )
    return found


def why_not(name: str, config: Any, dtype: torch.dtype) -> str:
    """What keeps kernels from running a model on this CPU; empty if nothing does."""
    if name == "plain":
        return ""
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
