"""The blocks of GGUF files as whole numbers, scales and minima: Quantized, nothing rounded.

gguf_files.py reads matrices with it. Source of the layouts: gguf.quants of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from .stored import Quantized

Bytes: TypeAlias = NDArray[np.uint8]
# Of n blocks: q [n, weights of a block], scale [n, groups of a block], minimum the same or None.
Parts: TypeAlias = tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32] | None]

CHUNK = 1 << 20  # weights that are unpacked at a time


class Kind(NamedTuple):
    """How one type of block is held.

    Attributes:
        bits: of a Quantized that holds it.
        group: inputs that share a scale.
        unpack: the parts of blocks [n, bytes].
    """

    bits: int
    group: int
    unpack: Callable[[Bytes], Parts]


def unpack(name: str, packed: Bytes) -> Quantized:
    """A matrix as a file holds it.

    Args:
        name: of its type, in KINDS.
        packed: [out, bytes of a row].
    """
    kind = KINDS[name]
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    rows, inputs = len(packed), packed.shape[1] // size * weights
    q = np.empty((rows, inputs), dtype=np.int8)
    scale = np.empty((rows, inputs // kind.group), dtype=np.float32)
    minimum = None
    for first in range(0, rows, step := max(1, CHUNK // inputs)):
        part = slice(first, first + step)
        numbers, scales, minima = kind.unpack(packed[part].reshape(-1, size))
        q[part] = numbers.reshape(-1, inputs)
        scale[part] = scales.reshape(-1, scale.shape[1])
        if minima is not None:
            minimum = np.empty_like(scale) if minimum is None else minimum
            minimum[part] = minima.reshape(-1, scale.shape[1])
    return Quantized(
        torch.from_numpy(q),
        kind.bits,
        torch.from_numpy(scale),
        None if minimum is None else torch.from_numpy(minimum),
    )


def floats(packed: Bytes) -> NDArray[np.float32]:
    """Numbers in half precision, [n, 2 * k] bytes, as [n, k] of single precision."""
    return packed.view(np.float16).astype(np.float32)


def numbers(packed: Bytes, width: int, bits: int) -> NDArray[np.uint8]:
    """Whole numbers of so many bits: [n, bytes * 8 / bits].

    Each `width` bytes hold the lowest bits of so many numbers first, those of the next ones above.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    chunks = packed.reshape(len(packed), -1, 1, width) >> shifts & np.uint8((1 << bits) - 1)
    return chunks.reshape(len(packed), -1)


def signed(q: NDArray[np.uint8], offset: int) -> NDArray[np.int8]:
    return q.astype(np.int8) - np.int8(offset)


def q4_0(blocks: Bytes) -> Parts:
    return signed(numbers(blocks[:, 2:], 16, 4), 8), floats(blocks[:, :2]), None


def q4_1(blocks: Bytes) -> Parts:
    scale, minimum = floats(blocks[:, :2]), floats(blocks[:, 2:4])
    return signed(numbers(blocks[:, 4:], 16, 4), 8), scale, minimum + 8 * scale


def with_fifth_bits(high: Bytes, low: Bytes) -> NDArray[np.uint8]:
    """The numbers of Q5_0 and Q5_1: [n, 32] of their highest and their four lower bits."""
    fifth = np.unpackbits(high, axis=1, bitorder="little")
    return numbers(low, 16, 4) | fifth << np.uint8(4)


def q5_0(blocks: Bytes) -> Parts:
    q = with_fifth_bits(blocks[:, 2:6], blocks[:, 6:])
    return signed(q, 16), floats(blocks[:, :2]), None


def q5_1(blocks: Bytes) -> Parts:
    q = with_fifth_bits(blocks[:, 4:8], blocks[:, 8:])
    return q, floats(blocks[:, :2]), floats(blocks[:, 2:4])


def q8_0(blocks: Bytes) -> Parts:
    return blocks[:, 2:].view(np.int8), floats(blocks[:, :2]), None


def q2_k(blocks: Bytes) -> Parts:
    scales, q, floats_ = blocks[:, :16], blocks[:, 16:80], floats(blocks[:, 80:])
    scale, minimum = floats_[:, :1] * (scales & 15), floats_[:, 1:] * (scales >> 4)
    return numbers(q, 32, 2), scale, -minimum


def q3_k(blocks: Bytes) -> Parts:
    high, low, scales = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    scale = numbers(scales[:, :8], 8, 4) | numbers(scales[:, 8:], 4, 2) << np.uint8(4)
    q = numbers(low, 32, 2) | numbers(high, 32, 1) << np.uint8(2)
    return signed(q, 4), floats(blocks[:, 108:]) * signed(scale, 32), None


def scales_and_minima(
    blocks: Bytes,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the first 16 bytes of Q4_K and Q5_K, which pack 8 scales and 8 minima of 6 bits each."""
    of_scales, of_minima = floats(blocks[:, :2]), floats(blocks[:, 2:4])
    first, second, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.hstack((first & 63, last & 15 | first >> 2 & 48))
    minima = np.hstack((second & 63, last >> 4 | second >> 2 & 48))
    return of_scales * scales, -(of_minima * minima)


def q4_k(blocks: Bytes) -> Parts:
    scale, minimum = scales_and_minima(blocks)
    return signed(numbers(blocks[:, 16:], 32, 4), 8), scale, minimum + 8 * scale


def q5_k(blocks: Bytes) -> Parts:
    high = numbers(blocks[:, 16:48], 32, 1)
    return numbers(blocks[:, 48:], 32, 4) | high << np.uint8(4), *scales_and_minima(blocks)


def q6_k(blocks: Bytes) -> Parts:
    low, high = numbers(blocks[:, :128], 64, 4), numbers(blocks[:, 128:192], 32, 2)
    scale = floats(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8)
    return signed(low | high << np.uint8(4), 32), scale, None


KINDS = {
    "Q4_0": Kind(4, 32, q4_0),
    "Q4_1": Kind(4, 32, q4_1),
    "Q5_0": Kind(6, 32, q5_0),
    "Q5_1": Kind(6, 32, q5_1),
    "Q8_0": Kind(8, 32, q8_0),
    "Q2_K": Kind(4, 16, q2_k),
    "Q3_K": Kind(4, 16, q3_k),
    "Q4_K": Kind(4, 32, q4_k),
    "Q5_K": Kind(6, 32, q5_k),
    "Q6_K": Kind(6, 16, q6_k),
}
