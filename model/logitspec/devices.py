"""Devices and dtypes by name, and what `auto` is of each."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from .errors import InputError
from .instruction_set import computes_in

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def resolve_device(name: str, gpus_per_model: int = 1) -> str:
    """`cpu` or `cuda:N` for --device; "auto" as the device_map when the model spans several GPUs.

    Raises:
        InputError: there is no such device here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"device {name!r} is not known; give auto, cpu, cuda or cuda:N")
    if name == "cpu":
        if gpus_per_model > 1:
            raise InputError(
                f"--num-gpus-per-model is {gpus_per_model} on device cpu; "
                "leave it at 1 or use --device cuda"
            )
        return name
    if gpus_per_model > 1 and ":" in name:
        raise InputError(
            f"device {name} is one GPU, --num-gpus-per-model is {gpus_per_model}; "
            "use --device cuda and choose the GPUs with CUDA_VISIBLE_DEVICES"
        )
    index = int(name.partition(":")[2] or 0)
    needed = max(index + 1, gpus_per_model)
    if needed > gpus:
        raise InputError(
            f"device {name} with {gpus_per_model} GPU(s) per model needs {needed}, "
            f"torch sees {gpus} here; use --device cpu or fewer GPUs"
        )
    return "auto" if gpus_per_model > 1 else f"cuda:{index}"


def sent(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Whole numbers as an int64 tensor on a device, without waiting for what it is doing."""
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """The dtype --dtype means on a device (see its help).

    Raises:
        InputError: no dtype of that name.
    """
    if name == "auto":
        if device != "cpu":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if native else torch.float16
        return torch.bfloat16 if computes_in("bfloat16") else torch.float32
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is not known; give auto, {', '.join(DTYPES)}")
    return DTYPES[name]
