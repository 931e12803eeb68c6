"""What the machine can do at most, and what a step has to do at least, for step_cost.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gguf import GGUFReader
from transformers.utils import cached_file

from model.logitspec import LlamaKVForCausalLM
from model.logitspec.cpu.packed import packed, why_not_packable
from model.logitspec.instruction_set import computes_in
from model.logitspec.linear import Linear
from model.logitspec.loading import checkpoint

LARGEST = {"cpu": 2048, "cuda": 8192}  # size of the square matrices of Machine.measure
SLOW = 2.0  # seconds of a product of the size for a CPU


@dataclass(frozen=True)
class Machine:
    """What the device reaches when it does nothing else."""

    read_bytes_per_second: float
    flops_per_second: float  # of a large matrix product in the model's dtype

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype, rounds: int = 7) -> Machine:
        """Best of a few rounds: summing 256 MiB, and a product of two square matrices.

        The product is PyTorch's own and, on a CPU, oneDNN's on a weight it has packed: which of
        them uses the widest vectors depends on dtype and maker. A dtype that the CPU has no
        arithmetic for is widened, so the limit is float32's.
        """
        words = torch.ones(2**26, device=device)
        reading = min(seconds_of(lambda: words.sum(), device) for _ in range(rounds))
        if device.type == "cpu" and not computes_in(str(dtype).removeprefix("torch.")):
            dtype = torch.float32
        # Larger matrices up to LARGEST, but not where one product takes seconds.
        for size in (256, 512, 1024, LARGEST[device.type]):
            square = torch.ones(size, size, dtype=dtype, device=device)
            product = min(seconds_of(work, device) for work in products(square) * rounds)
            rate = 2 * size**3 / product
            if 2 * LARGEST["cpu"] ** 3 / rate > SLOW:
                break
        return cls(words.numel() * 4 / reading, rate)

    def better(self, other: Machine) -> Machine:
        """The best that either reached."""
        return Machine(
            max(self.read_bytes_per_second, other.read_bytes_per_second),
            max(self.flops_per_second, other.flops_per_second),
        )

    def limits(self, work: Work) -> dict[str, float]:
        """The milliseconds that work takes at least, to read and to compute."""
        return {
            "reading_ms": 1e3 * work.bytes_read / self.read_bytes_per_second,
            "arithmetic_ms": 1e3 * work.flops / self.flops_per_second,
        }


def products(square: torch.Tensor) -> list[Callable[[], object]]:
    """Ways to multiply a matrix with itself."""
    found: list[Callable[[], object]] = [lambda: square @ square]
    if square.device.type == "cpu" and not why_not_packable(square.dtype):
        with torch.inference_mode():
            product = packed(square)
        found.append(torch.inference_mode()(lambda: product(square)))
    return found


def stored_bytes(path: str, config: Any) -> float:
    """Bytes of a weight as a checkpoint has it: of a GGUF file's matrices on average."""
    if not path.endswith(".gguf"):
        return float(getattr(config.dtype, "itemsize", 4))
    place, gguf = checkpoint(path)
    matrices = [
        tensor
        for tensor in GGUFReader(cached_file(place, gguf["gguf_file"])).tensors
        if len(tensor.shape) == 2
    ]
    size = sum(int(tensor.n_bytes) for tensor in matrices)
    return size / sum(int(tensor.n_elements) for tensor in matrices)


@dataclass(frozen=True)
class Work:
    """What one step has to do at least."""

    bytes_read: float  # every weight once, and the keys and values of the context
    flops: float

    @classmethod
    def of(
        cls, model: LlamaKVForCausalLM, context: int, nodes: int, stored: float | None = None
    ) -> Work:
        """Of a step over so many nodes.

        Args:
            model: the target.
            context: committed tokens.
            nodes: of the draft tree.
            stored: bytes of a weight where the checkpoint has it, if those are fewer than the
                dtype's.
        """
        size = model.dtype.itemsize
        head = numbers(model.head)
        matrices = sum(numbers(linear) for layer in model.layers for linear in layer.linears)
        attention = model.layers[0].self_attn
        layers = len(model.layers)
        slot = 2 * layers * attention.kv_heads * attention.head_dim
        seen = layers * attention.heads * attention.head_dim * (context + nodes)
        return cls(
            bytes_read=min(size, stored or size) * (matrices + head) + size * slot * context,
            flops=2.0 * (nodes * (matrices + 2 * seen) + head),  # the head of one node at least
        )

    @classmethod
    def of_prompt(cls, model: LlamaKVForCausalLM, tokens: int, stored: float | None = None) -> Work:
        """Of reading a prompt: each token sees those before it, and the last one's logits count."""
        step = cls.of(model, 0, 1, stored)
        attention = model.layers[0].self_attn
        pairs = tokens * (tokens + 1) / 2
        seen = len(model.layers) * attention.heads * attention.head_dim * pairs
        matrices = sum(numbers(linear) for layer in model.layers for linear in layer.linears)
        return cls(step.bytes_read, 2.0 * (tokens * matrices + 2 * seen + numbers(model.head)))


def numbers(linear: Linear) -> int:
    """Weights of a product."""
    return sum(part.in_features * part.out_features for part in linear.linears)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
