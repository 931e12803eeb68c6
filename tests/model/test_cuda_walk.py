"""The CUDA path without a GPU: every method walked on tensors that say they lie on one.

docs/performance.md says what this shows, and what it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from model.logitspec import (
    DRAFTERS,
    InputError,
    LlamaKVForCausalLM,
    decode,
    generate,
    load,
    wrap,
)
from model.logitspec.cuda_graphs import GraphVerifier
from model.logitspec.sampling import Sampling
from model.logitspec.sizing.measuring import MeasuredModel
from model.logitspec.verification import EagerVerifier
from model.logitspec.vocabulary import rows_after

from ..conftest import PACKAGES, new_drafter
from .fake_cuda import FakeGPU, HiddenWait, NotCaptured, fake_cuda, register_guard

PROMPT = [5, 6, 7, 8, 5, 6, 7, 9, 5, 6]
SPLIT = {
    "model.embed_tokens": "cuda:0", "model.layers.0": "cuda:0", "model.layers.1": "cuda:1",
    "model.layers.2": "cuda:1", "model.norm": "cuda:1", "lm_head": "cuda:1",
}  # fmt: skip
WAYS = ["eager", "graphs", "two devices"]


@pytest.fixture(scope="module", autouse=True)
def guard(tmp_path_factory: pytest.TempPathFactory) -> None:
    register_guard(tmp_path_factory.mktemp("guard"))


@contextmanager
def loaded(path: str, way: str) -> Iterator[tuple[FakeGPU, LlamaKVForCausalLM]]:
    options: dict[str, Any] = {"device": "cuda:0", "cuda_graphs": "off"}
    if way == "graphs":
        options["cuda_graphs"] = "on"
    elif way == "two devices":
        options["device_map"] = SPLIT
    with fake_cuda() as gpu:
        yield gpu, load(path, **options)


@contextmanager
def noted(gpu: FakeGPU) -> Iterator[list[tuple[int, int]]]:
    """Of each step its transfers and its uploads that wait."""
    steps: list[tuple[int, int]] = []

    def noting(cls: Any) -> Any:
        build, accept = cls.build, cls.accept

        def begin(self: Any, tree: Any) -> None:
            gpu.tree = tree
            steps.append((-gpu.transfers, -gpu.watch.waiting_uploads))
            build(self, tree)

        def end(self: Any) -> Any:
            verdict = accept(self)
            before = steps.pop()
            steps.append((before[0] + gpu.transfers, before[1] + gpu.watch.waiting_uploads))
            gpu.tree = None
            return verdict

        return mock.patch.multiple(cls, build=begin, accept=end)

    with noting(EagerVerifier), noting(GraphVerifier):
        yield steps


def methods() -> list[Any]:
    found = []
    for name in DRAFTERS:
        missing = name in PACKAGES and find_spec(PACKAGES[name]) is None
        marks = pytest.mark.skipif(missing, reason="its package is not installed")
        found.append(pytest.param(name, {}, marks=marks, id=name))
    for name in ("calibrated", "logitspec"):
        found.append(pytest.param(name, {"draft_tree_capacity": "auto"}, id=f"{name}@auto"))
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "options"), methods())
def test_every_method(tiny_path: str, way: str, name: str, options: dict[str, Any]) -> None:
    with loaded(tiny_path, way) as (gpu, model):
        assert model.dtype == torch.bfloat16
        assert model.kernels.name == "plain"
        assert model.graphs is (way == "graphs")
        drafter = new_drafter(name, **options)
        with noted(gpu):
            drafter.prepare(MeasuredModel(model))  # step costs are measured before the steps
        replays = NotCaptured.replays
        with noted(gpu) as steps:
            result = decode(model, PROMPT, drafter, max_new_tokens=24)
        captured = NotCaptured.replays - replays
        assert captured >= result.steps if way == "graphs" else captured == 0
        assert len(result.tokens) == 24
        assert len(steps) == result.steps
        assert set(steps) == {(1, 0)}  # one transfer down, and nothing up that waits
        if name not in ("vanilla", "lookahead", "suffix") and not options:
            assert max(result.accept_lengths) > 1  # drafts are accepted, and the cache moves


@pytest.mark.parametrize("way", WAYS)
def test_sampling(tiny_path: str, way: str) -> None:
    sampling = Sampling(0.8, top_k=20, top_p=0.9, min_p=0.01, seed=3)
    with loaded(tiny_path, way) as (gpu, model), noted(gpu) as steps:
        decode(
            model, PROMPT, DRAFTERS["logitspec"](), max_new_tokens=16,
            chooser=sampling.chooser(PROMPT[:-1]),
        )  # fmt: skip
    assert set(steps) == {(1, 0)}


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_a_vocabulary(tiny_path: str, way: str) -> None:
    with loaded(tiny_path, way) as (_, model):
        found = list(rows_after(model, [[5], [6, 7]], range(20), 4, Sampling(0.7), nodes=8))
    assert [token for token, _ in found] == [*range(20)]


@pytest.mark.parametrize("way", WAYS)
def test_penalties_read_a_token_for_each_node_reached(tiny_path: str, way: str) -> None:
    """They look at the tokens before: the next one is asked for when the last one is known."""
    sampling = Sampling(0.8, repetition_penalty=1.2, seed=3)
    with loaded(tiny_path, way) as (gpu, model), noted(gpu) as steps:
        result = decode(
            model, PROMPT, DRAFTERS["pld"](), max_new_tokens=12,
            chooser=sampling.chooser(PROMPT[:-1]),
        )  # fmt: skip
    reached = [transfers for transfers, _ in steps]
    assert all(n >= length for n, length in zip(reached, result.accept_lengths, strict=True))
    assert {uploads for _, uploads in steps} == {0}


@pytest.mark.parametrize("way", ["eager", "two devices"])
def test_a_model_of_transformers(tiny_path: str, way: str) -> None:
    """The samples of its weights, by which wrap() knows it again, come down at once."""
    with fake_cuda() as gpu:
        gpu.step = 0  # the weights do not change
        place: Any = SPLIT | {"model.rotary_emb": "cuda:0"} if way == "two devices" else "cuda:0"
        theirs = AutoModelForCausalLM.from_pretrained(
            tiny_path, dtype=torch.float16, device_map=place
        )
        ours = wrap(theirs, cuda_graphs="off")
        before = gpu.transfers
        assert wrap(theirs) is ours
        assert gpu.transfers - before == len(set(ours.layer_devices))
        gpu.step = 1
        with noted(gpu) as steps:
            generate(ours, PROMPT, "logitspec", max_new_tokens=12)
        assert set(steps) == {(1, 0)}


def test_graphs_over_two_devices_are_refused(tiny_path: str) -> None:
    with (
        fake_cuda(),
        pytest.raises(InputError, match="the whole model on one GPU, it is on cuda"),
    ):
        load(tiny_path, device_map=SPLIT, cuda_graphs="on")


# That the walk notices what it is for -------------------------------------------------------------


def test_what_the_fake_gpu_notices() -> None:
    with fake_cuda() as gpu:
        x = torch.zeros(4, 8, device="cuda:0")
        index = torch.zeros(2, dtype=torch.int64)
        for wrong, error in (
            (lambda: x[index], HiddenWait),
            (lambda: x.index_put_((index,), torch.ones((), device="cuda:0")), HiddenWait),
            (lambda: x.cpu(), HiddenWait),
            (lambda: x.to("cpu", non_blocking=True), HiddenWait),
            (lambda: torch.zeros(4, 8).copy_(x), HiddenWait),
            (lambda: x[0, 0].item(), Exception),
            (lambda: bool((x > 0).all()), Exception),
            (lambda: x.nonzero(), Exception),
            (lambda: x + torch.zeros(4, 8, device="cuda:1"), Exception),
            (lambda: x + torch.zeros(4, 8), Exception),
        ):
            with pytest.raises(error):
                wrong()
        assert gpu.watch.waiting_uploads == 0
        x[index.to("cuda:0", non_blocking=True)]
        assert gpu.watch.waiting_uploads == 0
        x.copy_(torch.zeros(4, 8))
        torch.tensor([1, 2], device="cuda:0")
        assert gpu.watch.waiting_uploads == 2
        assert gpu.transfers == 0
        assert len(x.tolist()) == 4
        assert gpu.transfers == 1
