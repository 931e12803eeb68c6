"""A prompt that begins as an earlier generation did: what is read again; nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.logitspec import (
    CalibratedDrafter,
    DecodingResult,
    InputError,
    KVCache,
    LlamaKVForCausalLM,
    RacerDrafter,
    generate,
    generate_samples,
)
from model.logitspec.kv_cache import CachePool

PROMPT = [5, 6, 7, 8, 5, 6, 7, 9, 10, 11]


@pytest.fixture
def model(tiny: LlamaKVForCausalLM) -> LlamaKVForCausalLM:
    tiny.caches = CachePool()
    return tiny


def ask(
    model: LlamaKVForCausalLM, ids: list[int], method: Any = "logitspec", **options: Any
) -> DecodingResult:
    return generate(model, ids, method, max_new_tokens=20, eos_token_ids=(), **options)


@pytest.mark.parametrize("method", ["vanilla", "logitspec", "racer", "sam_recycling", "calibrated"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_conversation_is_read_once(
    model: LlamaKVForCausalLM, method: str, temperature: float
) -> None:
    """The second turn begins with the first one's prompt and answer, the third with a part."""
    settings: dict[str, Any] = {"temperature": temperature, "seed": 3}
    first = ask(model, PROMPT, method, **settings)
    second = [*PROMPT, *first.tokens, 3, 4]
    third = [*second[:15], 2, 2]
    wanted = [ask(model, ids, method, **settings) for ids in (second, third)]
    model.caches = CachePool()
    ask(model, PROMPT, method, **settings)
    found = [ask(model, ids, method, **settings, reuse_prefix=True) for ids in (second, third)]
    for result, expected in zip(found, wanted, strict=True):
        assert result.tokens == expected.tokens
        assert result.accept_lengths == expected.accept_lengths
        assert result.prompt_tokens == expected.prompt_tokens
        assert expected.cached_tokens == 0
    # RACER learns from the logits after every prompt token, those of the prompt are kept
    knows = len(PROMPT) if method in ("racer", "sam_recycling") else len(second) - 2
    assert [result.cached_tokens for result in found] == [knows, 15]


def test_the_last_token_of_a_prompt_is_always_read(model: LlamaKVForCausalLM) -> None:
    first = ask(model, PROMPT)
    again = ask(model, PROMPT, reuse_prefix=True)
    assert again.tokens == first.tokens
    assert again.cached_tokens == len(PROMPT) - 1
    shorter = ask(model, PROMPT[:4], reuse_prefix=True)
    assert shorter.cached_tokens == 3
    assert shorter.tokens == ask(model, PROMPT[:4]).tokens
    assert ask(model, PROMPT).cached_tokens == 0  # unless it is asked for


def test_a_larger_cache_takes_over_what_a_smaller_one_holds(model: LlamaKVForCausalLM) -> None:
    ask(model, PROMPT)
    (small,) = model.caches._idle
    with model.cache(small.capacity + 1, [*PROMPT, 1, 2]) as large:
        assert large is not small and large.capacity > small.capacity
        assert large.length == len(PROMPT)
        assert torch.equal(large.store[..., : large.length, :], small.store[..., : large.length, :])
        assert large.ids == small.ids[: large.length]


def test_a_generation_that_fails_leaves_no_wrong_prefix(model: LlamaKVForCausalLM) -> None:
    def fail(_: list[int]) -> None:
        raise RuntimeError("stopped")

    longer = [*PROMPT[:5], 20, 21, 22]
    wanted = ask(model, [*longer, 1])
    ask(model, PROMPT)
    with pytest.raises(RuntimeError, match="stopped"):
        ask(model, longer, on_commit=fail, reuse_prefix=True)
    found = ask(model, [*longer, 1], reuse_prefix=True)
    assert found.cached_tokens == 5  # what both began with
    assert found.tokens == wanted.tokens


@pytest.mark.parametrize(("best", "known"), [(0, 6), (4, 3), (2, 0)])
def test_what_of_a_prompt_a_cache_holds(best: int, known: int) -> None:
    cache = KVCache([torch.device("cpu")], 1, 4, 16, torch.float32)
    cache.ids = [1, 2, 3, 4, 5, 6, 7]
    cache.best = [[1, 2, 3, 4]] * 3
    assert cache.shared([1, 2, 3, 4, 5, 6, 9], best) == known
    assert cache.shared([1, 9, 3], best) == min(1, known)
    assert cache.shared([1], best) == cache.shared([], best) == 0
    assert cache.shared([2, 3, 4], best) == 0


@pytest.mark.parametrize("method", ["logitspec", "calibrated", RacerDrafter()])
def test_samples_are_those_of_their_seeds(model: LlamaKVForCausalLM, method: Any) -> None:
    wanted = [ask(model, PROMPT, temperature=1.0, seed=seed).tokens for seed in (7, 8, 9)]
    found = generate_samples(
        model, PROMPT, method, n=3, seed=7, temperature=1.0, max_new_tokens=20, eos_token_ids=()
    )
    assert [result.tokens for result in found] == wanted
    assert [result.cached_tokens for result in found] == [0, *[len(PROMPT) - 1] * 2]
    more = generate_samples(model, PROMPT, n=1, reuse_prefix=True, max_new_tokens=2)
    assert more[0].cached_tokens == len(PROMPT) - 1


def test_samples_that_make_no_sense(model: LlamaKVForCausalLM) -> None:
    with pytest.raises(InputError, match="n is 0; give 1 or more"):
        generate_samples(model, PROMPT, n=0)
    steps: list[list[int]] = []
    for seed in (2**63 - 1, "x"):
        with pytest.raises(InputError, match="seed is"):
            generate_samples(
                model, PROMPT, CalibratedDrafter(), n=2, seed=seed, temperature=1.0,  # type: ignore[arg-type]
                on_commit=steps.append,
            )  # fmt: skip
    assert not steps  # nothing was computed


def test_a_long_rest_is_read_in_pieces(
    model: LlamaKVForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.logitspec.prefill.PIECE", 3)
    longer = [*PROMPT[:4], *range(20, 45)]
    for method in ("racer", "logitspec"):
        model.caches = CachePool()
        wanted = ask(model, longer, method)
        ask(model, PROMPT, method)
        found = ask(model, longer, method, reuse_prefix=True)
        assert found.cached_tokens == 4
        assert (found.tokens, found.accept_lengths) == (wanted.tokens, wanted.accept_lengths)


def test_a_cache_that_is_too_small_goes_for_half_a_prompt_only(model: LlamaKVForCausalLM) -> None:
    with model.cache(100) as small, model.cache(1000) as large:
        small.length, small.ids = 5, [1, 2, 3, 4, 5]
    with model.cache(900, [1, 2, 3, *range(10, 30)]) as found:
        assert found is large and found.length == 0
    with model.cache(900, [1, 2, 3, 4, 6]) as found:
        assert found not in (small, large) and found.length == 4
