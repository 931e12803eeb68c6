"""Shared by the server and the demo's page: errors, limits, and how an application is run."""

from __future__ import annotations

import asyncio
import queue
import resource
import socket
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from model.logitspec.decoding import Step
from model.logitspec.errors import InputError, brief

from ..asking.settings import ListeningSettings
from .chat import STOPPING, Chat, Job, Stopping, TooLong

LARGEST_BODY = 4 << 20  # bytes of a request
BODY_SECONDS = 30  # in which it has to arrive
READING = 8  # requests that may be read beside those that wait
MOST_CONNECTIONS = 8192
OTHER_FILES = 128  # that the process has open
CLOSE = {"Connection": "close"}
BUSY = "too many requests are waiting; try again later"


class Refused(Exception):
    """A request that is answered with an HTTP error in OpenAI's form."""

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def body(error: Refused) -> dict[str, Any]:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {
            "message": str(error).encode("utf-8", "backslashreplace").decode(),
            "type": kind, "param": error.param, "code": error.code,
        }
    }  # fmt: skip


def response(error: Refused, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The HTTP response for an error."""
    again = {"Retry-After": "1"} if error.status in (429, 503) else {}
    return JSONResponse(body(error), error.status, {**again, **(headers or {})})


class Limits:
    """ASGI middleware: at most `most` requests with a body at a time, each of which is read first.

    A body has at most LARGEST_BODY bytes and comes within BODY_SECONDS.
    """

    def __init__(self, app: Any, most: int) -> None:
        self._app = app
        self._most = most
        self._open = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        if self._open >= self._most:
            await response(Refused(BUSY, 429, code="queue_full"))(scope, receive, send)
            return
        self._open += 1
        try:
            await self._take_in(scope, receive, send)
        finally:
            self._open -= 1

    async def _take_in(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            whole = await asyncio.wait_for(whole_body(scope, receive), BODY_SECONDS)
        except (TimeoutError, asyncio.TimeoutError):  # one and the same from Python 3.11 on
            refused = Refused(f"the request did not come within {BODY_SECONDS} seconds", 408)
        except asyncio.CancelledError:  # the server stops
            refused = Refused(STOPPING, 503)
        except Refused as error:
            refused = error
        else:
            if whole is not None:  # the client has not disconnected
                unread = [{"type": "http.request", "body": whole, "more_body": False}]

                async def replay() -> Any:
                    return unread.pop() if unread else await receive()

                await self._app(scope, replay, send)
            return
        await response(refused, CLOSE)(scope, receive, send)


async def whole_body(scope: Any, receive: Any) -> bytes | None:
    """A request's body, or None if its client has disconnected; Refused if it is too large."""
    too_large = Refused(f"the request is larger than {LARGEST_BODY} bytes", 413)
    declared = dict(scope["headers"]).get(b"content-length", b"")
    if declared.isdigit() and int(declared) > LARGEST_BODY:
        raise too_large
    parts = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts += message.get("body", b"")
        if len(parts) > LARGEST_BODY:
            raise too_large
        if not message.get("more_body", False):
            return bytes(parts)


def new_app(chat: Chat) -> FastAPI:
    """An application that answers errors in OpenAI's form and bounds the requests to a chat."""
    app = FastAPI(title="LogitSpec", docs_url=None, redoc_url=None)
    app.add_middleware(Limits, most=chat.waiting + READING)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return response(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return response(Refused(f"the body is not JSON: {first['ctx']['error']}"))
        if first["loc"] == ("body",) and isinstance(first["input"], bytes):
            return response(Refused("the body wants the header content-type: application/json"))
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return response(Refused(f"{where or 'the body'}: {first['msg']}", param=where or None))

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return response(Refused(str(error.detail), error.status_code), error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return response(Refused(f"the server failed: {brief(error)}", 500))

    return app


async def read_prompt(tokens: Callable[[], list[int]], param: str | None = None) -> list[int]:
    """The ids that `tokens` gives, beside the event loop; `param` is the request's field."""
    try:
        return await asyncio.to_thread(tokens)
    except InputError as error:
        code = "context_length_exceeded" if isinstance(error, TooLong) else None
        raise Refused(str(error), param=param, code=code) from error


def submit(
    chat: Chat, job: Job, step: Callable[[Step, list[str]], Any] | None = None
) -> asyncio.Queue[Any]:
    """Queue a job, and give the queue of its events: texts, lists of scored tokens, what `step`
    makes of its steps in the thread that decodes, and last its result or error."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Any] = asyncio.Queue()

    def tell(event: Any) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    job.on_text = job.on_scored = job.on_end = tell
    if step is not None:
        job.on_step = lambda done, pieces: tell(step(done, pieces))
    try:
        chat.submit(job)
    except queue.Full as error:
        raise Refused(BUSY, 429, code="queue_full") from error
    except Stopping as error:
        raise Refused(str(error), 503) from error
    except InputError as error:
        raise Refused(str(error), code="context_length_exceeded") from error
    return events


class ChatServer(uvicorn.Server):
    """Says hello once Ctrl-C is handled, and cancels all answers before it stops."""

    def __init__(self, config: uvicorn.Config, chat: Chat, hello: str) -> None:
        super().__init__(config)
        self._chat = chat
        self._hello = hello

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._hello, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._chat.stop()
        await super().shutdown(sockets)


def serve_app(
    place: ListeningSettings,
    make_chat: Callable[[], Chat],
    make_app: Callable[[Chat], FastAPI],
    hello: str,
) -> None:
    """Serve the application of a chat until Ctrl-C; {} in `hello` is replaced by the address."""
    with listen(place.host, place.port) as listening:
        chat = make_chat()
        # Answers in progress are cancelled at Ctrl-C.
        config = uvicorn.Config(
            make_app(chat), log_level="warning", timeout_graceful_shutdown=1,
            limit_concurrency=most_connections(),
        )  # fmt: skip
        name = f"[{place.host}]" if ":" in place.host else place.host
        address = f"http://{name}:{listening.getsockname()[1]}"
        try:
            ChatServer(config, chat, f"{hello.format(address)}, Ctrl-C ends it").run([listening])
        finally:
            chat.close()


def most_connections() -> int:
    """As many connections as file descriptors allow; the limit is raised if possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(MOST_CONNECTIONS, soft - OTHER_FILES))


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {brief(error)}; choose another --host or --port"
        ) from error
