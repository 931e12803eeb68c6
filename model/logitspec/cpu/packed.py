"""Matrix products of PyTorch on weights that are rearranged once for oneDNN.

PyTorch keeps a weight row by row, and oneDNN has to rearrange it in every F.linear. Rearranging it
once is what Inductor's freezing does; the two operators it uses for that work without a compiler as
well. They are not public, so `why_not_packable` tries them before anything relies on them.
"""

from __future__ import annotations

from functools import cache

import torch

from ..errors import brief
from ..linear import Product

PACKING_ROWS = 16  # rows of input the layout is chosen for; it serves one row and hundreds too


def packed(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
    """x [n, in] -> x W^T + b [n, out] over a copy of a weight [out, in], laid out for oneDNN."""
    copy = torch.ops.mkldnn._reorder_linear_weight(weight, PACKING_ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, copy, bias, "none", [], "")


@cache
def why_not_packable(dtype: torch.dtype) -> str:
    """What keeps weights of a dtype from being packed on this CPU; empty if nothing does."""
    if not torch._C._has_mkldnn:
        return "this PyTorch is built without oneDNN"
    weight = torch.eye(32).to(dtype)
    try:
        with torch.inference_mode():
            same = torch.equal(packed(weight)(weight[:3]), weight[:3])
    except (AttributeError, RuntimeError) as error:  # gone, or not for this dtype or CPU
        return f"oneDNN says: {brief(error)}"
    return "" if same else "the packed product is wrong here"
