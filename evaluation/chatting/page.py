"""The page of evaluation.demo --web: a chat with every step's draft tree."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel, Field

from model.logitspec import DecodingResult, Sampling, VanillaDrafter
from model.logitspec.decoding import Step
from model.logitspec.errors import brief
from model.logitspec.origins import ORIGINS

from ..asking.settings import ChatSettings
from .chat import Chat, Job
from .requests import Message
from .web import new_app, read_prompt, submit

PAGE = Path(__file__).with_name("page.html")


class Asked(BaseModel):
    """A request of the page."""

    messages: list[Message] = Field(min_length=1)
    vanilla: bool = False  # by plain decoding


def make_app(chat: Chat, settings: ChatSettings, sampling: Sampling) -> FastAPI:
    """The page and its endpoint."""
    app = new_app(chat)
    decode = chat.target.tokenizer.decode

    @app.get("/")
    async def page() -> HTMLResponse:
        about = {
            "model": chat.target.prompts.name, "method": settings.method,
            "origins": ORIGINS, "system": settings.system,
        }  # fmt: skip
        shown = json.dumps(about).replace("<", "\\u003c")
        return HTMLResponse(PAGE.read_text(encoding="utf-8").replace("/*ABOUT*/", shown))

    def step(done: Step, pieces: list[str]) -> dict[str, Any]:
        return {
            "tokens": [decode([token]) for token in done.tree.tokens],
            "parents": done.tree.parents,
            "origins": [ORIGINS.index(origin) for origin in done.origins],
            "path": done.path,
            "pieces": pieces,
        }

    @app.post("/answer", response_model=None)
    async def answer(asked: Asked) -> StreamingResponse:
        messages = [message.plain() for message in asked.messages]
        prompt = await read_prompt(lambda: chat.prompt(messages))
        most = chat.fitting_tokens(prompt, settings.max_new_tokens)
        job = Job(prompt, most, sampling, drafter=VanillaDrafter() if asked.vanilla else None)
        events = submit(chat, job, step)
        return StreamingResponse(lines(events, job), media_type="application/x-ndjson")

    return app


async def lines(events: asyncio.Queue[Any], job: Job) -> AsyncIterator[str]:
    """An answer's events as lines of JSON."""
    try:
        event = None
        while not isinstance(event, DecodingResult | Exception):
            event = await events.get()
            if isinstance(event, str):
                said: dict[str, Any] = {"text": event}
            elif isinstance(event, DecodingResult):
                seconds = event.prefill_seconds + sum(event.step_seconds)
                said = {"end": job.finish_reason, "seconds": seconds}
            elif isinstance(event, Exception):
                said = {"error": brief(event)}
            else:
                said = event
            yield json.dumps(said) + "\n"
    finally:  # the page may be closed
        job.cancelled.set()
