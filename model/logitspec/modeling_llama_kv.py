"""The patched Llama family: one forward over a draft tree with a preallocated KV cache.

Covers every architecture in ARCHITECTURES by configuration. loading.py loads it, decoding.py calls
it. Parameter names are the checkpoint's own, so transformers loads the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .errors import InputError
from .kv_cache import KVCache

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")  # config.model_type


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32 or better."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of x [n, heads, head_dim] by cos and sin, each [n, 1, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention of the tokens of one forward to the cache and to each other."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = head_dim(config)
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        bias = bool(getattr(config, "attention_bias", False))
        qkv_bias = bias or config.model_type == "qwen2"
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=bias)
        norms = config.model_type == "qwen3"
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if norms else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if norms else None
        self.qkv_proj: nn.Linear | None = None

    def fuse(self) -> None:
        self.qkv_proj = fuse_linears(self.q_proj, self.k_proj, self.v_proj)

    def forward(
        self,
        x: torch.Tensor,  # [n, hidden]
        cos: torch.Tensor,  # [n, 1, head_dim]
        sin: torch.Tensor,
        mask: torch.Tensor | None,  # [groups * n, committed + n], additive; None: causal
        cache: KVCache,
    ) -> torch.Tensor:
        n = x.shape[0]
        if self.qkv_proj is not None:
            sizes = (
                self.heads * self.head_dim,
                self.kv_heads * self.head_dim,
                self.kv_heads * self.head_dim,
            )
            q, k, v = self.qkv_proj(x).split(sizes, dim=-1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q = q.view(n, self.heads, self.head_dim)
        k = k.view(n, self.kv_heads, self.head_dim)
        v = v.view(n, self.kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        keys, values = cache.append(self.layer, k.transpose(0, 1), v.transpose(0, 1))
        if mask is None and n > 1:
            out = F.scaled_dot_product_attention(
                q.transpose(0, 1)[None], keys[None], values[None], is_causal=True, enable_gqa=True
            )
            return self.o_proj(out[0].transpose(0, 1).reshape(n, -1))  # type: ignore[no-any-return]
        # The query heads that share a key head become rows of one query: the cache is read once a
        # step and never expanded, and kernels that know no grouped queries serve as well.
        groups = self.heads // self.kv_heads
        q = q.view(n, self.kv_heads, groups, self.head_dim).permute(1, 2, 0, 3)
        q = q.reshape(1, self.kv_heads, groups * n, self.head_dim)
        out = F.scaled_dot_product_attention(q, keys[None], values[None], attn_mask=mask)
        out = out.view(self.kv_heads, groups, n, self.head_dim).permute(2, 0, 1, 3)
        return self.o_proj(out.reshape(n, -1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The gated feed-forward block."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        bias = bool(getattr(config, "mlp_bias", False))
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self.activation: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[config.hidden_act]
        self.gate_up_proj: nn.Linear | None = None

    def fuse(self) -> None:
        self.gate_up_proj = fuse_linears(self.gate_proj, self.up_proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate_up_proj is not None:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(self.activation(gate) * up)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual connection."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor | None,
        cache: KVCache,
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class LlamaKVModel(nn.Module):
    """Embedding, decoder layers and final norm, under the checkpoint's names."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
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
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._cache: KVCache | None = None
        self._rope: tuple[torch.Tensor, torch.Tensor] | None = None
        self.post_init()

    @property
    def max_positions(self) -> int:
        """Most tokens of prompt and output together (max_positions of the config)."""
        return max_positions(self.config)

    @property
    def layer_devices(self) -> list[torch.device]:
        """Where each layer runs; for a layer that accelerate offloads, where it is brought to."""
        return [execution_device(layer) for layer in self.model.layers]

    def fuse(self) -> None:
        """Make one matrix of q/k/v, one of gate/up, where they are plain linears on one device."""
        for layer in cast("list[DecoderLayer]", self.model.layers):
            layer.self_attn.fuse()
            layer.mlp.fuse()

    def cache_for(self, capacity: int) -> KVCache:
        """An empty KV cache of at least `capacity` slots: the last one, if it is large enough."""
        if self._cache is None or self._cache.capacity < capacity:
            self._cache = None  # frees the old one before the new is allocated
            self._cache = KVCache(
                self.layer_devices,
                self.config.num_key_value_heads,
                head_dim(self.config),
                capacity,
                self.dtype,
            )
        self._cache.reset()
        return self._cache

    def _cos_sin(self, positions: torch.Tensor, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary cos and sin, each [n, 1, head_dim], from a table that grows to max_positions."""
        if (
            self._rope is None
            or self._rope[0].shape[0] <= last
            or self._rope[0].device != positions.device
        ):
            size = min(self.max_positions, max(1024, 2 * (last + 1)))
            like = torch.empty(0, dtype=self.dtype, device=positions.device)
            rows = torch.arange(size, device=positions.device)[None]
            cos, sin = LlamaRotaryEmbedding(self.config).to(positions.device)(like, rows)
            self._rope = cos[0, :, None], sin[0, :, None]
        return self._rope[0][positions], self._rope[1][positions]

    def _additive_mask(
        self, tree_mask: torch.Tensor | None, n: int, committed: int, device: torch.device
    ) -> torch.Tensor:
        """0 where a query row may look, else -inf: [groups * n, committed + n]."""
        if tree_mask is None:
            tree_mask = torch.ones(n, n, dtype=torch.bool, device=device).tril()
        mask = torch.zeros(n, committed + n, dtype=self.dtype, device=device)
        mask[:, committed:].masked_fill_(~tree_mask, -torch.inf)
        return mask.repeat(self.config.num_attention_heads // self.config.num_key_value_heads, 1)

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
        if last_position >= self.max_positions:
            raise InputError(
                f"position {last_position} is past the model's {self.max_positions} positions"
            )
        cos, sin = self._cos_sin(positions, last_position)
        mask = None
        if n > 1 and (tree_mask is not None or cache.length > 0):
            mask = self._additive_mask(tree_mask, n, cache.length, input_ids.device)
        x: torch.Tensor = self.model.embed_tokens(input_ids)
        for layer, device in zip(self.model.layers, cache.devices, strict=True):
            if x.device != device:
                x, cos, sin = x.to(device), cos.to(device), sin.to(device)
                mask = None if mask is None else mask.to(device)
            x = layer(x, cos, sin, mask, cache)
        return x

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [n, vocab] of hidden states [n, hidden], where the head lies."""
        x = self.model.norm(x.to(execution_device(self.model.norm)))
        return self.lm_head(x.to(execution_device(self.lm_head)))  # type: ignore[no-any-return]


def max_positions(config: Any) -> int:
    """Longest sequence a model may see: its positions, or its sliding window if shorter."""
    window = getattr(config, "sliding_window", None)
    positions = int(config.max_position_embeddings)
    return positions if window is None else min(positions, int(window))


def head_dim(config: Any) -> int:
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def execution_device(module: nn.Module) -> torch.device:
    """The device a module computes on, seen through accelerate's offloading hooks."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is None:
        return next(module.parameters()).device
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def fuse_linears(*linears: nn.Linear) -> nn.Linear | None:
    """One linear that computes all of `linears` at once, or None if they cannot be fused.

    The given linears stay usable: their parameters become views into the fused one, so the weights
    are held once and keep their names.
    """
    first = linears[0]
    if any(
        type(linear) is not nn.Linear
        or linear.weight.device != first.weight.device
        or linear.weight.dtype != first.weight.dtype
        or linear.weight.device.type == "meta"
        for linear in linears
    ):
        return None
    rows = sum(linear.out_features for linear in linears)
    fused = nn.Linear(first.in_features, rows, bias=first.bias is not None, device="meta")
    for name in ("weight", "bias") if first.bias is not None else ("weight",):
        whole = torch.cat([getattr(linear, name).data for linear in linears])
        setattr(fused, name, nn.Parameter(whole, requires_grad=False))
        row = 0
        for linear in linears:
            getattr(linear, name).data = whole[row : row + linear.out_features]
            row += linear.out_features
    return fused
