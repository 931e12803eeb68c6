"""What the numbers of a checkpoint's configuration mean for a model of the Llama family."""

from __future__ import annotations

from typing import Any

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")  # config.model_type


def biases(config: Any) -> tuple[bool, bool, bool]:
    """Whether q/k/v, the attention's output, and the feed-forward block have biases, as in
    transformers' classes: some do not look at a config's attention_bias and mlp_bias."""
    kind = config.model_type
    attention = kind in ("llama", "qwen3") and bool(getattr(config, "attention_bias", False))
    feed_forward = kind == "llama" and bool(getattr(config, "mlp_bias", False))
    return attention or kind == "qwen2", attention, feed_forward


def heads(config: Any) -> tuple[int, int, int]:
    """Query heads, key heads, and the size of each."""
    queries = int(config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // queries
    return queries, int(config.num_key_value_heads), int(size)


def max_positions(config: Any) -> int:
    """Longest sequence a model may see: its positions, or its sliding window if that is shorter and
    some layer slides."""
    window = getattr(config, "sliding_window", None)
    positions = int(config.max_position_embeddings)
    return positions if window is None or not slides(config) else min(positions, int(window))


def slides(config: Any) -> bool:
    """Whether transformers' model of a config that has a sliding window lets some layer slide.

    Source: its Mistral class and DynamicCache, which both slide where no layer_types are given.
    """
    kinds = getattr(config, "layer_types", None)
    return config.model_type == "mistral" or kinds is None or "sliding_attention" in kinds


def is_quantized(config: Any) -> bool:
    """Whether a checkpoint's matrices are packed by a library such as bitsandbytes."""
    return getattr(config, "quantization_config", None) is not None
