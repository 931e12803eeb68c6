"""A GPU that is not there: torch's fake tensors say they lie on cuda, and no number is computed.

Whatever would wait for a GPU, or go wrong on one by the device of a tensor, raises here:

- operations over several devices, and shapes that depend on numbers: FakeTensorMode does;
- reading a number other than by `.tolist()`, the one transfer of a step: FakeTensorMode does for
  item() and bool(), `Watch` for copies to the host;
- tensors of the host as indices of one on the GPU: `Watch` does.

Copies to the GPU that wait for it (not `non_blocking`) are counted, and so are transfers.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import core_model_loading

from model.logitspec import DraftTree

has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
GPUS = 2
FEW = 6  # tokens, so that they repeat and methods have something to draft
COMPOSITE = "CompositeImplicitAutograd"


# torch built without CUDA has no device guard of it, as indexing asks for: this one does nothing.
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>);
}
"""


def register_guard(folder: Path) -> None:
    """Compile and load GUARD, which takes a second; once in a process.

    Skips the test where torch is built with CUDA, whose guard this would replace, or there is no
    compiler.
    """
    if torch.version.cuda is not None or shutil.which("g++") is None:
        pytest.skip("wants torch built without CUDA, and g++")
    root = Path(torch.__file__).parent
    (folder / "guard.cpp").write_text(GUARD)
    library = folder / "guard.so"
    subprocess.run(
        [
            *("g++", "-std=c++20", "-shared", "-fPIC", "-O0", f"-I{root / 'include'}"),
            *(str(folder / "guard.cpp"), "-o", str(library), f"-L{root / 'lib'}", "-lc10"),
        ],
        check=True,
    )
    torch.ops.load_library(str(library))


class HiddenWait(Exception):
    """Something that makes the host wait for the GPU, or take a detour over the host."""


class Watch(TorchDispatchMode):
    """Looks at every operation before it is faked."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting_uploads = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        composite = function.namespace == "aten" and has_kernel(function.name(), COMPOSITE)
        if composite and torch.is_inference_mode_enabled():
            with self:  # in inference mode operations made of others come whole
                return function.decompose(*args, **kwargs)
        name = function.overloadpacket.__name__
        if name in ("index", "index_put", "index_put_", "_unsafe_index"):
            for index in args[1]:
                if index is not None and index.device != args[0].device:
                    raise HiddenWait(f"{name} of a {args[0].device} tensor by one on the host")
        source = target = None
        if name == "_to_copy":
            source, target = args[0].device.type, torch.device(kwargs.get("device") or "cpu").type
            target = source if kwargs.get("device") is None else target
        elif name == "copy_":
            source, target = args[1].device.type, args[0].device.type
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
        if (source, target) == ("cuda", "cpu") and (waits or name == "_to_copy"):
            raise HiddenWait("a copy to the host")
        self.waiting_uploads += (source, target) == ("cpu", "cuda") and waits
        return function(*args, **kwargs)


class FakeGPU:
    """What the fake GPU answers.

    Attributes:
        transfers: calls of tolist() on tensors of the GPU, and on those that it copied to.
        step: between one number and the next; 0: all are the same.
        tree: that is verified: the longest path whose last nodes are accepted is its answer.
    """

    def __init__(self) -> None:
        self.transfers = 0
        self.step = 1
        self.tree: DraftTree | None = None
        self.watch = Watch()
        self._token = 0

    def tolist(self, tensor: torch.Tensor) -> Any:
        """Numbers in the place of those that were never computed: tokens, and a path."""
        self.transfers += 1
        found = np.empty(tensor.shape, dtype=np.int64)
        for place in np.ndindex(found.shape):
            self._token = (self._token + self.step) % FEW
            found[place] = self._token
        if found.ndim == 1 and self.tree is not None and len(found) > len(self.tree):
            found[: len(self.tree)] = accepted(self.tree)
        return found.tolist()


def accepted(tree: DraftTree) -> list[int]:
    """1 for the nodes on the path to the last of the deepest drafts, which lie apart; else 0."""
    drafts = [node for node in range(len(tree)) if node not in tree.probes]
    deepest = max(drafts, key=lambda node: (tree.depths[node], node))
    path = {0}
    while deepest:
        path.add(deepest)
        deepest = tree.parents[deepest]
    return [int(node in path) for node in range(len(tree))]


class NotCaptured:
    """torch.cuda.CUDAGraph: a capture runs the step; a replay, which would do it again, counts."""

    replays = 0

    def replay(self) -> None:
        type(self).replays += 1


class Nothing:
    """Streams, devices to be current, a capture: contexts without an effect."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def wait_stream(self, _: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


def materialized(tensor: Any, device: Any = None, dtype: Any = None) -> torch.Tensor:
    """transformers reads a weight: of its shape and dtype, on the fake device."""
    with unset_fake_temporarily():
        real = tensor[...]
    return torch.empty(real.shape, dtype=dtype or real.dtype, device=device or "cpu")


def numpy_of(tensor: torch.Tensor) -> Any:
    """A buffer of the host to write inputs to."""
    assert tensor.device.type == "cpu"
    return np.zeros(tensor.shape, dtype=np.int64)


@contextmanager
def fake_cuda() -> Iterator[FakeGPU]:
    """Two GPUs, for as long as the block lasts; register_guard() comes first."""
    gpu = FakeGPU()
    cuda: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: GPUS,
        "is_bf16_supported": lambda **_: True, "get_device_name": lambda *_: "a fake GPU",
        "mem_get_info": lambda *_: (1 << 34, 1 << 34), "synchronize": lambda *_: None,
        "empty_cache": lambda: None, "device": Nothing, "Stream": Nothing, "stream": Nothing,
        "graph": Nothing, "CUDAGraph": NotCaptured, "graph_pool_handle": lambda: None,
        "current_stream": Nothing,
    }  # fmt: skip
    with (
        mock.patch.multiple(torch.cuda, **cuda),
        mock.patch.object(core_model_loading, "_materialize_copy", materialized),
        mock.patch.dict("os.environ", {"HF_DEACTIVATE_ASYNC_LOAD": "1"}),
        mock.patch.object(FakeTensor, "tolist", lambda tensor: gpu.tolist(tensor)),
        mock.patch.object(FakeTensor, "numpy", numpy_of),
        mock.patch.object(torch, "allclose", lambda *_, **__: False),  # asked once a capture
        # It asks torch.cuda.is_available(), and would begin to use the GPU.
        mock.patch.object(FakeTensorMode, "avoid_device_init", True),
        FakeTensorMode(allow_non_fake_inputs=True),
        gpu.watch,
    ):
        yield gpu
