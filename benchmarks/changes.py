"""Before and after of each change that made a step on a CPU faster: python -m benchmarks.changes.

Variants of the same work in one process, in turn, on a real model's weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from evaluation.arguments import Parser, at_least, run_command
from model.logitspec import InputError, LlamaKVForCausalLM, load
from model.logitspec.devices import resolve_dtype
from model.logitspec.kernels import why_not
from model.logitspec.kv_cache import KVCache
from model.logitspec.linear import Linear, Product
from model.logitspec.loading import load_config
from model.logitspec.modeling_llama_kv import Attention, max_positions
from model.logitspec.native.layers import Matrix, best_tokens
from model.logitspec.step_cost import fill, interleaved, wide_tree
from model.logitspec.verification import verify

from .measure import INTERRUPTED, Results, Row, Table, quartiles, spread

BEST = 8  # tokens of each row that topk is asked for
STEP_CONTEXT = 256

Models = Mapping[str, LlamaKVForCausalLM]  # kernels -> the model on them; plain is always there


@dataclass(frozen=True)
class Change:
    """The same work, done as it was before, as after a change, as after the next."""

    work: str
    variants: Mapping[str, Callable[[], object]]  # the oldest first
    times: int = 1  # that one call does the work


def changes(models: Models, rows: int, contexts: list[int]) -> Iterator[Change]:
    """Every change, for so many rows (or nodes)."""
    yield products(models, rows)
    for context in contexts:
        yield attention(models["plain"], rows, context)
    hidden = noise(models["plain"], rows, models["plain"].config.hidden_size)
    logits = models["plain"].logits(hidden)
    for work, count, before in (
        (
            "best token of each row",
            1,
            {
                "argmax": lambda: logits.argmax(dim=-1),
                "max": lambda: logits.max(dim=-1).indices,
            },
        ),
        (f"best {BEST} of each row", BEST, {"topk": lambda: logits.topk(BEST, dim=-1).indices}),
    ):
        after = {"native": partial(best_tokens, logits, count)} if "native" in models else {}
        yield Change(work, {**before, **after})
    yield step(models, rows)


def noise(model: LlamaKVForCausalLM, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.dtype)


# All matrix products of one forward -------------------------------------------------------------


def products(models: Models, rows: int) -> Change:
    """The products of every layer and the head, each with rows of its own to multiply."""
    model = models["plain"]
    linears = [*(linear for layer in model.layers for linear in layer.linears), model.head]
    inputs = {
        size: noise(model, rows, size)
        for size in {linear.linears[0].in_features for linear in linears}
    }
    work = [(linear, inputs[linear.linears[0].in_features]) for linear in linears]
    variants: dict[str, Callable[[], object]] = {
        "separate": lambda: [
            F.linear(x, part.weight, part.bias) for linear, x in work for part in linear.linears
        ],
        "fused": lambda: [F.linear(x, fused(linear), linear.bias) for linear, x in work],
    }
    for name, lay_out in (("packed", packed), ("native", native)):
        if name in models:
            calls = [(lay_out(linear), x) for linear, x in work]
            variants[name] = partial(run, calls)
    return Change("matrix products of a forward", variants)


def run(calls: list[tuple[Product, torch.Tensor]]) -> None:
    for product, x in calls:
        product(x)


def fused(linear: Linear) -> torch.Tensor:
    assert linear.weight is not None
    return linear.weight


def packed(linear: Linear) -> Product:
    """The product of a packed copy; the linear is left as it was."""
    linear.pack()
    product, linear.product = linear.product, None
    assert product is not None
    return product


def native(linear: Linear) -> Product:
    return Matrix(fused(linear))


# Attention of one layer over a filled cache -----------------------------------------------------


def filled(model: LlamaKVForCausalLM, context: int, room: int) -> KVCache:
    """A cache with so many committed tokens, and slots for so many more."""
    cache = model.new_cache(context + room)
    fill(model, cache, context)
    return cache


def attention(model: LlamaKVForCausalLM, rows: int, context: int) -> Change:
    """A tree's queries against every layer's own keys and values, behind the projections."""
    cache = filled(model, context, rows)
    seen = [store[:, :, : context + rows].unbind() for store in cache.store]
    layer = model.layers[0].self_attn
    q = noise(model, rows, layer.heads, layer.head_dim)
    mask = None
    if rows > 1:
        ancestors = torch.from_numpy(wide_tree(rows).ancestor_mask())
        mask = model.additive_mask(ancestors, context)
    variants = {"SDPA, enable_gqa": grouped, "heads as rows, SDPA": folded, "… matmuls": multiplied}
    return Change(
        f"attention of a layer, context {context}",
        {
            name: partial(over_layers, partial(variant, layer, q, mask), seen)
            for name, variant in variants.items()
        },
        times=len(seen),
    )


def over_layers(
    attend: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    seen: list[tuple[torch.Tensor, ...]],
) -> None:
    for keys, values in seen:
        attend(keys, values)


def grouped(
    layer: Attention,
    q: torch.Tensor,
    mask: torch.Tensor | None,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """The query heads side by side, q [n, heads, head_dim]: SDPA expands the keys for them."""
    mask = None if mask is None else mask[: len(q)]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, enable_gqa=True
    )
    return out[0].transpose(0, 1).reshape(len(q), -1)


def folded(
    layer: Attention,
    q: torch.Tensor,
    mask: torch.Tensor | None,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """Query heads that share a key head as rows of one SDPA."""
    rows = fold(layer, q)
    out = F.scaled_dot_product_attention(rows[None], keys[None], values[None], attn_mask=mask)
    return unfold(layer, out[0])


def multiplied(
    layer: Attention,
    q: torch.Tensor,
    mask: torch.Tensor | None,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """The same rows in two matrix products."""
    rows = fold(layer, q)
    scores = torch.bmm(rows * layer.head_dim**-0.5, keys.transpose(1, 2))
    if mask is not None:
        scores = scores + mask
    return unfold(layer, torch.bmm(scores.softmax(dim=-1), values))


def fold(layer: Attention, q: torch.Tensor) -> torch.Tensor:
    """[n, heads, head_dim] -> [kv_heads, groups * n, head_dim], as Attention.forward does."""
    q = q.view(len(q), layer.kv_heads, -1, layer.head_dim).permute(1, 2, 0, 3)
    return q.reshape(layer.kv_heads, -1, layer.head_dim)


def unfold(layer: Attention, out: torch.Tensor) -> torch.Tensor:
    """[kv_heads, groups * n, head_dim] -> [n, heads * head_dim]."""
    groups = layer.heads // layer.kv_heads
    out = out.view(layer.kv_heads, groups, -1, layer.head_dim).permute(2, 0, 1, 3)
    return out.reshape(-1, layer.heads * layer.head_dim)


# A whole step -----------------------------------------------------------------------------------


def step(models: Models, nodes: int) -> Change:
    """verify(), with everything that it calls."""
    tree = wide_tree(nodes)
    return Change(
        f"a whole step, context {STEP_CONTEXT}",
        {
            name: partial(verify, model, tree, filled(model, STEP_CONTEXT, nodes), BEST)
            for name, model in models.items()
        },
    )


# The command ------------------------------------------------------------------------------------


def check_positions(args: argparse.Namespace, positions: int) -> None:
    """Raise InputError unless every forward fits the model's positions."""
    context, rows = max(*args.contexts, STEP_CONTEXT), max(args.rows)
    if context + rows > positions:
        raise InputError(
            f"a context of {context} and {rows} rows exceed the model's {positions} positions; "
            "give --contexts or --rows less"
        )


def load_models(path: str, dtype: torch.dtype) -> Models:
    """The model on each of the kernels that run it here; those that do not are named."""
    models = {"plain": load(path, dtype=dtype, cpu_kernels="plain")}
    for name in ("packed", "native"):
        why = why_not(name, models["plain"].config, dtype)
        if why:
            print(f"left out, the {name} kernels: {why}")
        else:
            models[name] = load(path, dtype=dtype, cpu_kernels=name)
    return models


def compare(change: Change, rounds: int) -> list[Row]:
    """A row per variant: milliseconds, how many times faster than the one before, and in all."""
    measured = interleaved(change.variants, rounds)
    found: list[Row] = []
    for name, seconds in measured.items():
        row: Row = {"work": change.work, "variant": name, **quartiles(seconds, 1e3 / change.times)}
        row["gain"] = found[-1]["median"] / row["median"] if found else 1.0
        row["gain_in_all"] = found[0]["median"] / row["median"] if found else 1.0
        found.append(row)
    return found


@torch.inference_mode()
def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    dtypes = {name: resolve_dtype(name, "cpu") for name in args.dtypes}
    check_positions(args, max_positions(load_config(args.model_path)))
    results = Results(args.json, args, "cpu")
    for name, dtype in dtypes.items():
        models = load_models(args.model_path, dtype)
        table = Table(
            f"{args.model_path}, {name}: milliseconds, median [quartiles] of {args.rounds} rounds; "
            "times faster than the line above, and than the first",
            {"work": 32, "rows": 4, "variant": 19, "ms": 24, "gain": 6, "in all": 6},
        )
        for rows in args.rows:
            for change in changes(models, rows, args.contexts):
                for row in compare(change, args.rounds):
                    results.add("changes", {"dtype": name, "rows": rows, **row})
                    table.add(
                        row["work"], rows, row["variant"], spread(row, 3), f"{row['gain']:.2f}",
                        f"{row['gain_in_all']:.2f}",
                    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.changes", "What each change to a CPU step brought.")
    add = parser.add_argument
    add("--model-path", default="checkpoints/smollm2-135m-instruct", help="checkpoint or hub id")
    add("--dtypes", nargs="+", default=["bfloat16", "float32"], help="of the weights, in turn")
    add("--rows", type=at_least(1), nargs="+", default=[1, 16, 64], help="tokens of a forward")
    add(
        "--contexts",
        type=at_least(1),
        nargs="+",
        default=[256, 1024],
        help="committed tokens that attention sees",
    )
    add("--rounds", type=at_least(1), default=15, help="measurements of each variant")
    add("--json", type=Path, metavar="FILE", help="write settings, environment and numbers to FILE")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args), INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
