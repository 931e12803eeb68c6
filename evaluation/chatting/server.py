"""An OpenAI-compatible server over a chat: its endpoints and their answers."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from model.logitspec import DecodingResult, Sampling
from model.logitspec.errors import InputError, brief

from ..traces.sidecars import FILTERS
from .chat import Chat, Job, Stopping
from .requests import HARMLESS, LONGEST_STOP, Asked, ChatAsked, TextAsked, stops
from .web import BUSY, Refused, body, new_app, read_prompt, submit

DEFAULT_TOKENS = 512  # of an answer, where the request does not say


class Answering:
    """A queued job and its events, for the event loop.

    Args:
        chat: that answers.
        job: what is asked.

    Raises:
        Refused: it does not fit the model, or too many requests wait.
    """

    def __init__(self, chat: Chat, job: Job) -> None:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[str | DecodingResult | Exception] = asyncio.Queue()

        def tell(event: str | DecodingResult | Exception) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job.on_text = job.on_end = tell
        self.job = job
        self._events = events
        self.result: DecodingResult | None = None
        submit(chat, job)

    async def texts(self) -> AsyncIterator[str]:
        """The answer's text piece by piece; `result` is set afterwards.

        Raises:
            Refused: decoding failed.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, Stopping):
                raise Refused(str(event), 503)
            if isinstance(event, Exception):
                raise Refused(f"decoding failed: {brief(event)}", 500)
            if isinstance(event, DecodingResult):
                self.result = event
                return
            yield event


class Server:
    """The endpoints.

    Args:
        chat: answers.
        name: of the model.
        most_tokens: of an answer.
    """

    def __init__(self, chat: Chat, name: str, most_tokens: int) -> None:
        self._chat = chat
        self._name = name
        self._most = most_tokens
        self._made = int(time.time())

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [await self.model(self._name)]}

    async def model(self, name: str) -> dict[str, Any]:
        self._check_model(name)
        return {"id": name, "object": "model", "created": self._made, "owned_by": "logitspec"}

    async def chat(self, asked: ChatAsked, request: Request) -> Any:
        messages = [message.plain() for message in asked.messages]
        return await self._answer(
            asked, request, "messages", lambda: self._chat.prompt(messages), chat=True
        )

    async def complete(self, asked: TextAsked, request: Request) -> Any:
        only = asked.only

        def tokens() -> list[int]:
            prompt = only
            if isinstance(prompt, str):
                self._chat.check_size(len(prompt))
                try:
                    prompt = list(self._chat.target.tokenizer(prompt).input_ids)
                except Exception as error:  # as of half a surrogate pair
                    raise InputError(f"the prompt is no text: {brief(error)}") from error
            self._chat.check_size(len(prompt))
            vocabulary = self._chat.model.config.vocab_size
            if not prompt or not all(0 <= token < vocabulary for token in prompt):
                raise InputError("the prompt is empty or holds what is no token id")
            return prompt

        return await self._answer(asked, request, "prompt", tokens, chat=False)

    def _check_model(self, name: str) -> None:
        if name != self._name:
            raise Refused(
                f"the model {name!r} does not exist; this server has {self._name!r}",
                404, "model", "model_not_found",
            )  # fmt: skip

    def _sampling(self, asked: Asked) -> Sampling:
        """The sampling settings of a request, after the checks that need no prompt."""
        self._check_model(asked.model)
        for name, value in sorted((asked.model_extra or {}).items()):
            nothing = HARMLESS.get(name, ())
            if nothing is not None and (value, isinstance(value, bool)) not in [
                (harmless, isinstance(harmless, bool))
                for harmless in nothing  # 0 == False
            ]:
                raise Refused(f"{name} is not supported; leave it out", param=name)
        if asked.stream_options is not None and asked.stream_options.include_obfuscation:
            raise Refused(
                "stream_options.include_obfuscation is not supported; give false or leave it out",
                param="stream_options",
            )
        if asked.most is not None and asked.most > self._most:
            raise Refused(
                f"max_tokens is {asked.most}, this server gives {self._most}", param="max_tokens"
            )
        if len(stops(asked)) > 16 or not all(0 < len(s) <= LONGEST_STOP for s in stops(asked)):
            raise Refused(
                f"stop is more than 16 strings, or one is empty or over {LONGEST_STOP} characters",
                param="stop",
            )
        given = {name: getattr(asked, name) for name in FILTERS}
        filters = {name: value for name, value in given.items() if value is not None}
        temperature = 1.0 if asked.temperature is None else asked.temperature
        seed = secrets.randbelow(2**63) if asked.seed is None else asked.seed % 2**63
        try:
            if filters.get("top_p") == 0:  # as with OpenAI: greedy
                Sampling(temperature)
                temperature = 0.0
                del filters["top_p"]
            Sampling(temperature=1.0, **filters)
            if temperature == 0:  # as with OpenAI, filters have no effect then
                filters = {k: v for k, v in filters.items() if k == "repetition_penalty"}
            return Sampling(temperature, seed=seed, **filters)
        except InputError as error:
            raise Refused(str(error), param=str(error).partition(" ")[0]) from error

    async def _answer(
        self,
        asked: Asked,
        request: Request,
        param: str,
        tokens: Callable[[], list[int]],
        *,
        chat: bool,
    ) -> Any:
        """Answer a request.

        Args:
            asked: the request's body.
            request: for its connection.
            param: the field that holds the prompt.
            tokens: gives the prompt's ids; not called on the event loop.
            chat: whether it is a chat completion.
        """
        sampling = self._sampling(asked)
        if self._chat.full:
            raise Refused(BUSY, 429, code="queue_full")
        prompt = await read_prompt(tokens, param)
        most = asked.most or self._chat.fitting_tokens(prompt, min(DEFAULT_TOKENS, self._most))
        answering = Answering(self._chat, Job(prompt, most, sampling, stops(asked), raw=not chat))
        ident = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        kind = ("chat.completion" if chat else "text_completion") + (
            ".chunk" if chat and asked.stream else ""
        )
        common = {
            "id": ident, "object": kind, "created": int(time.time()), "model": self._name,
        }  # fmt: skip
        if asked.stream:
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return StreamingResponse(
                self._stream(answering, common, chat=chat, usage=usage),
                media_type="text/event-stream",
            )
        reading = asyncio.ensure_future(joined(answering))
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=0.5)
                if await request.is_disconnected():
                    raise Refused("the client is gone", 499)
            text = reading.result()
        finally:
            answering.job.cancelled.set()
            reading.cancel()
        message = {"role": "assistant", "content": text, "refusal": None}
        content: dict[str, Any] = {"message": message} if chat else {"text": text}
        answer = choice(answering.job.finish_reason, **content)
        assert answering.result is not None
        return {**common, "choices": [answer], "usage": count(answering.result)}

    async def _stream(
        self, answering: Answering, common: dict[str, Any], *, chat: bool, usage: bool
    ) -> AsyncIterator[str]:
        """The events of a streamed answer.

        Args:
            answering: the answer.
            common: fields of every event.
            chat: whether it is a chat completion.
            usage: end with an event that counts tokens.
        """

        def line(content: dict[str, Any]) -> str:
            return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

        def event(choices: list[Any], result: DecodingResult | None = None) -> str:
            counted = {"usage": count(result) if result else None} if usage else {}
            return line({**common, "choices": choices, **counted})

        try:
            if chat:
                yield event([choice(None, delta={"role": "assistant", "content": ""})])
            async for text in answering.texts():
                content: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
                yield event([choice(None, **content)])
            nothing: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
            yield event([choice(answering.job.finish_reason, **nothing)])
            if usage:
                yield event([], answering.result)
            yield "data: [DONE]\n\n"
        except Refused as error:
            yield line(body(error))
        finally:  # the client may have disconnected
            answering.job.cancelled.set()


def choice(reason: str | None, **content: Any) -> dict[str, Any]:
    """The one choice of an answer, or of an event of it."""
    return {"index": 0, "finish_reason": reason, "logprobs": None, **content}


async def joined(answering: Answering) -> str:
    return "".join([text async for text in answering.texts()])


def count(result: DecodingResult) -> dict[str, Any]:
    """OpenAI's usage with the numbers of accepted and rejected drafts, and of steps."""
    new = len(result.tokens)
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": new,
        "total_tokens": result.prompt_tokens + new,
        "completion_tokens_details": {
            "accepted_prediction_tokens": new - result.steps,
            "rejected_prediction_tokens": sum(result.tree_sizes) - new,
        },
        "speculation": {
            "steps": result.steps,
            "mean_accepted_tokens": round(result.mean_accepted_tokens, 4),
            "accept_lengths": result.accept_lengths,
        },
    }


def make_app(chat: Chat, name: str, most_tokens: int) -> FastAPI:
    """The application."""
    server = Server(chat, name, most_tokens)
    app = new_app(chat)
    app.get("/v1/models")(server.models)
    app.get("/v1/models/{name:path}")(server.model)
    app.post("/v1/chat/completions", response_model=None)(server.chat)
    app.post("/v1/completions", response_model=None)(server.complete)
    return app
