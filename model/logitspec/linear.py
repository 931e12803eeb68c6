"""The model's matrix products: linears of one input side by side, on whatever computes them best.

layout.py puts products on weights that are laid out for a CPU's kernels here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from .stored import StoredMatrixModule

Product: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class Linear:
    """x [n, in] -> x W^T + b [n, out] over one nn.Linear, or several of one input side by side.

    They are called as they are until `fuse`, and found by name then: loading may replace them.

    Args:
        owner: the module that has them.
        names: its attributes.
    """

    def __init__(self, owner: nn.Module, *names: str) -> None:
        self._owner = owner
        self._names = names
        self.weight: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None
        self.product: Product | None = None

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        return tuple(getattr(self._owner, name) for name in self._names)

    def fuse(self) -> None:
        """Make one matrix of the linears; their parameters become views into it, names and all.

        Not where one of them is not plain, or not on the same device: offloaded by accelerate, say.
        """
        first = self.linears[0]
        if all(
            type(linear) is nn.Linear
            and linear.weight.device == first.weight.device
            and linear.weight.dtype == first.weight.dtype
            and linear.weight.device.type != "meta"
            for linear in self.linears
        ):
            self.weight = self._join("weight")
            self.bias = None if first.bias is None else self._join("bias")

    def _join(self, name: str) -> torch.Tensor:
        parts: list[torch.Tensor] = [getattr(linear, name).data for linear in self.linears]
        if len(parts) == 1:
            return parts[0]
        whole = torch.cat(parts)
        views = torch.split(whole, [len(part) for part in parts])
        for linear, view in zip(self.linears, views, strict=True):
            getattr(linear, name).data = view
        return whole

    def release(self) -> None:
        """Free the plain matrix: the linears' weights become shapes without numbers (meta)."""
        self.weight = None
        for linear in self.linears:
            release(linear)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.product is not None:
            return self.product(x)
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        return torch.cat([linear(x) for linear in self.linears], dim=-1)


def release(part: nn.Linear | nn.Embedding | StoredMatrixModule) -> None:
    """Free a part's matrix: of a weight the shape stays, without numbers (meta)."""
    if isinstance(part, StoredMatrixModule):
        part.release()
    else:
        part.weight = nn.Parameter(part.weight.to("meta"), requires_grad=False)
