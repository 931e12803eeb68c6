"""Padded steps against plain ones: the same verdicts, whatever the bucket."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.logitspec import (
    DraftTree,
    InputError,
    LlamaKVForCausalLM,
    LogitSpecDrafter,
    decode,
    load,
)
from model.logitspec.cuda_graphs import (
    PATIENCE,
    GraphVerifier,
    StaticStep,
    node_bucket,
    power_of_two,
    slot_bucket,
    use_graphs,
)
from model.logitspec.kv_cache import MOST_IDLE, CachePool
from model.logitspec.prefill import prefill
from model.logitspec.sampling import greedy
from model.logitspec.verification import EagerVerifier, Verifier, find_verifier, verify

from .test_decoding import Oracle
from .test_kernels import IDS
from .test_modeling import prefilled, random_tree, tree_logits


@pytest.fixture
def static(tiny: LlamaKVForCausalLM) -> Iterator[LlamaKVForCausalLM]:
    """The tiny model, its steps at padded shapes; without a GPU nothing is captured."""
    tiny.graphs = True
    yield tiny
    tiny.graphs = False


def check_same_verdict(one: Verifier, other: Verifier, tree: DraftTree) -> None:
    verdicts = []
    for step in (one, other):
        step.build(tree)
        step.forward()
        verdicts.append(step.accept())
    assert verdicts[0] == verdicts[1]


@pytest.mark.parametrize(("top_k", "node_top_k"), [(0, 0), (5, 3), (200, 0)])
def test_padded_verdicts_are_those_of_plain_steps(
    tiny_path: str, top_k: int, node_top_k: int
) -> None:
    rng = random.Random(3)
    models = [load(tiny_path, dtype=torch.float64) for _ in range(2)]
    prompt = [rng.randrange(97) for _ in range(240)]
    caches = [model.new_cache(512) for model in models]
    for model, cache in zip(models, caches, strict=True):
        prefill(model, prompt, cache, top_k=0)
    plain = EagerVerifier(models[0], caches[0], top_k, node_top_k, greedy())
    padded = GraphVerifier(models[1], caches[1], top_k, node_top_k, greedy())
    for size in (1, 2, 3, 17, 64, 70, 5, 1):  # across 256 slots, and back to smaller buckets
        tree = random_tree(rng, 97, size)
        check_same_verdict(plain, padded, tree)
        kept = sorted(rng.sample(range(size), min(size, 3)))
        for cache in caches:
            cache.keep(kept)
    assert caches[1].length > 250


def test_a_larger_step_serves_until_one_of_the_size_pays(tiny_path: str) -> None:
    """One step is made for a context, and one of a tree's own size when that was asked for often;
    verdicts are the same."""
    rng = random.Random(4)
    models = [load(tiny_path, dtype=torch.float64) for _ in range(2)]
    prompt = [rng.randrange(97) for _ in range(200)]
    caches = [model.new_cache(512) for model in models]
    for model, cache in zip(models, caches, strict=True):
        prefill(model, prompt, cache, top_k=0)
    plain = EagerVerifier(models[0], caches[0], 3, 2, greedy())
    padded = GraphVerifier(models[1], caches[1], 3, 2, greedy())
    padded.largest = 30

    def verified(size: int) -> None:
        tree = random_tree(rng, 97, size)
        check_same_verdict(plain, padded, tree)

    used = []
    with mock.patch("model.logitspec.cuda_graphs.StaticStep", wraps=StaticStep) as made:
        for size in (2, 30, 5, *[7] * (PATIENCE - 1), 1, 7, 7, 2):
            verified(size)
            used.append(padded.nodes)
        assert used == [32] * (PATIENCE + 3) + [8, 8, 8]
        assert [call.args[2:4] for call in made.call_args_list] == [(32, 256), (8, 256)]
        for _ in range(2):  # past 256 slots
            verified(30)
            for cache in caches:
                cache.keep(range(30))
        for size in (7, 30, 70):
            verified(size)
        assert [call.args[2:4] for call in made.call_args_list[2:]] == [(32, 512), (96, 512)]


def test_a_step_larger_than_any_tree_to_come_does_not_serve(tiny_path: str) -> None:
    """Another drafter's may not fit a cache that is for this one."""
    model = load(tiny_path, dtype=torch.float64)
    cache = model.new_cache(256)
    prefill(model, [5] * 200, cache, top_k=0)
    verifier = GraphVerifier(model, cache, 1, 0, greedy())
    for largest, length, nodes in ((48, 200, 48), (4, 230, 4)):
        cache.length = length
        verifier.largest = largest
        verifier.build(DraftTree(5, 3))
        assert verifier.nodes == nodes


def test_padded_drafts_are_accepted(static: LlamaKVForCausalLM) -> None:
    """Whole generations: chains of the model's own next tokens, and LogitSpec's trees."""
    prompt = [5, 6, 7, 8, 9, 10] * 5
    static.graphs = False
    plain = decode(static, prompt, LogitSpecDrafter(), max_new_tokens=60)
    static.graphs = True
    padded = decode(static, prompt, LogitSpecDrafter(), max_new_tokens=60)
    assert padded.tokens == plain.tokens
    assert padded.accept_lengths == plain.accept_lengths
    assert padded.next_next_ranks == plain.next_next_ranks
    chained = decode(static, prompt, Oracle(plain.tokens, 4), max_new_tokens=60)
    assert chained.tokens == plain.tokens
    assert chained.accept_lengths == [5] * 12


def test_a_step_kept_by_a_generation_serves_outside_of_inference_mode(
    static: LlamaKVForCausalLM,
) -> None:
    decode(static, [5, 6, 7], LogitSpecDrafter(), max_new_tokens=5)
    drafter = LogitSpecDrafter()
    with static.cache(1) as cache:
        pass
    tree = DraftTree(5, 1)
    again = verify(static, tree, cache, drafter.top_k)
    assert cache.graphs
    static.graphs = False
    assert again == verify(static, tree, cache, drafter.top_k)


def test_a_position_that_the_model_lacks_is_refused(static: LlamaKVForCausalLM) -> None:
    cache = static.new_cache(static.max_positions + 64)
    cache.length = static.max_positions
    with pytest.raises(InputError, match="position 512 is past the model's 512 positions"):
        find_verifier(static, cache, 0).build(DraftTree(5, 1))


def test_steps_are_kept_with_the_cache(static: LlamaKVForCausalLM) -> None:
    static.caches = CachePool()  # other tests may have left some
    with static.cache(100) as cache:
        first = find_verifier(static, cache, 2)
    with static.cache(90) as cache:
        assert find_verifier(static, cache, 2) is first
        assert find_verifier(static, cache, 3) is not first
    with static.cache(cache.capacity + 1) as cache:
        assert find_verifier(static, cache, 2) is not first


def test_the_rotary_table_stays_where_graphs_read_it(static: LlamaKVForCausalLM) -> None:
    decode(static, [5, 6, 7], LogitSpecDrafter(), max_new_tokens=5)
    before = static.rope(10 * static.max_positions, static.device)
    assert before.shape[0] == static.max_positions
    again = static.rope(10 * static.max_positions, static.device)
    assert again.data_ptr() == before.data_ptr()


def test_a_cache_that_is_replaced_is_freed(static: LlamaKVForCausalLM) -> None:
    static.caches = CachePool()  # other tests may have left larger ones
    with static.cache(100) as cache:
        find_verifier(static, cache, 2)
    gone = weakref.ref(cache)
    capacity = cache.capacity
    gc.disable()  # as a GPU's memory would have to wait for the collector
    try:
        del cache
        with static.cache(capacity + 1) as larger:
            assert gone() is None
            find_verifier(static, larger, 2)
            gone = weakref.ref(larger)
            del larger
        with ExitStack() as stack:  # those that are too many when they are given back
            for more in range(1, MOST_IDLE + 1):
                stack.enter_context(static.cache(2 * capacity + more))
        assert gone() is None
    finally:
        gc.enable()


def test_a_padded_tree_that_does_not_fit_is_refused(static: LlamaKVForCausalLM) -> None:
    cache = static.new_cache(100)
    step = find_verifier(static, cache, 0)
    cache.length = cache.capacity - 20
    with pytest.raises(InputError, match="24 more tokens after"):
        step.build(random_tree(random.Random(1), 97, 20))


@given(st.integers(1, 5000))
def test_node_buckets(nodes: int) -> None:
    size = node_bucket(nodes)
    assert nodes <= size < nodes + 64
    assert node_bucket(size) == size


@given(st.integers(1, 200_000))
def test_slot_buckets(slots: int) -> None:
    size = slot_bucket(slots)
    assert slots <= size <= max(256, 1.5 * slots)
    assert slot_bucket(size) == size
    whole = power_of_two(slots)
    assert size <= whole <= max(256, 2 * slots)
    assert whole & (whole - 1) == 0
    assert slot_bucket(whole) == whole


def test_graphs_are_for_one_gpu(tiny: LlamaKVForCausalLM) -> None:
    use_graphs(tiny, "auto")
    assert not tiny.graphs
    with pytest.raises(InputError, match="need the whole model on one GPU, it is on cpu"):
        use_graphs(tiny, "on")
    with pytest.raises(InputError, match="CUDA graphs 'yes' are not known; give auto, on or off"):
        use_graphs(tiny, "yes")


@pytest.mark.parametrize(("top_k", "node_top_k"), [(0, 0), (5, 0), (0, 3), (200, 200)])
def test_native_verdicts_are_those_of_plain_kernels(
    wide_path: str, top_k: int, node_top_k: int
) -> None:
    rng = random.Random(2)
    models = [
        load(wide_path, dtype=torch.float32, cpu_kernels=name) for name in ("native", "plain")
    ]
    caches = [prefilled(model, IDS)[0] for model in models]
    for size in (1, 9, 64):
        tree = random_tree(rng, 97, size)
        found, expected = (
            verify(model, tree, cache, top_k, node_top_k)
            for model, cache in zip(models, caches, strict=True)
        )
        assert (found.path, found.next_root) == (expected.path, expected.next_root)
        logits = tree_logits(models[1], caches[1], tree)
        check_best_tokens(logits[expected.path[-1:]], [found.top_ids], [expected.top_ids])
        check_best_tokens(logits, found.node_top_ids, expected.node_top_ids)


def check_best_tokens(
    logits: torch.Tensor, found: list[list[int]], expected: list[list[int]]
) -> None:
    """The same tokens in the same order; two that are as good as equal may change places."""
    assert [len(ids) for ids in found] == [len(ids) for ids in expected]
    for row, ids, expected_ids in zip(logits, found, expected, strict=False):
        largest = row.abs().max().item()
        torch.testing.assert_close(row[ids], row[expected_ids], atol=1e-5 * largest, rtol=0)
