"""The model's matrix products, on weights laid out for the CPU's kernels where that is possible.

PyTorch keeps a weight row by row, and oneDNN has to rearrange it in every F.linear. Rearranging it
once is what Inductor's freezing does; the two operators it uses for that work without a compiler as
well. They are not public, so `why_not_packable` tries them before anything relies on them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from .errors import brief
from .native.layers import Matrix

Product: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

PACKING_ROWS = 16  # rows of input the layout is chosen for; it serves one row and hundreds too


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

    def pack(self, *, natively: bool = False) -> None:
        """Lay the matrix out for this CPU; the plain one stays as well, until `release`."""
        assert self.weight is not None, "a linear that is called as it is cannot be packed"
        if natively:
            assert self.bias is None
            self.product = Matrix(self.weight)
        else:
            packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, PACKING_ROWS)
            self.product = lambda x: torch.ops.mkldnn._linear_pointwise(
                x, packed, self.bias, "none", [], ""
            )

    def release(self) -> None:
        """Free the plain matrix: the linears' weights become shapes without numbers (meta)."""
        self.weight = None
        for linear in self.linears:
            linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.product is not None:
            return self.product(x)
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        return torch.cat([linear(x) for linear in self.linears], dim=-1)


@cache
def why_not_packable(dtype: torch.dtype) -> str:
    """What keeps weights of a dtype from being packed on this CPU; empty if nothing does."""
    if not torch._C._has_mkldnn:
        return "this PyTorch is built without oneDNN"
    weight = torch.eye(32).to(dtype)
    try:
        owner = nn.Module()
        owner.linear = nn.Linear(32, 32, bias=False)
        owner.linear.weight = nn.Parameter(weight, requires_grad=False)
        product = Linear(owner, "linear")
        product.fuse()
        product.pack()
        with torch.inference_mode():
            same = torch.equal(product(weight[:3]), weight[:3])
    except (AttributeError, RuntimeError) as error:  # gone, or not for this dtype or CPU
        return f"oneDNN says: {brief(error)}"
    return "" if same else "the packed product is wrong here"
