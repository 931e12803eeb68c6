"""A chat and a server of it, for the tests that ask one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from evaluation.asking.settings import TargetSettings
from evaluation.chatting.chat import Chat


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_chat(
    path: str, method: str = "logitspec@8", state: Path | None = None, **changed: Any
) -> Chat:
    settings = TargetSettings(path, device="cpu", dtype="float32")
    return Chat(replace(settings, **changed), method, waiting=2, state=state)


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


HELLO: list[Any] = [{"role": "user", "content": "Hello?"}]
