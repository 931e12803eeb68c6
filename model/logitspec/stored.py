"""Weights as a checkpoint stores them: in fewer bits than the float32 that is computed with."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
