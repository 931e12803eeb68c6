"""Fixtures of several files: a server that answers, a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from evaluation import inference_baseline, inference_logitspec
from evaluation.chatting.chat import Chat
from evaluation.chatting.server import make_app
from evaluation.record import main as record

from ..conftest import question
from .serving import make_chat, serving

Make = Callable[..., Path]
SCRIPTS = {"baseline": inference_baseline, "logitspec": inference_logitspec}

QUESTIONS = (
    question(1, "Who is it?", "Why is it?"),
    question(2, "Say a b a b a b.", category="math_reasoning"),
    question(3, "Count: 1 2 3 1 2 3."),
)


@pytest.fixture(scope="module")
def chat(chat_path: str) -> Iterator[Chat]:
    chat = make_chat(chat_path)
    yield chat
    chat.close()


@pytest.fixture(scope="module")
def address(chat: Chat) -> Iterator[str]:
    with serving(make_app(chat, "tiny", 400)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture
def recorded(chat_path: str, make_bench: Make, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """recorded(*flags): exit status and folder of a recording of the benchmark `mine`."""

    def call(*flags: str, folder: str = "recording") -> tuple[int, Path]:
        make_bench(*QUESTIONS)
        argv = ["--model-path", chat_path, "--bench-name", "mine", "--dtype", "float32"]
        argv += ["--device", "cpu", "--max-new-tokens", "24"]
        return record([*argv, "--output", str(tmp_path / folder), *flags]), tmp_path / folder

    return call


@pytest.fixture
def inference(chat_path: str) -> Callable[..., int]:
    """inference(script, *flags): its exit status, on benchmark `mine` with a short generation."""

    def call(script: str, *flags: str, model: str = chat_path) -> int:
        argv = ["--model-path", model, "--model-id", script, "--bench-name", "mine"]
        argv += ["--max-new-tokens", "12", "--dtype", "float32", "--device", "cpu"]
        try:
            return SCRIPTS[script].main([*argv, "--warmup", "0", *flags])
        except SystemExit as exit_:
            return int(exit_.code or 0)

    return call
