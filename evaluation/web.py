"""What the server and the demo's page share: errors, limits, and how an application is run."""

from __future__ import annotations

import argparse
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from model.logitspec.errors import InputError, brief

from .chat import Chat

LARGEST_BODY = 4 << 20  # bytes of a request
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
            "message": str(error), "type": kind, "param": error.param, "code": error.code,
        }
    }  # fmt: skip


class LimitBody:
    """ASGI middleware: refuses bodies over LARGEST_BODY, however they come."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client is gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > LARGEST_BODY:
                refused = Refused(f"the request is larger than {LARGEST_BODY} bytes", 413)
                await JSONResponse(body(refused), 413)(scope, receive, send)
                return
        whole: Any = {"type": "http.request", "body": b"".join(parts), "more_body": False}

        async def replay() -> Any:
            nonlocal whole
            if whole is None:
                return await receive()
            message, whole = whole, None
            return message

        await self._app(scope, replay, send)


def new_app() -> FastAPI:
    """An application that answers errors in OpenAI's form and refuses large bodies."""
    app = FastAPI(title="LogitSpec", docs_url=None, redoc_url=None)
    app.add_middleware(LimitBody)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 429 else None
        return JSONResponse(body(error), error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return JSONResponse(
            body(Refused(f"{where or 'the body'}: {first['msg']}", param=where)), 400
        )

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(body(Refused(str(error.detail), error.status_code)), error.status_code)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(body(Refused(f"the server failed: {brief(error)}", 500)), 500)

    return app


class Stopping(uvicorn.Server):
    """Gives up all answers first when it is to stop, so that their requests end by themselves."""

    def __init__(self, config: uvicorn.Config, chat: Chat) -> None:
        super().__init__(config)
        self._chat = chat

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._chat.stop()
        await super().shutdown(sockets)


def run_app(
    app: FastAPI, chat: Chat, listening: socket.socket, args: argparse.Namespace, hello: str
) -> None:
    """Serve an application until Ctrl-C.

    Args:
        app: the application.
        chat: that it asks; closed in the end.
        listening: the socket.
        args: with the host.
        hello: what to say first; {} is the address.
    """
    # Answers under way are given up at Ctrl-C.
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    host = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{host}:{listening.getsockname()[1]}"
    print(f"{hello.format(address)}, Ctrl-C ends it", flush=True)
    try:
        Stopping(config, chat).run([listening])
    finally:
        chat.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: it cannot.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {brief(error)}; choose another --host or --port"
        ) from error
