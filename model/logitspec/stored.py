"""Weights as a checkpoint stores them: in fewer bits than the float32 that is computed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Quantized:
    """A matrix [out, in] as whole numbers, a scale and a minimum for each group of inputs.

    A weight is q * scale + minimum.

    Attributes:
        q: [out, in] int8, each from -2**(bits - 1) up to, without it, 2**(bits - 1).
        bits: 4, 6 or 8.
        scale: [out, in / group] float32; a group has 16 or 32 inputs.
        minimum: the same; None where it is 0 throughout.
    """

    q: torch.Tensor
    bits: int
    scale: torch.Tensor
    minimum: torch.Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.q.shape

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.q.shape[1] // self.scale.shape[1]

    def dequantized(self) -> torch.Tensor:
        """The matrix in float32: [out, in]."""
        scale = self.scale.repeat_interleave(self.group, dim=1)
        weight = self.q.float() * scale
        if self.minimum is not None:
            weight += self.minimum.repeat_interleave(self.group, dim=1)
        return weight


class StoredMatrix(Protocol):
    """A matrix [out, in] in a file, unpacked when asked and not kept."""

    shape: tuple[int, int]

    def read(self) -> Quantized | torch.Tensor:
        """All of it; a tensor is float32, bfloat16 or float16."""

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Some of its rows: [n, in] float32."""


class StoredMatrixModule(nn.Module):
    """A module whose matrix stays in its file until the kernels lay it out.

    Attributes:
        matrix: in the file; None once it is released.
    """

    def __init__(self, matrix: StoredMatrix) -> None:
        super().__init__()
        self.matrix: StoredMatrix | None = matrix

    def read(self) -> Quantized | torch.Tensor:
        assert self.matrix is not None, "a released matrix is not read again"
        return self.matrix.read()

    def release(self) -> None:
        """Let go of the file."""
        self.matrix = None


class StoredLinear(StoredMatrixModule):
    """A linear; its bias is [out] float32, or None."""

    def __init__(self, matrix: StoredMatrix, bias: torch.Tensor | None) -> None:
        super().__init__(matrix)
        self.out_features, self.in_features = matrix.shape
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + b with the matrix unpacked for this call alone: slow, without kernels."""
        weight = self.read()
        if isinstance(weight, Quantized):
            weight = weight.dequantized()
        return F.linear(x, weight.to(x.dtype), self.bias)


class StoredEmbedding(StoredMatrixModule):
    """An embedding, of which only the rows that are asked for are unpacked."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert self.matrix is not None, "a released matrix is not read again"
        return self.matrix.rows(ids)
