"""Several generations on one model at a time: threads, and calls from inside callbacks."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from model.logitspec import (
    CalibratedDrafter,
    InputError,
    LlamaKVForCausalLM,
    PromptLookupDrafter,
    custom_generate,
    decode,
    generate,
    load,
    wrap,
)
from model.logitspec.kv_cache import MOST_IDLE
from model.logitspec.sizing import budget, measuring

THREADS = 4
NEW = 40
PROMPTS = [[1, 50 + i, 33 + i, 28, 50 + i, 33 + i] for i in range(THREADS)]
METHODS = ("vanilla", "pld", "logitspec", "calibrated")


@pytest.fixture(params=["plain", "packed", "native", "graphs"])
def model(request: pytest.FixtureRequest, wide_path: str) -> LlamaKVForCausalLM:
    kernels = "plain" if request.param == "graphs" else request.param
    loaded = load(wide_path, dtype=torch.float32, cpu_kernels=kernels)
    loaded.graphs = (
        request.param == "graphs"
    )  # steps at padded shapes; nothing is captured on a CPU
    return loaded


def together(call: Callable[[int], Any]) -> list[Any]:
    """call(0), call(1), … in a thread each, begun at the same moment."""
    barrier = threading.Barrier(THREADS)

    def begin(i: int) -> Any:
        barrier.wait()
        return call(i)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def tokens(model: Any, i: int, method: Any = "pld", **options: Any) -> list[int]:
    found = generate(model, PROMPTS[i], method, max_new_tokens=NEW, eos_token_ids=(), **options)
    assert sum(found.accept_lengths) == len(found.tokens) == NEW
    return found.tokens


@pytest.mark.parametrize("method", METHODS)
def test_threads_give_the_tokens_of_serial_runs(model: LlamaKVForCausalLM, method: str) -> None:
    wanted = [tokens(model, i, "vanilla") for i in range(THREADS)]
    assert len(set(map(tuple, wanted))) == THREADS
    for _ in range(3):
        assert together(lambda i: tokens(model, i, method)) == wanted
    sampled = {"temperature": 0.9, "seed": 3}
    wanted = [tokens(model, i, "vanilla", **sampled) for i in range(THREADS)]
    assert together(lambda i: tokens(model, i, method, **sampled)) == wanted


def test_a_call_inside_of_callbacks(model: LlamaKVForCausalLM) -> None:
    wanted = [tokens(model, i) for i in range(THREADS)]
    inner: list[list[int]] = []

    def deeper(_: object) -> None:
        if len(inner) < 3:
            inner.append(tokens(model, 2))

    def inside(_: object) -> None:
        if len(inner) < 4:
            inner.append(tokens(model, 1, on_step=deeper))

    class Streamer(BaseStreamer):  # type: ignore[misc]
        def put(self, value: torch.Tensor) -> None:
            inside(value)

        def end(self) -> None:
            inside(None)

    assert tokens(model, 0, on_commit=inside) == wanted[0]
    assert len(inner) == 4
    assert all(found in (wanted[1], wanted[2]) for found in inner)
    inner.clear()
    assert tokens(model, 0, streamer=Streamer()) == wanted[0]
    assert wanted[1] in inner and wanted[2] in inner


def test_the_memory_of_caches_is_bounded(model: LlamaKVForCausalLM) -> None:
    together(lambda i: tokens(model, i))
    with model.cache(1) as one:
        held = model.caches.nbytes + one.nbytes
    assert held <= MOST_IDLE * one.nbytes

    def broken(_: object) -> None:
        raise RuntimeError("of the user's")

    for _ in range(3 * MOST_IDLE):
        with pytest.raises(RuntimeError, match="of the user's"):
            tokens(model, 0, on_commit=broken)
    assert model.caches.nbytes == held  # a call that fails gives its cache back


@pytest.mark.parametrize("kernels", ["plain", "packed", "native"])
def test_models_of_transformers(wide_path: str, kernels: str) -> None:
    """All threads wrap the model at once, and run custom_generate and generate on it."""
    theirs = AutoModelForCausalLM.from_pretrained(wide_path, dtype=torch.float32)
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}

    def plain(i: int, **more: Any) -> list[int]:
        ids = torch.tensor([PROMPTS[i]])
        found = theirs.generate(ids, **options, **more)
        return list(found[0, len(PROMPTS[i]) :].tolist())

    wanted = [plain(i) for i in range(THREADS)]
    together(lambda _: wrap(theirs, cpu_kernels=kernels))
    found = together(lambda i: plain(i, custom_generate=custom_generate, method=METHODS[i]))
    assert found == wanted
    assert together(lambda i: tokens(theirs, i)) == wanted
    assert len(set(map(id, together(lambda _: wrap(theirs))))) == 1
    inner: list[list[int]] = []

    class Streamer(BaseStreamer):  # type: ignore[misc]
        def put(self, value: torch.Tensor) -> None:
            inner.append(plain(1, custom_generate=custom_generate, method="logitspec"))

        def end(self) -> None:
            inner.append(plain(2))

    found = [plain(0, custom_generate=custom_generate, method="pld", streamer=Streamer())]
    assert found == wanted[:1]
    assert inner[-1] == wanted[2] and all(tokens == wanted[1] for tokens in inner[:-1])


def test_a_drafter_serves_one_generation_at_a_time(wide_path: str, tmp_path: Path) -> None:
    model = load(wide_path, dtype=torch.float32)
    for drafter in (PromptLookupDrafter(), CalibratedDrafter()):
        wanted = tokens(model, 0, drafter)

        def again(_: object, drafter: Any = drafter) -> None:
            tokens(model, 1, drafter)

        complaint = f"this {type(drafter).__name__} is drafting for another generation; give each"
        with pytest.raises(InputError, match=complaint):
            tokens(model, 0, drafter, on_commit=again)
        assert tokens(model, 0, drafter) == wanted  # it is free again


def test_threads_learn_into_one_step_cost(wide_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them measures, and no step is lost."""
    model = load(wide_path, dtype=torch.float32)
    begin = measuring.begin
    begun: list[object] = []

    def slowly(*args: Any) -> Any:
        begun.append(args)
        time.sleep(0.05)
        return begin(*args)

    monkeypatch.setattr(measuring, "begin", slowly)
    monkeypatch.setattr(budget, "LOSS", math.inf)  # no rests, which are not learnt from

    def decoded(i: int) -> int:
        drafter = CalibratedDrafter(draft_tree_capacity="auto")
        return decode(model, PROMPTS[i], drafter, max_new_tokens=24).steps

    steps = sum(together(decoded))
    cost = measuring.known_cost(model, 24, 8)
    assert len(begun) == 1 and cost is not None
    assert cost.steps == steps


def test_longer_prompts_meanwhile_leave_the_rotary_table_long_enough(wide_path: str) -> None:
    """A short generation may not put a short table under a long one."""
    model = load(wide_path, dtype=torch.float32, cpu_kernels="plain")
    model.config.max_position_embeddings = 8192
    prompts = [[3 + i % 90 for i in range(length)] for length in (1500, 5, 700, 5)]
    wanted = [generate(model, p, "pld", max_new_tokens=5, eos_token_ids=()).tokens for p in prompts]
    for _ in range(5):
        model._rope = torch.empty(0)
        found = together(
            lambda i: generate(model, prompts[i], "pld", max_new_tokens=5, eos_token_ids=()).tokens
        )
        assert found == wanted
