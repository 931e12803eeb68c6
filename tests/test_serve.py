"""The server, asked by OpenAI's own client and by others that do not keep to the rules."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from tokenizers import Tokenizer, decoders, models

from evaluation.asking.settings import TargetSettings
from evaluation.chatting.chat import Chat, Job, Stopping, Text
from evaluation.chatting.server import make_app
from evaluation.chatting.web import LARGEST_BODY
from evaluation.serve import main
from model.logitspec import Sampling, VanillaDrafter, decode

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_chat(path: str, method: str = "logitspec@8", **changed: Any) -> Chat:
    settings = TargetSettings(path, device="cpu", dtype="float32")
    return Chat(replace(settings, **changed), method, waiting=2)


@pytest.fixture(scope="module")
def chat(chat_path: str) -> Iterator[Chat]:
    chat = make_chat(chat_path)
    yield chat
    chat.close()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of an application that runs in a thread."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def address(chat: Chat) -> Iterator[str]:
    with serving(make_app(chat, "tiny", 400)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


HELLO: list[Any] = [{"role": "user", "content": "Hello?"}]


def expected(chat: Chat, ids: list[int], tokens: int) -> tuple[str, list[int]]:
    result = decode(
        chat.model, ids, VanillaDrafter(), max_new_tokens=tokens,
        eos_token_ids=chat.target.eos_token_ids,
    )  # fmt: skip
    return chat.target.tokenizer.decode(result.tokens, skip_special_tokens=True), result.tokens


def test_a_chat_is_the_targets_own_answer(client: openai.OpenAI, chat: Chat) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    ids = chat.prompt(messages)
    text, tokens = expected(chat, ids, 20)
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=20, temperature=0
    )
    assert answer.choices[0].message.content == text
    assert answer.choices[0].finish_reason in ("length", "stop")
    usage = answer.usage
    assert usage is not None and usage.completion_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids), len(tokens))
    details = usage.completion_tokens_details
    speculation = usage.model_extra["speculation"]  # type: ignore[index]
    assert details.accepted_prediction_tokens == len(tokens) - speculation["steps"]
    assert sum(speculation["accept_lengths"]) == len(tokens)
    assert speculation["mean_accepted_tokens"] == pytest.approx(
        len(tokens) / speculation["steps"], abs=1e-4
    )


def test_a_stream_is_the_same_in_pieces(client: openai.OpenAI, chat: Chat) -> None:
    text, tokens = expected(chat, chat.prompt(HELLO), 30)
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_completion_tokens=30, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == text and sum(map(bool, pieces)) > 2
    assert chunks[-2].choices[0].finish_reason in ("length", "stop")
    assert all("usage" in chunk.model_fields_set for chunk in chunks)  # null but in the last
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == len(tokens)


def test_a_completion_takes_text_or_ids(client: openai.OpenAI, chat: Chat) -> None:
    ids = chat.target.tokenizer("Once upon a time").input_ids
    text, _ = expected(chat, ids, 12)
    for prompt in ("Once upon a time", ids, ["Once upon a time"], [ids]):
        answer = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=12, temperature=0
        )
        assert answer.choices[0].text == text
    pieces = client.completions.create(
        model="tiny", prompt=ids, max_tokens=12, temperature=0, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces) == text


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI, chat: Chat) -> None:
    text, _ = expected(chat, chat.prompt(HELLO), 30)
    stop = text[len(text) // 2 : len(text) // 2 + 4]
    for stream in (False, True):
        answer: Any = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=30, temperature=0, stop=["\0never", stop],
            stream=stream,
        )  # fmt: skip
        if stream:
            chunks = list(answer)
            got = "".join(c.choices[0].delta.content or "" for c in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            got, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert (got, reason) == (text[: text.index(stop)], "stop")


def test_seeds_decide(client: openai.OpenAI) -> None:
    def ask(seed: int | None) -> str:
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=12, temperature=1.5, top_p=0.9, seed=seed
        )
        return answer.choices[0].message.content or ""

    assert ask(1) == ask(1)
    assert len({ask(None) for _ in range(4)}) > 1


def test_top_p_0_is_the_best_token(client: openai.OpenAI, chat: Chat) -> None:
    text, _ = expected(chat, chat.prompt(HELLO), 12)
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=1.5, top_p=0
    )
    assert answer.choices[0].message.content == text


def test_a_stream_without_obfuscation_is_a_stream(client: openai.OpenAI, chat: Chat) -> None:
    text, _ = expected(chat, chat.prompt(HELLO), 12)
    options: Any = {"include_obfuscation": False, "include_usage": None}
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=0, stream=True,
        stream_options=options,
    )  # fmt: skip
    assert "".join(c.choices[0].delta.content or "" for c in stream) == text


def test_a_developer_is_the_system(client: openai.OpenAI, chat: Chat) -> None:
    text, _ = expected(chat, chat.prompt([{"role": "system", "content": "Be brief."}, *HELLO]), 12)
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "developer", "content": "Be brief."}, *HELLO],
        max_tokens=12, temperature=0,
    )  # fmt: skip
    assert answer.choices[0].message.content == text


def test_what_a_template_leaves_out_is_refused(chat_path: str, tmp_path: Path) -> None:
    """One that knows users and assistants only, as Qwen's drops the roles it does not know."""
    place = tmp_path / "tiny"
    shutil.copytree(chat_path, place)
    (place / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
        "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endif %}{% endfor %}"
    )
    chat = make_chat(str(place))
    try:
        with serving(make_app(chat, "tiny", 400)) as address:
            system = {"role": "system", "content": "Be brief."}
            asked = {"model": "tiny", "max_tokens": 2}
            answer = httpx.post(address + CHAT, json=asked | {"messages": [*HELLO, system]})
            assert answer.status_code == 400
            assert answer.json()["error"]["message"] == (
                "the tokenizer's chat template leaves out message 2, of the role system; leave it "
                "out yourself, or put it into another one"
            )
            spaces = {"role": "user", "content": "  Hello?\n"}
            answer = httpx.post(address + CHAT, json=asked | {"messages": [spaces]})
            assert answer.status_code == 200
    finally:
        chat.close()


def test_system_messages_in_a_fastchat_template(chat_path: str) -> None:
    chat = make_chat(chat_path, conv_template="vicuna_v1.1")
    try:
        with serving(make_app(chat, "tiny", 400)) as address:
            first, second = ({"role": "system", "content": text} for text in ("One.", "Two."))
            developer = {"role": "developer", "content": "Three."}
            joined = chat.prompt([{"role": "system", "content": "One.\n\nTwo.\n\nThree."}, *HELLO])
            assert chat.target.tokenizer.decode(joined).startswith("One.\n\nTwo.\n\nThree. USER")
            assert chat.prompt([first, second, {**developer, "role": "system"}, *HELLO]) == joined
            asked = {"model": "tiny", "max_tokens": 2}
            answer = httpx.post(
                address + CHAT, json=asked | {"messages": [first, second, developer, *HELLO]}
            )
            assert answer.json()["usage"]["prompt_tokens"] == len(joined)
            answer = httpx.post(address + CHAT, json=asked | {"messages": [*HELLO, first]})
            assert answer.status_code == 400
            assert answer.json()["error"]["message"] == (
                "message 2 is a system message after others, and FastChat's template vicuna_v1.1 "
                "has a place for these at the beginning only; move it there"
            )
    finally:
        chat.close()


def test_the_model_is_named(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="does not exist; this server has 'tiny'"):
        client.chat.completions.create(model="gpt-4", messages=HELLO)


CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("path", "content", "complaint", "param"),
    [
        (CHAT, b"{", "the body is not JSON", None),
        (CHAT, b"\xff\xfe", "", None),
        (CHAT, b"[]", "", None),
        (CHAT, b'"text"', "the body: Input should be", None),
        (CHAT, {"messages": HELLO}, "model: Field required", "model"),
        (CHAT, {"model": "tiny"}, "messages: Field required", "messages"),
        (CHAT, {"messages": []}, "messages:", "messages"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content", None),
        (CHAT, {"messages": HELLO, "temperature": -1}, "temperature is -1.0", "temperature"),
        (CHAT, {"messages": HELLO, "temperature": "hot"}, "temperature:", "temperature"),
        (CHAT, {"messages": HELLO, "top_p": -0.1}, "top_p is -0.1; give more than 0", "top_p"),
        (CHAT, {"messages": HELLO, "top_p": 0, "top_k": -1}, "top_k is -1; give 0", "top_k"),
        (CHAT, {"messages": HELLO, "top_p": 0, "temperature": -3}, "temperature is -3.0", None),
        (CHAT, {"messages": HELLO, "top_p": 1.5}, "top_p is 1.5", "top_p"),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens:", "max_tokens"),
        (CHAT, {"messages": HELLO, "max_tokens": 401}, "this server gives 400", "max_tokens"),
        (CHAT, {"messages": HELLO, "n": 2}, "n is not supported", "n"),
        (CHAT, {"messages": HELLO, "logprobs": True}, "logprobs is not supported", "logprobs"),
        (CHAT, {"messages": HELLO, "tools": [{}]}, "tools is not supported", "tools"),
        (CHAT, {"messages": HELLO, "presence_penalty": 1}, "presence_penalty is not", None),
        (CHAT, {"messages": HELLO, "stop": [""]}, "stop is more than 16", "stop"),
        (CHAT, {"messages": HELLO, "stop": "x" * 201}, "over 200 characters", "stop"),
        (CHAT, {"messages": HELLO, "stream_options": {"x": 1}}, "stream_options.x", None),
        (CHAT, {"messages": [HELLO[0]] * 90_000}, "is too long for", "messages"),
        (CHAT, {"messages": [{"role": "x" * 10**6, "content": ""}]}, "xxx…' of a message", None),
        *[
            (
                CHAT,
                {"messages": [HELLO[0], {"role": role, "content": "x"}]},
                f"the role {role!r} of a message is not supported; give system, developer, user",
                "messages",
            )
            for role in ("User", "banana", "", "tool", "function")
        ],
        (
            CHAT,
            {"messages": HELLO, "stream_options": {"include_obfuscation": True}},
            "include_obf",
            None,
        ),
        ("/v1/completions", {"prompt": ["a", "b"]}, "2 prompts; this server answers 1", "prompt"),
        ("/v1/completions", {"prompt": [[5], [6], [7]]}, "3 prompts; this server", "prompt"),
        ("/v1/completions", {"prompt": [""]}, "the prompt is empty", "prompt"),
        ("/v1/completions", {"prompt": [[]]}, "the prompt is empty", "prompt"),
        ("/v1/completions", {"prompt": [[10**9]]}, "what is no token id", "prompt"),
        (CHAT, {"messages": [HELLO[0] | {"name": "me"}]}, "name of a message", "messages"),
        (CHAT, {"messages": [HELLO[0] | {"content": "\ud800"}]}, "chat template", "messages"),
        (CHAT, {"messages": [{"role": "\ud800", "content": "x"}]}, "", None),
        (CHAT, {"messages": HELLO, "use_beam_search": True}, "use_beam_search is not", None),
        (CHAT, {"messages": HELLO, "temprature": 1}, "temprature is not supported", "temprature"),
        (CHAT, {"messages": HELLO, "temperature": 0, "top_p": 5}, "top_p is 5.0", "top_p"),
        (CHAT, {"messages": HELLO, "stream_options": 3}, "stream_options:", "stream_options"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]},
            "tool_calls of a message",
            "messages",
        ),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 10**6}]}, "is too long for", None),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "Hi " * 600}]},
            "exceed the model's",
            None,
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "image_url in a message is not supported",
            "messages",
        ),
        ("/v1/completions", {"prompt": "\ud800"}, "the prompt is no text", "prompt"),
        ("/v1/completions", {"prompt": [1] * 10**6}, "is too long for", "prompt"),
        ("/v1/completions", {"prompt": []}, "the prompt is empty", "prompt"),
        ("/v1/completions", {"prompt": [10**9]}, "what is no token id", "prompt"),
        ("/v1/completions", {"prompt": "x", "logprobs": 0}, "logprobs is not", "logprobs"),
        ("/v1/completions", {"prompt": "x", "echo": True}, "echo is not supported", "echo"),
    ],
)
def test_malformed_requests_are_refused_in_openais_form(
    address: str, path: str, content: Any, complaint: str, param: str | None
) -> None:
    if isinstance(content, dict):
        with_model = {"model": "tiny"} | content if "model: Field" not in complaint else content
        content = json.dumps(with_model).encode()
    answer = httpx.post(address + path, content=content, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and complaint in error["message"]
    if param is not None:
        assert error["param"] == param


def test_a_body_that_is_not_called_json_is_told_so(address: str) -> None:
    header = {"content-type": "text/plain"}
    answer = httpx.post(address + CHAT, content=b'{"model": "tiny"}', headers=header)
    assert answer.status_code == 400
    assert "header content-type: application/json" in answer.json()["error"]["message"]


def test_other_paths_methods_and_sizes_are_refused(address: str) -> None:
    assert httpx.get(address + "/v1/nothing").status_code == 404
    assert "error" in httpx.get(address + "/v1/nothing").json()
    wrong = httpx.get(address + CHAT)
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    answer = httpx.post(address + CHAT, content=b" " * (LARGEST_BODY + 1), headers=JSON)
    assert answer.status_code == 413 and "larger than" in answer.json()["error"]["message"]


def test_null_is_as_good_as_nothing(address: str) -> None:
    given_back = {"role": "assistant", "content": "a", "refusal": None}
    body = {"model": "tiny", "messages": [*HELLO, given_back, *HELLO]}
    names = ("temperature", "top_p", "stream", "stop", "seed", "n", "tools", "user")
    nothing = dict.fromkeys(names)
    answer = httpx.post(
        address + CHAT, json=body | nothing | {"max_tokens": 2, "presence_penalty": 0.0}
    )
    assert answer.status_code == 200


def post_half(address: str, declared: int, sent: bytes) -> socket.socket:
    """A connection that has sent a part of a request's body."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {declared}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def test_a_body_that_does_not_come_is_408(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.chatting.web.BODY_SECONDS", 0.2)
    with post_half(address, 100, b"{") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_body_that_is_to_be_too_large_is_not_waited_for(address: str) -> None:
    with post_half(address, LARGEST_BODY + 1, b"") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


class Held:
    """A job that the decoding thread waits in."""

    def __init__(self, chat: Chat) -> None:
        self.going, self.begun = threading.Event(), threading.Event()
        chat.submit(Job(chat.prompt(HELLO), 4, Sampling(), on_step=self.wait))
        assert self.begun.wait(30)

    def wait(self, *_: Any) -> None:
        self.begun.set()
        self.going.wait(60)


def test_a_full_queue_is_429_and_who_is_gone_does_not_count(address: str, chat: Chat) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 30, "temperature": 0}
    held = Held(chat)
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(httpx.post(address + CHAT, json=body, timeout=60).status_code)

    def gone() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address + CHAT, json=body, timeout=httpx.Timeout(60, read=0.3))

    leaving = [threading.Thread(target=gone) for _ in range(2)]  # as many as may wait
    for thread in leaving:
        thread.start()
    while not chat.full:
        time.sleep(0.01)
    assert httpx.post(address + CHAT, json=body).status_code == 429
    for thread in leaving:
        thread.join()
    deadline = time.time() + 20
    while chat.full and time.time() < deadline:
        time.sleep(0.02)  # the server notices
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not chat.full:
        time.sleep(0.01)
    refused = httpx.post(address + CHAT, json=body)
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    held.going.set()
    for thread in threads:
        thread.join()
    assert statuses == [200, 200]


def test_a_thousand_connections_are_survived(address: str, chat: Chat) -> None:
    """Good, malformed, oversized and torn requests at once, while one answer is under way."""
    held = Held(chat)
    host, port = address.removeprefix("http://").split(":")
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 2, "stream": False}
    bodies = [
        json.dumps(asked).encode(), json.dumps(asked | {"stream": True}).encode(), b"{",
        b"\xff" * 99, b" " * (LARGEST_BODY + 1),
        json.dumps(asked | {"messages": "x" * 10**5}).encode(),
    ]  # fmt: skip

    async def ask(number: int) -> int:
        body = bodies[number % len(bodies)]
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        torn = number % 10 == 9
        try:
            writer.write(head.encode() + (body[:50] if torn else body))
            if torn:  # and gone
                await writer.drain()
                return 0
            status = (await reader.readline()).split()
            return int(status[1])
        except ConnectionError:  # of an oversized body, which is not read to its end
            return 413
        finally:
            writer.close()

    async def ask_all() -> list[int]:
        asking = [asyncio.ensure_future(ask(number)) for number in range(1000)]
        await asyncio.sleep(3)
        held.going.set()
        return await asyncio.wait_for(asyncio.gather(*asking), 120)

    statuses = Counter(asyncio.run(ask_all()))
    assert statuses.total() == 1000 and set(statuses) <= {0, 200, 400, 413, 429}
    assert statuses[429] > 100 and statuses[0] == 100
    answer = httpx.post(address + CHAT, json=asked, timeout=60)
    assert answer.status_code == 200
    assert not chat.full


def test_an_answer_is_given_up_when_its_client_goes(
    address: str, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 400, "stream": True, "seed": 1}
    done: list[int] = []
    answer = Chat.answer

    def noting(self: Chat, job: Job) -> Any:
        drafted = self.drafter.draft
        with monkeypatch.context() as patch:  # slow enough for the client to go first
            patch.setattr(self.drafter, "draft", lambda *a: time.sleep(0.05) or drafted(*a))
            result = answer(self, job)
        done.append(len(result.tokens))
        return result

    monkeypatch.setattr(Chat, "answer", noting)
    with httpx.stream("POST", address + CHAT, json=body) as streamed:
        got = ""
        for piece in streamed.iter_text():
            got += piece
            if got.count("data:") > 1:  # the first comes before the answer is begun
                break
    deadline = time.time() + 30
    while not done and time.time() < deadline:
        time.sleep(0.02)
    assert done and done[0] < 200


def test_an_error_while_decoding_is_a_500_and_not_the_end(
    address: str, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 3}
    with monkeypatch.context() as patch:
        patch.setattr(chat.drafter, "draft", lambda *_: 1 / 0)
        answer = httpx.post(address + CHAT, json=body)
    assert answer.status_code == 500
    assert "decoding failed" in answer.json()["error"]["message"]
    assert httpx.post(address + CHAT, json=body).status_code == 200


class Characters:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize("stop", [[], ["STOP"], ["x", "STOP"]])
def test_text_holds_back_what_may_change(stop: list[str]) -> None:
    text = Text(Characters(), stop)
    given = ""
    for byte in "äS€STO STOP more".encode():
        ended = text.push(byte)
        new = text.take()
        assert "\ufffd" not in new
        given += new
        if ended:
            break
    given += text.take(last=True)
    assert given == ("äS€STO " if stop else "äS€STO STOP more")
    assert text.stopped is bool(stop)


class Stripping:
    """As Llama's: a blank before each word but a text's first; 0 and 1 are special."""

    def __init__(self) -> None:
        vocabulary = {"<unk>": 0, "<s>": 1, "▁": 2, "▁A": 3, "▁B": 4, "C": 5}
        vocabulary |= {f"<0x{byte:02X}>": 6 + byte for byte in range(256)}
        merges: list[tuple[str, str]] = []
        model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)
        self.tokenizer = Tokenizer(model)
        self.tokenizer.add_special_tokens(["<unk>", "<s>"])
        self.tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )  # fmt: skip

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def test_pieces_keep_the_blanks_behind_tokens_without_text() -> None:
    rng = random.Random(1)
    tokenizer = Stripping()
    euro = [6 + byte for byte in "€".encode()]
    for _ in range(300):
        ids = [rng.choice([0, 1, 2, 3, 4, 5]) for _ in range(12)]
        ids[4:4] = euro
        text = Text(tokenizer)
        given = ""
        for token in ids:
            text.push(token)
            given += text.take()
        assert given + text.take(last=True) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("before", [0, 1, 5])
def test_pieces_are_the_text_of_all_tokens(default_tokenizer: Any, before: int) -> None:
    """Random tokens, special ones and halves of characters among them, decoded a few at a time."""
    rng = random.Random(before)
    longest = 0

    class Counting:
        def decode(self, ids: list[int], **options: Any) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return str(default_tokenizer.decode(ids, **options))

    euro = default_tokenizer("€ 😀 ä").input_ids
    for _ in range(20):
        ids = [rng.randrange(len(default_tokenizer)) for _ in range(60)]
        ids[20:20] = ids[45:45] = euro
        text = Text(Counting(), before=ids[:before])
        given = ""
        for token in ids[before:]:
            text.push(token)
            given += text.take()
        given += text.take(last=True)
        whole = default_tokenizer.decode(ids, skip_special_tokens=True)
        start = default_tokenizer.decode(ids[:before], skip_special_tokens=True)
        assert given == whole[len(start.rstrip("\ufffd")) :]
    assert longest < 20


class Words:
    """A tokenizer that drops the first blank of a text, as SentencePiece ones do."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(f" {number}" for number in ids)[1:]


def test_a_continuation_keeps_its_first_blank() -> None:
    for before, wanted in (((), "3 4"), ((1, 2), " 3 4")):
        text = Text(Words(), before=before)
        text.push(3)
        given = text.take()
        text.push(4)
        assert given + text.take(last=True) == wanted


def test_closing_gives_up_what_is_queued(chat_path: str) -> None:
    chat = make_chat(chat_path, method="vanilla")
    held = Held(chat)
    ended: list[Any] = []
    waiting = Job(chat.prompt(HELLO), 4, Sampling(), on_end=ended.append)
    chat.submit(waiting)
    closing = threading.Thread(target=chat.close)
    closing.start()
    while not waiting.cancelled.is_set():
        time.sleep(0.01)
    held.going.set()
    closing.join(30)
    assert not closing.is_alive()
    assert [str(told) for told in ended] == ["the server stops"]
    with pytest.raises(Stopping):
        chat.submit(waiting)


def test_ctrl_c_ends_it_though_answers_are_under_way(default_model_path: str) -> None:
    argv = ["--model-path", default_model_path, "--method", "vanilla", "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, "-m", "evaluation.serve", *argv, "--device", "cpu"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert server.stdout is not None
    said = server.stdout.readline()
    address = re.search(r"http://\S+(?=/v1)", said)
    assert address, said
    body = {"model": "smollm2-135m-instruct", "prompt": "Once", "max_tokens": 1000, "stream": True}
    deadline = time.time() + 60
    while True:
        try:
            with httpx.stream("POST", address[0] + "/v1/completions", json=body) as streamed:
                pieces = streamed.iter_text()
                next(pieces)
                server.send_signal(signal.SIGINT)
                start = time.time()
                server.wait(30)
            break
        except httpx.ConnectError:
            assert time.time() < deadline
            time.sleep(0.1)
        except httpx.RemoteProtocolError:
            break
    server.wait(30)
    assert time.time() - start < 20
    errors = server.stderr.read() if server.stderr else ""
    assert "Traceback" not in errors and server.returncode == 130


def test_flags_are_checked(chat_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-path", "nowhere"]) == 2
    assert "no model directory 'nowhere'" in capsys.readouterr().err
    assert main(["--model-path", chat_path, "--host", "a..b"]) == 2
    assert "cannot listen on a..b" in capsys.readouterr().err
    assert main(["--model-path", chat_path, "--method", "baseline"]) == 2
    assert "transformers' own loop" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        argv = ["--model-path", chat_path, "--method", "pld", "--port", port, "--device", "cpu"]
        assert main(argv) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
