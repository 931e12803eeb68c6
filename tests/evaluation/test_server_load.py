"""A server under load, and clients that go or never come."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import httpx
import pytest

from evaluation.chatting.chat import Chat, Job, Stopping
from evaluation.chatting.web import LARGEST_BODY
from model.logitspec import Sampling

from .serving import HELLO, make_chat
from .test_serve import CHAT, ROOT


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
