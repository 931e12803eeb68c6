"""Fixtures: the real default model, small random checkpoints, question sets of a test's own."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data import datastore
from data.prepare import DEFAULT_MODEL, GGUF, ROOT, is_whole
from model.logitspec import DRAFTERS, Drafter, LlamaKVForCausalLM, load

# The same examples every time, but in `sh test.sh full`, which looks for new ones.
settings.register_profile("same", derandomize=True)
if not os.environ.get("FULL"):
    settings.load_profile("same")

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.6,  # far from uniform logits, so that argmax is never a close call
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = TINY | {"hidden_size": 128, "head_dim": 64, "intermediate_size": 96}  # for native layers


REAL = {"default_model", "default_model_path", "default_tokenizer", "default_gguf", "either_model"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what asks for the real model by its fixtures: `sh test.sh fast` leaves it out."""
    for item in items:
        asked = inspect.signature(item.function).parameters if hasattr(item, "function") else ()
        if REAL & set(asked):
            item.add_marker("real")


@pytest.fixture(scope="session", autouse=True)
def own_measurements(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured and parsed is stored for all processes of this run, not in the user's cache
    folder; recorders measure for a moment only."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # a process's folder is one of the run's
        folder = folder.parent
    folder /= "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.logitspec.storage.cache_folder", lambda: folder)
        patch.setattr("evaluation.recordings.costs.METER_SECONDS", 0.05)
        yield


@pytest.fixture(scope="session")
def default_model_path() -> str:
    if not is_whole(DEFAULT_MODEL):
        pytest.fail("the default model is not prepared: python -m data.prepare default-model")
    return str(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def default_model(default_model_path: str) -> LlamaKVForCausalLM:
    """The real default model in float32."""
    return load(default_model_path, dtype=torch.float32)


@pytest.fixture(scope="session")
def default_gguf(default_model_path: str) -> str:
    """The file that the default model was dequantized from."""
    return str(Path(default_model_path) / GGUF)


@pytest.fixture(scope="session", params=["dequantized", "gguf"])
def either_model(request: pytest.FixtureRequest) -> LlamaKVForCausalLM:
    """The real default model in float32: dequantized, and over its GGUF file's blocks."""
    if request.param == "dequantized":
        return request.getfixturevalue("default_model")  # type: ignore[no-any-return]
    return load(request.getfixturevalue("default_gguf"), dtype=torch.float32)


@pytest.fixture(scope="session")
def default_tokenizer(default_model_path: str) -> Any:
    return AutoTokenizer.from_pretrained(default_model_path)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random Llama without a tokenizer, vocabulary 97."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "tiny-llama", LlamaConfig(**TINY))


@pytest.fixture(scope="session")
def tiny(tiny_path: str) -> LlamaKVForCausalLM:
    return load(tiny_path, dtype=torch.float64)


@pytest.fixture(scope="session")
def wide_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random Llama of a shape that all kernels take."""
    config = LlamaConfig(**WIDE | {"initializer_range": 0.3})  # wider layers: the same spread
    return save_tiny(tmp_path_factory.mktemp("wide") / "wide-llama", config)


@pytest.fixture(scope="session")
def chat_path(tmp_path_factory: pytest.TempPathFactory, default_tokenizer: Any) -> str:
    """A small random Llama with the default model's tokenizer and chat template.

    Of a shape that the native layers know: over 49,152 tokens plain kernels take several times as
    long. It repeats itself now and then: its methods commit two to four tokens a forward.
    """
    shape = {"hidden_size": 64, "head_dim": 64, "intermediate_size": 96, "initializer_range": 0.12}
    config = LlamaConfig(**TINY | shape | {"vocab_size": len(default_tokenizer)})
    path = save_tiny(tmp_path_factory.mktemp("chat") / "tiny-chat", config, sharper=5)
    default_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def chat_store(chat_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A datastore of the quick questions, for the tokenizer of `chat_path`."""
    pytest.importorskip("pydivsufsort")
    store = tmp_path_factory.mktemp("store") / "quick.store"
    questions = ROOT / "data" / "quick" / "question.jsonl"
    argv = [str(questions), "--output", str(store), "--model-path", chat_path]
    assert datastore.main(argv) == 0
    return str(store)


STORES = tempfile.TemporaryDirectory()


@cache
def small_store() -> str:
    """A datastore of tokens below 10."""
    path = Path(STORES.name, "small.store")
    chance = np.random.default_rng(0)
    walks = [chance.integers(0, 6, 300), np.tile(np.arange(10), 9)]
    datastore.write_datastore(path, [walk.astype(np.int32) for walk in walks], "a tokenizer")
    return str(path)


PACKAGES = {"suffix": "arctic_inference", "rest": "pydivsufsort"}  # of methods that need one


def new_drafter(name: str, **options: Any) -> Drafter:
    """A drafter by name, `rest` with the small datastore; skips if its package is missing."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    store = {"datastore": small_store()} if name == "rest" else {}
    return DRAFTERS[name](**store, **options)


def save_tiny(path: Path, config: Any, cls: Any = LlamaForCausalLM, *, sharper: float = 1) -> str:
    """A random model, saved; its logits are so many times as far apart."""
    torch.manual_seed(0)
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases begin as zeros, norms as ones: no test would see them
                parameter += 0.3 * torch.randn_like(parameter)
        model.lm_head.weight *= sharper
    model.save_pretrained(path)
    return str(path)


@pytest.fixture
def make_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """make_bench(*questions): the folder of a benchmark `mine`; strings are lines verbatim."""
    monkeypatch.setattr("evaluation.asking.questions.ROOT", tmp_path)

    def make(*questions: Any) -> Path:
        folder = tmp_path / "data" / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [q if isinstance(q, str) else json.dumps(q) for q in questions]
        (folder / "question.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return folder

    return make


def question(question_id: int, *turns: str, category: str = "qa") -> dict[str, Any]:
    return {"question_id": question_id, "category": category, "turns": list(turns) or ["Hello?"]}
