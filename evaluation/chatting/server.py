"""An OpenAI-compatible server over a chat: its endpoints and their answers."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from model.logitspec import DecodingResult, Sampling
from model.logitspec.errors import InputError, brief
from model.logitspec.scoring import Scored

from ..traces.sidecars import FILTERS
from .chat import Chat, Job, Stopping
from .logprobs import Logprobs
from .requests import HARMLESS, LONGEST_STOP, Asked, ChatAsked, TextAsked
from .web import BUSY, Refused, body, new_app, read_prompt, submit

DEFAULT_TOKENS = 512  # of an answer, where the request does not say


@dataclass
class Server:
    """The endpoints: a chat under a model's name, whose answers have at most so many tokens."""

    chat: Chat
    name: str
    most_tokens: int
    made: int = field(default_factory=lambda: int(time.time()))

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [await self.model(self.name)]}

    async def model(self, name: str) -> dict[str, Any]:
        self._check_model(name)
        return {"id": name, "object": "model", "created": self.made, "owned_by": "logitspec"}

    async def converse(self, asked: ChatAsked, request: Request) -> Any:
        messages = [message.plain() for message in asked.messages]
        return await self._answer(
            asked, request, "messages", lambda: self.chat.prompt(messages), raw=False
        )

    async def complete(self, asked: TextAsked, request: Request) -> Any:
        only = asked.only

        def tokens() -> list[int]:
            prompt = only
            if isinstance(prompt, str):
                self.chat.check_size(len(prompt))
                try:
                    prompt = list(self.chat.target.tokenizer(prompt).input_ids)
                except Exception as error:  # as of half a surrogate pair
                    raise InputError(f"the prompt is no text: {brief(error)}") from error
            self.chat.check_size(len(prompt))
            vocabulary = self.chat.model.config.vocab_size
            if not prompt or not all(0 <= token < vocabulary for token in prompt):
                raise InputError("the prompt is empty or holds what is no token id")
            return prompt

        return await self._answer(asked, request, "prompt", tokens, raw=True)

    def _check_model(self, name: str) -> None:
        if name != self.name:
            raise Refused(
                f"the model {name!r} does not exist; this server has {self.name!r}",
                404, "model", "model_not_found",
            )  # fmt: skip

    def _sampling(self, asked: Asked) -> Sampling:
        """The sampling settings of a request, after the checks that need no prompt."""
        self._check_model(asked.model)
        for name, value in sorted((asked.model_extra or {}).items()):
            nothing = HARMLESS.get(name, ())
            kind = isinstance(value, bool)  # for 0 == False
            if nothing is not None and (value, kind) not in [
                (harmless, isinstance(harmless, bool)) for harmless in nothing
            ]:
                raise Refused(f"{name} is not supported; leave it out", param=name)
        if asked.stream_options is not None and asked.stream_options.include_obfuscation:
            raise Refused(
                "stream_options.include_obfuscation is not supported; give false or leave it out",
                param="stream_options",
            )
        if asked.most is not None and asked.most > self.most_tokens:
            raise Refused(
                f"max_tokens is {asked.most}, this server gives {self.most_tokens}",
                param="max_tokens",
            )
        if len(asked.stops) > 16 or not all(0 < len(s) <= LONGEST_STOP for s in asked.stops):
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
        self, asked: Asked, request: Request, param: str, tokens: Callable[[], list[int]], raw: bool
    ) -> Any:
        """Answer a request whose field `param` holds the prompt; `raw`: no conversation.

        `tokens` gives the prompt's ids; it is not called on the event loop.
        """
        sampling = self._sampling(asked)
        if self.chat.full:
            raise Refused(BUSY, 429, code="queue_full")
        prompt = await read_prompt(tokens, param)
        most = asked.most or self.chat.fitting_tokens(prompt, min(DEFAULT_TOKENS, self.most_tokens))
        job = Job(
            prompt, most, sampling, asked.stops, raw=raw, logprobs=asked.scored, reuse_prefix=True
        )
        target = self.chat.target
        logprobs = Logprobs(target.tokenizer, target.eos_token_ids, raw=raw)
        events = submit(self.chat, job)
        kind = "text_completion" if raw else "chat.completion"
        common = {
            "id": ("cmpl-" if raw else "chatcmpl-") + secrets.token_hex(12),
            "object": f"{kind}.chunk" if asked.stream and not raw else kind,
            "created": int(time.time()),
            "model": self.name,
        }
        if asked.stream:
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            lines = stream(job, events, common, logprobs, usage=usage)
            return StreamingResponse(lines, media_type="text/event-stream")
        reading = asyncio.ensure_future(read_all(events))
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=0.5)
                if await request.is_disconnected():
                    raise Refused("the client is gone", 499)
            text, scored, result = reading.result()
        finally:
            job.cancelled.set()
            reading.cancel()
        message = {"role": "assistant", "content": text, "refusal": None}
        content: dict[str, Any] = {"text": text} if raw else {"message": message}
        if job.logprobs is not None:
            content["logprobs"] = logprobs.of(scored)
        choices = [choice(job.finish_reason, **content)]
        return {**common, "choices": choices, "usage": count(result)}


async def next_event(events: asyncio.Queue[Any]) -> str | list[Scored] | DecodingResult:
    """New text, or scored tokens, or the result at the end; Refused: decoding failed."""
    event: str | list[Scored] | DecodingResult | Exception = await events.get()
    if isinstance(event, Stopping):
        raise Refused(str(event), 503)
    if isinstance(event, Exception):
        raise Refused(f"decoding failed: {brief(event)}", 500)
    return event


async def read_all(events: asyncio.Queue[Any]) -> tuple[str, list[Scored], DecodingResult]:
    """A whole answer: its text, its tokens if they are scored, and its result."""
    text, scored = "", list[Scored]()
    while not isinstance(event := await next_event(events), DecodingResult):
        if isinstance(event, str):
            text += event
        else:
            scored += event
    return text, scored, event


async def stream(
    job: Job,
    events: asyncio.Queue[Any],
    common: dict[str, Any],
    logprobs: Logprobs,
    *,
    usage: bool,
) -> AsyncIterator[str]:
    """The events of a streamed answer: `common` is in each; with `usage` the last counts tokens.

    Scored tokens come in events of their own, before their text.
    """

    def line(content: dict[str, Any]) -> str:
        return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

    def chunk(choices: list[Any], result: DecodingResult | None = None) -> str:
        counted = {"usage": count(result) if result else None} if usage else {}
        return line({**common, "choices": choices, **counted})

    try:
        if not job.raw:
            yield chunk([choice(None, delta={"role": "assistant", "content": ""})])
        while not isinstance(event := await next_event(events), DecodingResult):
            text = event if isinstance(event, str) else ""
            new: dict[str, Any] = {"text": text} if job.raw else {"delta": {"content": text}}
            if not isinstance(event, str):
                new["logprobs"] = logprobs.of(event)
            yield chunk([choice(None, **new)])
        nothing: dict[str, Any] = {"text": ""} if job.raw else {"delta": {}}
        yield chunk([choice(job.finish_reason, **nothing)])
        if usage:
            yield chunk([], event)
        yield "data: [DONE]\n\n"
    except Refused as error:
        yield line(body(error))
    finally:  # the client may have disconnected
        job.cancelled.set()


def choice(reason: str | None, **content: Any) -> dict[str, Any]:
    """The one choice of an answer, or of an event of it."""
    return {"index": 0, "finish_reason": reason, "logprobs": None} | content


def count(result: DecodingResult) -> dict[str, Any]:
    """OpenAI's usage with the numbers of accepted and rejected drafts, and of steps."""
    new = len(result.tokens)
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": new,
        "total_tokens": result.prompt_tokens + new,
        "prompt_tokens_details": {"cached_tokens": result.cached_tokens},
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
    app.post("/v1/chat/completions", response_model=None)(server.converse)
    app.post("/v1/completions", response_model=None)(server.complete)
    return app
