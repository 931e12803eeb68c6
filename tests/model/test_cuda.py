"""On a real GPU: the tokens of the CPU, captured graphs and eager steps alike.

test_cuda_walk.py walks the same path without one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from model.logitspec import DRAFTERS, DraftTree, LlamaKVForCausalLM, decode, generate, load
from model.logitspec.cuda_graphs import GraphVerifier
from model.logitspec.drafters.base import Drafter
from model.logitspec.sampling import Sampling, greedy

from ..conftest import PACKAGES, new_drafter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

PROMPT = [5, 6, 7, 8, 5, 6, 7, 9, 5, 6]
WAYS = {"graphs": "on", "eager": "off"}
METHODS = [
    *((name, {}) for name in DRAFTERS),
    ("calibrated", {"draft_tree_capacity": "auto"}),
    ("logitspec", {"draft_tree_capacity": "auto"}),
]


@pytest.fixture(scope="module", params=WAYS)
def on_gpu(request: pytest.FixtureRequest, tiny_path: str) -> LlamaKVForCausalLM:
    return load(
        tiny_path, dtype=torch.float64, device_map="cuda:0", cuda_graphs=WAYS[request.param]
    )


def tokens(
    model: LlamaKVForCausalLM,
    drafter: Drafter,
    prompt: list[int] = PROMPT,
    count: int = 48,
    sampling: Sampling | None = None,
) -> list[int]:
    chooser = sampling.chooser(prompt[:-1]) if sampling else None
    return decode(model, prompt, drafter, max_new_tokens=count, chooser=chooser).tokens


@pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
def test_tokens_are_those_of_the_cpu(
    tiny: LlamaKVForCausalLM, on_gpu: LlamaKVForCausalLM, name: str, options: dict[str, Any]
) -> None:
    assert on_gpu.device.type == "cuda"
    expected = tokens(tiny, DRAFTERS["vanilla"]())
    assert tokens(on_gpu, new_drafter(name, **options)) == expected


@pytest.mark.parametrize("name", ["vanilla", "logitspec", "racer", "calibrated", "lookahead"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, seed=1),
        Sampling(0.8, top_k=20, top_p=0.9, min_p=0.01, seed=3),
        Sampling(0.8, repetition_penalty=1.2, seed=3),
    ],
    ids=["plain", "filters", "penalty"],
)
def test_samples_are_those_of_the_cpu(
    tiny: LlamaKVForCausalLM, on_gpu: LlamaKVForCausalLM, name: str, sampling: Sampling
) -> None:
    expected = tokens(tiny, DRAFTERS["vanilla"](), sampling=sampling)
    assert tokens(on_gpu, new_drafter(name), sampling=sampling) == expected


def test_contexts_that_outgrow_their_graphs(
    tiny: LlamaKVForCausalLM, on_gpu: LlamaKVForCausalLM
) -> None:
    """Past the shortest context of a graph, and in a cache that was used before."""
    prompt = [5 + i * i % 40 for i in range(230)]
    expected = tokens(tiny, DRAFTERS["vanilla"](), prompt, 200)
    for count in (30, 200):
        assert tokens(on_gpu, new_drafter("calibrated"), prompt, count) == expected[:count]


@pytest.mark.parametrize("name", ["vanilla", "calibrated"])
def test_generations_at_the_same_time(
    tiny: LlamaKVForCausalLM, on_gpu: LlamaKVForCausalLM, name: str
) -> None:
    prompts = [[5 + (i * k) % 40 for i in range(20 + k)] for k in range(6)]
    expected = [tokens(tiny, DRAFTERS["vanilla"](), prompt) for prompt in prompts]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda p: tokens(on_gpu, new_drafter(name), p), prompts))
    assert found == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tiny_path: str, dtype: torch.dtype) -> None:
    """A graph's logits are those of the same operators without it."""
    found = {}
    for way, graphs in WAYS.items():
        model = load(tiny_path, dtype=dtype, device_map="cuda:0", cuda_graphs=graphs)
        assert model.dtype == dtype
        assert model.graphs is (way == "graphs")
        found[way] = tokens(model, DRAFTERS["vanilla"](), count=24)
    assert found["graphs"] == found["eager"]


def counted(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> list[None]:
    calls: list[None] = []
    plain: Callable[..., Any] = getattr(place, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return plain(*args, **kwargs)

    monkeypatch.setattr(place, name, counting)
    return calls


def test_graphs_are_captured_once(tiny_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.logitspec.cuda_graphs.PATIENCE", 10_000)
    model = load(tiny_path, dtype=torch.float32, device_map="cuda:0", cuda_graphs="on")
    captured = counted(monkeypatch, torch.cuda, "CUDAGraph")
    first = tokens(model, DRAFTERS["pld"](), count=200)
    assert captured
    captured.clear()
    assert tokens(model, DRAFTERS["pld"](), count=200) == first
    assert not captured


def test_a_step_waits_once(tiny_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny_path, dtype=torch.float32, device_map="cuda:0", cuda_graphs="on")
    waits: list[None] = []
    plain: Callable[..., None] = torch.cuda.Stream.synchronize

    def waiting(stream: torch.cuda.Stream) -> None:
        waits.append(None)
        torch.cuda.set_sync_debug_mode("default")
        plain(stream)
        torch.cuda.set_sync_debug_mode("error")

    with model.cache(256) as cache:
        verifier = GraphVerifier(model, cache, 4, 0, greedy())
        tree = DraftTree(5, 8)
        verifier.build(tree)
        verifier.forward()
        verifier.accept()
        monkeypatch.setattr(torch.cuda.Stream, "synchronize", waiting)
        torch.cuda.set_sync_debug_mode("error")  # what else waits raises
        try:
            verifier.build(tree)
            verifier.forward()
            verifier.accept()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1


def test_a_model_that_does_not_fit(tiny: LlamaKVForCausalLM, tiny_path: str) -> None:
    """Memory that runs out is torch's own error, and the model goes on afterwards."""
    model = load(tiny_path, dtype=torch.float64, device_map="cuda:0")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        torch.empty(2**44, dtype=torch.uint8, device="cuda:0")
    expected = tokens(tiny, DRAFTERS["vanilla"]())
    assert generate(model, PROMPT, "logitspec", max_new_tokens=48).tokens == expected
    assert "suffix" in PACKAGES  # what new_drafter() may skip
