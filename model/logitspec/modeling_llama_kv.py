"""The patched Llama family: one forward over a draft tree with a preallocated KV cache.

Covers every architecture in config.ARCHITECTURES by configuration. loading.py loads it,
verification.py calls it. Parameter names are the checkpoint's own, so transformers loads the
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .config import biases, heads, max_positions
from .cpu.choice import Kernels
from .cpu.layers import NativeLayers
from .errors import InputError
from .kv_cache import CachePool, KVCache, Window
from .linear import Linear

# Query rows from which two matrix products beat scaled_dot_product_attention's blocks on a CPU, in
# half precision: docs/performance.md
MATMUL_ROWS = 48


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32 or better."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotary position embedding of x [n, heads, head_dim], in place.

    Args:
        cos: [n, 1, head_dim].
        sin: the same, its first half negated: the sign of the half that is swapped in.
    """
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    torch.addcmul(x * cos, swapped, sin, out=x)


def grouped_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """softmax(q k^T / sqrt(head_dim) + mask) v: [kv_heads, rows, head_dim].

    Args:
        q: [kv_heads, rows, head_dim].
        keys: [kv_heads, seen, head_dim], and the values.
        mask: [rows, seen], additive; None: every row sees everything.
    """
    half = q.dtype in (torch.bfloat16, torch.float16)
    if half and q.device.type == "cpu" and mask is not None and q.shape[1] >= MATMUL_ROWS:
        scores = torch.bmm(q * q.shape[-1] ** -0.5, keys.transpose(1, 2)) + mask
        return torch.bmm(scores.softmax(dim=-1), values)
    return F.scaled_dot_product_attention(q[None], keys[None], values[None], attn_mask=mask)[0]


class Attention(nn.Module):
    """Grouped-query attention of the tokens of one forward to the cache and to each other."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = heads(config)
        qkv_bias, bias, _ = biases(config)
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=bias)
        norms = config.model_type == "qwen3"
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if norms else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if norms else None
        self.qkv = Linear(self, "q_proj", "k_proj", "v_proj")
        self.output = Linear(self, "o_proj")

    def forward(
        self,
        x: torch.Tensor,  # [n, hidden]
        cos: torch.Tensor,  # [n, 1, head_dim], see rotate_
        sin: torch.Tensor,
        mask: torch.Tensor | None,  # [groups * n, seen], additive; None: causal
        window: Window,
    ) -> torch.Tensor:
        n = x.shape[0]
        qkv = self.qkv(x).view(n, self.heads + 2 * self.kv_heads, self.head_dim)
        q, k = qkv[:, : self.heads], qkv[:, self.heads : self.heads + self.kv_heads]
        if self.q_norm is not None and self.k_norm is not None:
            q.copy_(self.q_norm(q))
            k.copy_(self.k_norm(k))
        rotate_(qkv[:, : self.heads + self.kv_heads], cos, sin)
        kv = qkv[:, self.heads :].view(n, 2, self.kv_heads, self.head_dim).permute(1, 2, 0, 3)
        keys, values = window.write(self.layer, kv)
        if mask is None and n > 1:
            out = F.scaled_dot_product_attention(
                q.transpose(0, 1)[None], keys[None], values[None], is_causal=True, enable_gqa=True
            )
            return self.output(out[0].transpose(0, 1).reshape(n, -1))
        # The query heads that share a key head become rows of one query: the cache is read once a
        # step and never expanded, and kernels that know no grouped queries serve as well.
        groups = self.heads // self.kv_heads
        q = q.view(n, self.kv_heads, groups, self.head_dim).permute(1, 2, 0, 3)
        q = q.reshape(1, self.kv_heads, groups * n, self.head_dim)
        out = grouped_attention(q[0], keys, values, mask)
        out = out.view(self.kv_heads, groups, n, self.head_dim).permute(2, 0, 1, 3)
        return self.output(out.reshape(n, -1))


class MLP(nn.Module):
    """The gated feed-forward block."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        _, _, bias = biases(config)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self.activation: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[config.hidden_act]
        self.gate_up = Linear(self, "gate_proj", "up_proj")
        self.down = Linear(self, "down_proj")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual connection."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        attention, mlp = self.self_attn, self.mlp
        self.linears = (attention.qkv, attention.output, mlp.gate_up, mlp.down)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor | None,
        window: Window,
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, window)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class LlamaKVModel(nn.Module):
    """Embedding, decoder layers and final norm, under the checkpoint's names."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens: Any = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LlamaKVForCausalLM(PreTrainedModel):
    """A Llama-family causal language model over one sequence, for draft-tree verification."""

    config_class = PreTrainedConfig
    base_model_prefix = "model"
    _no_split_modules: ClassVar[list[str]] = ["DecoderLayer"]
    _supports_sdpa = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = LlamaKVModel(config)
        self.lm_head: Any = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.eos_token_ids: set[int] = set()  # the checkpoint's
        self.graphs = False  # whether steps are captured: cuda_graphs.py
        self.caches = CachePool()
        self.head = Linear(self, "lm_head")
        self.kernels = Kernels("plain")
        self.native: NativeLayers | None = None
        self.compute_dtype: torch.dtype | None = None  # of all but matrices; None: as they are
        self.stored = ""  # what the matrices are stored in, where that is not the dtype
        self.embedding_rows: Callable[[torch.Tensor], torch.Tensor] | None = None  # laid out
        self.rotary: nn.Module | None = None  # what turns queries and keys; None: the config's
        self._rope = torch.empty(0, device="cpu")
        self.post_init()

    @property
    def max_positions(self) -> int:
        """Most tokens of prompt and output together (max_positions of the config)."""
        return max_positions(self.config)

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in, and the cache's; weights may be stored in another."""
        own: torch.dtype = self.compute_dtype or super().dtype
        return own

    @property
    def device(self) -> torch.device:
        """Where the first weights lie; native kernels have theirs on the CPU."""
        if self.native is not None:
            return torch.device("cpu")
        own: torch.device = super().device
        return own

    @property
    def layer_devices(self) -> list[torch.device]:
        """Where each layer runs; for a layer that accelerate offloads, where it is brought to."""
        return [execution_device(layer) for layer in self.model.layers]

    @property
    def layers(self) -> list[DecoderLayer]:
        return cast("list[DecoderLayer]", list(self.model.layers))

    def fuse(self) -> None:
        """Make one matrix of q/k/v, one of gate/up, where they are plain linears on one device."""
        for linear in self.linears:
            linear.fuse()

    @property
    def linears(self) -> list[Linear]:
        """All matrix products, the head's last."""
        return [*(linear for layer in self.layers for linear in layer.linears), self.head]

    @property
    def fused(self) -> bool:
        """Whether every matrix product could be made one matrix of."""
        return all(linear.weight is not None for linear in self.linears)

    def new_cache(self, capacity: int) -> KVCache:
        """An empty KV cache of so many slots, the caller's own."""
        _, kv_heads, head_dim = heads(self.config)
        return KVCache(self.layer_devices, kv_heads, head_dim, capacity, self.dtype)

    def cache(
        self, capacity: int, prompt_ids: Sequence[int] = (), best: int = 0
    ) -> AbstractContextManager[KVCache]:
        """`with model.cache(n) as cache`: one of n slots or more, nobody else's; CachePool.lend."""
        return self.caches.lend(capacity, self.max_positions, self.new_cache, prompt_ids, best)

    def require_position(self, position: int) -> None:
        """Raise InputError unless the model has this position."""
        if position >= self.max_positions:
            raise InputError(
                f"position {position} is past the model's {self.max_positions} positions"
            )

    def rope(self, positions: int, device: torch.device) -> torch.Tensor:
        """The table of rotary cos and sin, which reaches so many positions, or all: [size, 2,
        head_dim].

        One that does is left where it is: a CUDA graph may read it. Another thread may put a
        shorter one in its place at any time, so take what is returned.
        """
        positions = min(positions, self.max_positions)
        table = self._rope
        if table.shape[0] < positions or table.device != device:
            size = min(self.max_positions, max(1024, 2 * positions))
            like = torch.empty(0, dtype=self.dtype, device=device)
            rows = torch.arange(size, device=device)[None]
            rotary = self.rotary or LlamaRotaryEmbedding(self.config)
            cos, sin = rotary.to(device)(like, rows)
            sin[..., : sin.shape[-1] // 2].neg_()
            self._rope = table = torch.stack((cos[0], sin[0]), dim=1)
        return table

    def additive_mask(self, visible: torch.Tensor, committed: int) -> torch.Tensor:
        """0 where a row sees a column, else -inf: [groups * n, committed + columns].

        Args:
            visible: [n, columns] bool.
            committed: columns before these, which every row sees.
        """
        n, columns = visible.shape
        mask = torch.zeros(n, committed + columns, dtype=self.dtype, device=visible.device)
        mask[:, committed:].masked_fill_(~visible, -torch.inf)
        query_heads, kv_heads, _ = heads(self.config)
        return mask.repeat(query_heads // kv_heads, 1)

    @torch.inference_mode()
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        *,
        last_position: int,
        tree_mask: torch.Tensor | None = None,
        last_only: bool = False,
    ) -> torch.Tensor:
        """One forward over n new tokens, whose keys and values go behind the committed ones.

        Args:
            input_ids: [n] token ids.
            positions: [n] position ids.
            cache: receives the keys and values in slots [length, length + n); the caller commits.
            last_position: the largest of `positions`, known to the caller without a device sync.
            tree_mask: [n, n] bool, which of the n tokens each may see; every one also sees all
                committed positions. None: the tokens are a plain sequence (causal).
            last_only: give the logits of the last token only.

        Returns:
            Logits, [n, vocab] or [1, vocab], on the device of `input_ids`.

        Raises:
            InputError: the tokens do not fit the cache, or a position the model.
        """
        x = self.hidden_states(
            input_ids, positions, cache, last_position=last_position, tree_mask=tree_mask
        )
        logits: torch.Tensor = self.logits(x[-1:] if last_only else x)
        return logits.to(input_ids.device)

    @torch.inference_mode()
    def hidden_states(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        *,
        last_position: int,
        tree_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What forward() computes before the final norm and the head: [n, hidden]."""
        n = input_ids.shape[0]
        cache.require(n)
        self.require_position(last_position)
        turns = self.rope(last_position + 1, positions.device)
        x = self.embed(input_ids)
        if self.native is not None:
            return self.native(x, turns, positions, tree_mask, cache)
        mask = None
        if n > 1 and (tree_mask is not None or cache.length > 0):
            if tree_mask is None:
                tree_mask = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
            mask = self.additive_mask(tree_mask, cache.length)
        return self.run_layers(x, rotation(turns, positions), mask, cache.window(n))

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The embedded tokens: [n, hidden]."""
        rows: torch.Tensor = (self.embedding_rows or self.model.embed_tokens)(input_ids)
        return rows.to(self.dtype)

    def run_layers(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        window: Window,
    ) -> torch.Tensor:
        """All decoder layers over embedded tokens x [n, hidden], each where it lies."""
        cos, sin = rotation
        for layer, device in zip(self.model.layers, window.devices, strict=True):
            if x.device != device:
                x, cos, sin = x.to(device), cos.to(device), sin.to(device)
                mask = None if mask is None else mask.to(device)
            x = layer(x, cos, sin, mask, window)
        return x

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [n, vocab] of hidden states [n, hidden], where the head lies."""
        if self.native is not None:
            return self.head(x)  # which has the norm
        x = self.model.norm(x.to(execution_device(self.model.norm)))
        return self.head(x.to(execution_device(self.lm_head)))


def rotation(table: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin for rotate_, each [n, 1, head_dim], of positions [n] that the table reaches."""
    rows = table[positions]
    return rows[:, :1], rows[:, 1:]


def execution_device(module: nn.Module) -> torch.device:
    """The device a module computes on, seen through accelerate's offloading hooks."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is None:
        # Weights freed for a packed copy are on the meta device; the copy is on the CPU.
        devices = (parameter.device for parameter in module.parameters())
        return next((d for d in devices if d.type != "meta"), torch.device("cpu"))
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
