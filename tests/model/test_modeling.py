"""The patched model against transformers' own: the same logits, whatever the architecture."""

from __future__ import annotations

import copy
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model.logitspec import (
    DraftTree,
    InputError,
    LlamaKVForCausalLM,
    generate,
    load,
)
from model.logitspec.acceptance import TreeTensors
from model.logitspec.cpu.choice import KERNELS, Kernels
from model.logitspec.cpu.layers import CHUNK
from model.logitspec.kv_cache import MOST_IDLE, CachePool

from ..conftest import TINY, save_tiny

ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "rope_theta": 1e4,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 5e5,
    },
}
VARIANTS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig(**TINY), LlamaForCausalLM),
    "tied": (LlamaConfig(**TINY, tie_word_embeddings=True), LlamaForCausalLM),
    "biased": (LlamaConfig(**TINY, attention_bias=True, mlp_bias=True), LlamaForCausalLM),
    "one_kv_head": (LlamaConfig(**TINY | {"num_key_value_heads": 1}), LlamaForCausalLM),
    "all_kv_heads": (LlamaConfig(**TINY | {"num_key_value_heads": 4}), LlamaForCausalLM),
    "head_dim": (LlamaConfig(**TINY, head_dim=20), LlamaForCausalLM),
    "mistral": (MistralConfig(**TINY, sliding_window=None), MistralForCausalLM),
    "qwen2": (Qwen2Config(**TINY), Qwen2ForCausalLM),
    "qwen3": (Qwen3Config(**TINY, head_dim=16), Qwen3ForCausalLM),
} | {
    f"rope_{name}": (LlamaConfig(**TINY, rope_parameters=rope), LlamaForCausalLM)
    for name, rope in ROPES.items()
}


def reference_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """transformers' logits after each of `ids`, run as plain text: [len(ids), vocab]."""
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]  # type: ignore[no-any-return]


def prefilled(model: LlamaKVForCausalLM, ids: list[int]) -> tuple[Any, torch.Tensor]:
    """A cache that holds `ids`, and the logits after each of them."""
    cache = model.new_cache(len(ids) + 64)
    n = len(ids)
    logits = model(torch.tensor(ids), torch.arange(n), cache, last_position=n - 1)
    cache.keep(range(n))
    return cache, logits


def tree_logits(model: LlamaKVForCausalLM, cache: Any, tree: DraftTree) -> torch.Tensor:
    tensors = TreeTensors.upload(tree, torch.device("cpu"))
    return model(
        tensors.tokens,
        tensors.depths + cache.length,
        cache,
        last_position=cache.length + max(tree.depths),
        tree_mask=tensors.ancestors,
    )


def random_tree(rng: random.Random, vocab: int, size: int) -> DraftTree:
    tree = DraftTree(rng.randrange(vocab), size)
    while not tree.full:
        tree.add(rng.randrange(vocab), rng.randrange(len(tree)))
    return tree


def check_against(reference: Any, model: LlamaKVForCausalLM, vocab: int) -> None:
    """Prefill, a one-node step, a tree, a kept path and a step behind it: all as plain text.

    Differences may reach a ten-thousandth of the largest logit: sums in another order.
    """
    rng = random.Random(1)

    def check(logits: torch.Tensor, expected: torch.Tensor) -> None:
        largest = expected.abs().max().item()
        torch.testing.assert_close(logits.to(expected.dtype), expected, atol=1e-4 * largest, rtol=0)

    length = CHUNK + 20 if model.native else 40  # the native layers take a prompt in pieces
    prompt = [rng.randrange(vocab) for _ in range(length)]
    cache, logits = prefilled(model, prompt)
    check(logits, reference_logits(reference, prompt))

    single = DraftTree(rng.randrange(vocab), 1)
    expected = reference_logits(reference, prompt + single.tokens)[-1:]
    check(tree_logits(model, cache, single), expected)

    tree = random_tree(rng, vocab, 24)
    logits = tree_logits(model, cache, tree)
    path: list[int] = []
    for node in range(len(tree)):
        path = [int(i) for i in tree.ancestor_mask()[node].nonzero()[0]]
        text = prompt + [tree.tokens[i] for i in path]
        check(logits[node], reference_logits(reference, text)[-1])

    cache.keep(path)  # the last node's path, which has gaps
    after = random_tree(rng, vocab, 3)
    text = prompt + [tree.tokens[i] for i in path] + after.tokens[:1]
    check(tree_logits(model, cache, after)[0], reference_logits(reference, text)[-1])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_those_of_transformers(name: str, kernels: str, tmp_path: Path) -> None:
    config, cls = VARIANTS[name]
    if kernels == "native":
        config = copy.deepcopy(config)
        config.hidden_size, config.head_dim, config.intermediate_size = 128, 64, 96
        config.initializer_range = 0.3  # wider layers: the same spread of logits
    path = save_tiny(tmp_path / name, config, cls)
    model = load(path, dtype=torch.float32, cpu_kernels=kernels)
    assert model.kernels == Kernels(kernels)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    check_against(reference, model, vocab=97)


@pytest.mark.parametrize("kernels", KERNELS)
def test_logits_of_the_default_model_equal_those_of_transformers(
    kernels: str, default_model_path: str
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(default_model_path, dtype=torch.float32)
    model = load(default_model_path, dtype=torch.float32, cpu_kernels=kernels)
    check_against(reference, model, vocab=49152)


def test_a_sequence_behind_a_filled_cache_is_causal(tiny: LlamaKVForCausalLM) -> None:
    ids = list(range(3, 33))
    whole = prefilled(tiny, ids)[1]
    cache = prefilled(tiny, ids[:20])[0]
    rest = tiny(torch.tensor(ids[20:]), torch.arange(20, 30), cache, last_position=29)
    torch.testing.assert_close(rest, whole[20:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(tiny_path: str, tiny: LlamaKVForCausalLM, dtype: torch.dtype) -> None:
    model = load(tiny_path, dtype=dtype)
    logits = prefilled(model, [3, 4, 5])[1]
    assert logits.dtype == dtype
    exact = prefilled(tiny, [3, 4, 5])[1]
    tolerance = 0.1 * exact.abs().max().item() if dtype.itemsize == 2 else 1e-3
    torch.testing.assert_close(logits.double(), exact, atol=tolerance, rtol=0)


def test_fused_weights_are_held_once_and_can_be_done_without(
    tiny_path: str, tiny: LlamaKVForCausalLM
) -> None:
    layer: Any = tiny.model.layers[0]
    fused = layer.self_attn.qkv
    assert fused.weight.shape[0] == (4 + 2 + 2) * 8
    assert layer.self_attn.q_proj.weight.data_ptr() == fused.weight.data_ptr()
    expected = prefilled(tiny, [3, 4, 5])[1]
    plain = load(tiny_path, dtype=torch.float64)
    for layer in plain.layers:
        for linear in layer.linears:
            linear.weight = None
    torch.testing.assert_close(prefilled(plain, [3, 4, 5])[1], expected)


def test_layers_that_accelerate_offloads_run_unfused(tiny_path: str, tmp_path: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i == 1 else "cpu" for i in range(3)}
    whole = load(tiny_path, dtype=torch.float32)
    split = load(
        tiny_path, dtype=torch.float32, device_map=places, offload_folder=str(tmp_path / "offload")
    )
    fused = [layer.self_attn.qkv.weight is not None for layer in split.layers]
    assert fused == [True, False, True]
    assert split.layer_devices == [torch.device("cpu")] * 3
    ids = [3, 4, 5, 6]
    torch.testing.assert_close(prefilled(split, ids)[1], prefilled(whole, ids)[1])


def test_the_cache_is_reused_while_it_is_large_enough(tiny: LlamaKVForCausalLM) -> None:
    tiny.caches = CachePool()  # other tests may have left larger ones
    with tiny.cache(100) as first:
        first.length = 7
    with tiny.cache(60) as again:
        assert again is first
        assert again.length == 0
        with tiny.cache(60) as other:  # it is in use
            assert other is not first
    with tiny.cache(first.capacity + 1) as larger:
        assert larger.capacity >= min(2 * first.capacity, tiny.max_positions)


def test_of_equal_caches_the_last_used_is_lent(tiny: LlamaKVForCausalLM) -> None:
    """Its CUDA graphs are captured: sequential calls after a nested one keep to one cache."""
    tiny.caches = CachePool()
    with tiny.cache(60) as outer, tiny.cache(60) as inner:
        pass
    for _ in range(3):
        with tiny.cache(60) as again:
            assert again is outer  # given back after the inner one
    with ExitStack() as stack:
        third = [stack.enter_context(tiny.cache(60)) for _ in range(3)][2]
        assert third not in (outer, inner)
    kept = tiny.caches._idle  # the stack ends with the first one that was taken
    assert len(kept) == MOST_IDLE and kept[0] is outer


def test_idle_caches_are_few(tiny: LlamaKVForCausalLM) -> None:
    tiny.caches = CachePool()
    with ExitStack() as stack:
        taken = [stack.enter_context(tiny.cache(100 * n)) for n in range(1, 6)]
        assert len(set(map(id, taken))) == 5
    largest = sorted(taken, key=lambda cache: cache.capacity)[-MOST_IDLE:]
    assert tiny.caches.nbytes == sum(cache.nbytes for cache in largest)
    assert copy.deepcopy(tiny.caches).nbytes == 0


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_output_equals_that_of_transformers(name: str, tmp_path: Path) -> None:
    config, cls = VARIANTS[name]
    path = save_tiny(tmp_path / name, config, cls)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])
    wanted = reference.generate(ids, max_new_tokens=60, do_sample=False, pad_token_id=0)
    model = load(path, dtype=torch.float64)
    for method in ("vanilla", "logitspec"):
        found = generate(model, ids, method, max_new_tokens=60)
        assert found.tokens == wanted[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("config", "cls"),
    [
        (MistralConfig(**TINY, sliding_window=30), MistralForCausalLM),
        (LlamaConfig(**TINY, sliding_window=30), LlamaForCausalLM),
        (
            Qwen2Config(**TINY, sliding_window=30, use_sliding_window=True, max_window_layers=1),
            Qwen2ForCausalLM,
        ),
        (
            Qwen3Config(
                **TINY, head_dim=16, sliding_window=30, use_sliding_window=True, max_window_layers=1
            ),
            Qwen3ForCausalLM,
        ),
    ],
    ids=["mistral", "llama", "qwen2", "qwen3"],
)
def test_a_sliding_window_bounds_the_positions(config: Any, cls: Any, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", config, cls)
    model = load(path, dtype=torch.float64)
    assert model.max_positions == 30
    with pytest.raises(InputError, match="position 39 is past the model's 30 positions"):
        prefilled(model, list(range(40)))
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])
    with pytest.raises(InputError, match=r"model's 30 positions \(its sliding window"):
        generate(model, ids, "pld", max_new_tokens=24)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    wanted = reference.generate(ids, max_new_tokens=23, do_sample=False, pad_token_id=0)
    found = generate(model, ids, "pld", max_new_tokens=23)
    assert found.tokens == wanted[0, ids.shape[1] :].tolist()


def test_a_window_that_is_switched_off_bounds_nothing(tmp_path: Path) -> None:
    config = Qwen2Config(**TINY, sliding_window=30, use_sliding_window=False)
    model = load(save_tiny(tmp_path / "m", config, Qwen2ForCausalLM), dtype=torch.float32)
    assert model.max_positions == TINY["max_position_embeddings"]


FULL = ["full_attention"] * 3
WINDOW = {"sliding_window": 30, "use_sliding_window": True}


@pytest.mark.parametrize(
    ("config", "cls"),
    [
        (Qwen2Config(**TINY, **WINDOW, max_window_layers=3), Qwen2ForCausalLM),
        (Qwen2Config(**TINY, **WINDOW, layer_types=FULL), Qwen2ForCausalLM),
        (Qwen3Config(**TINY, **WINDOW, head_dim=16, layer_types=FULL), Qwen3ForCausalLM),
        (LlamaConfig(**TINY, sliding_window=30, layer_types=FULL), LlamaForCausalLM),
    ],
    ids=["max_window_layers", "layer_types", "qwen3", "llama"],
)
def test_a_window_that_no_layer_has_bounds_nothing(config: Any, cls: Any, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", config, cls)
    model = load(path, dtype=torch.float64)
    assert model.max_positions == TINY["max_position_embeddings"]
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    wanted = reference.generate(ids, max_new_tokens=60, do_sample=False, eos_token_id=None)
    found = generate(model, ids, "pld", max_new_tokens=60, eos_token_ids=())
    assert found.tokens == wanted[0, ids.shape[1] :].tolist()
