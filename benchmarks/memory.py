"""Where memory goes: what the process or the GPU holds, and the tensors a model holds.

For scale and soak. Everything is in bytes.
"""

from __future__ import annotations

import ctypes
import gc
import types
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from model.logitspec.kv_cache import KVCache

STATUS = Path("/proc/self/status")
MIB = 1 << 20
WORK_SPACE = ("_rope",)  # attributes of a model that are no weights


def in_mib(size: int | None) -> float | None:
    return None if size is None else size / MIB


def held(device: str) -> int | None:
    """What is held once freed memory is given back: the resident set, or torch's tensors on a GPU.

    None where the system does not say.
    """
    trim(device)
    return status("VmRSS") if device == "cpu" else torch.cuda.memory_allocated(device)


def peak(device: str) -> int | None:
    """The most that was held since `reset_peak`."""
    return status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated(device)


def reset_peak(device: str) -> bool:
    """Have `peak` count from here; False if it goes on counting from the process's start."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # see proc(5)
        return True
    return False


def trim(device: str) -> None:
    """Give freed memory back, so that the resident set holds what is used."""
    gc.collect()
    if device == "cpu":
        with suppress(AttributeError, OSError, TypeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)


def status(key: str) -> int | None:
    """An entry of /proc/self/status."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = (line.split() for line in lines if line.startswith(f"{key}:"))
    return next((int(kilobytes) << 10 for _, kilobytes, *_ in sizes), None)


def weight_bytes(model: nn.Module) -> int:
    """All tensors that a model holds, however they are laid out, each memory once; not its cache.

    Parameters that were freed (on meta) hold nothing. A matrix that oneDNN has packed is opaque and
    counted as its numbers; padding, if there is any, is part of what remains unexplained.
    """
    sizes: dict[object, int] = {}
    for tensor in reachable_tensors(model, set()):
        if tensor.device.type == "meta":
            continue
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            sizes[tensor.device, storage.data_ptr()] = storage.nbytes()
        else:
            sizes[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(sizes.values())


def reachable_tensors(thing: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """Tensors in a module, in this package's objects, containers and closures below it.

    A search, because packed copies are where the kernels want them: in closures and plain objects.
    """
    if id(thing) in seen or isinstance(thing, KVCache):
        return
    seen.add(id(thing))
    parts: Iterable[object] = ()
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict):
        parts = thing.values()
    elif isinstance(thing, list | tuple | set):
        parts = thing
    elif isinstance(thing, types.FunctionType):
        parts = [cell.cell_contents for cell in thing.__closure__ or ()]
    elif isinstance(thing, types.MethodType):
        parts = [thing.__self__]
    elif isinstance(thing, nn.Module) or type(thing).__module__.startswith("model.logitspec"):
        parts = [part for name, part in vars(thing).items() if name not in WORK_SPACE]
    for part in parts:
        yield from reachable_tensors(part, seen)
