"""Devices and dtypes by name, and what `auto` is of each."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence

import torch

from .errors import InputError
from .instruction_set import computes_in, cpu_info

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def resolve_device(name: str, gpus_per_model: int = 1) -> str:
    """`cpu` or `cuda:N`; "auto" as the device_map when the model spans several GPUs.

    Args:
        name: auto, cpu, cuda or cuda:N.
        gpus_per_model: GPUs that one copy of the model spans.

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
                f"{gpus_per_model} GPUs per model on the device cpu; give 1, or the device cuda"
            )
        return name
    if gpus_per_model > 1 and ":" in name:
        raise InputError(
            f"device {name} is one GPU, and a model is to span {gpus_per_model}; give the device "
            "cuda, and choose the GPUs with CUDA_VISIBLE_DEVICES"
        )
    index = int(name.partition(":")[2] or 0)
    needed = max(index + 1, gpus_per_model)
    if needed > gpus:
        raise InputError(
            f"device {name} with {gpus_per_model} GPU(s) per model needs {needed}, "
            f"torch sees {gpus} here; give the device cpu, or fewer GPUs"
        )
    return "auto" if gpus_per_model > 1 else f"cuda:{index}"


def sent(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Whole numbers as an int64 tensor on a device, without waiting for what it is doing."""
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """The dtype of a name on a device.

    Args:
        name: of DTYPES; auto: bfloat16 where the device has it natively, else float32 on a CPU and
            float16 on a GPU.
        device: cpu, or another.

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


def device_name(device: torch.device) -> str:
    """The processor or GPU that a model is on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_info("model name") or platform.processor() or platform.machine()
