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

from ..asking.settings import ChatSettings, ListeningSettings, TargetSettings
from .chat import Chat, Job
from .requests import Message
from .web import listen, new_app, read_prompt, run_app, submit

PAGE = Path(__file__).with_name("page.html")


class Asked(BaseModel):
    """A request of the page."""

    messages: list[Message] = Field(min_length=1)
    vanilla: bool = False  # by plain decoding


class Page:
    """The page and its endpoint.

    Args:
        chat: answers.
        settings: of the conversation.
        sampling: how tokens are chosen.
    """

    def __init__(self, chat: Chat, settings: ChatSettings, sampling: Sampling) -> None:
        self._chat = chat
        self._settings = settings
        self._sampling = sampling

    async def page(self) -> HTMLResponse:
        about = {
            "model": self._chat.target.prompts.name, "method": self._settings.method,
            "origins": ORIGINS, "system": self._settings.system,
        }  # fmt: skip
        html = PAGE.read_text(encoding="utf-8")
        shown = json.dumps(about).replace("<", "\\u003c")
        return HTMLResponse(html.replace("/*ABOUT*/", shown))

    async def answer(self, asked: Asked) -> StreamingResponse:
        messages = [message.plain() for message in asked.messages]
        prompt = await read_prompt(lambda: self._chat.prompt(messages))
        most = self._chat.fitting_tokens(prompt, self._settings.max_new_tokens)
        job = Job(prompt, most, self._sampling)
        events = self._events(job, vanilla=asked.vanilla)
        return StreamingResponse(self._lines(events, job), media_type="application/x-ndjson")

    def _events(self, job: Job, *, vanilla: bool) -> asyncio.Queue[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        decode = self._chat.target.tokenizer.decode

        def tell(event: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def step(done: Step, pieces: list[str]) -> None:
            tell(
                {
                    "tokens": [decode([token]) for token in done.tree.tokens],
                    "parents": done.tree.parents,
                    "origins": [ORIGINS.index(origin) for origin in done.origins],
                    "path": done.path,
                    "pieces": pieces,
                }
            )

        def end(outcome: DecodingResult | Exception) -> None:
            if isinstance(outcome, Exception):
                tell({"error": brief(outcome)})
            else:
                seconds = outcome.prefill_seconds + sum(outcome.step_seconds)
                tell({"end": job.finish_reason, "seconds": seconds})

        job.on_step, job.on_end = step, end
        job.on_text = lambda text: tell({"text": text})
        job.drafter = VanillaDrafter() if vanilla else None
        submit(self._chat, job)
        return events

    async def _lines(self, events: asyncio.Queue[dict[str, Any]], job: Job) -> AsyncIterator[str]:
        try:
            while True:
                event = await events.get()
                yield json.dumps(event) + "\n"
                if "end" in event or "error" in event:
                    return
        finally:  # the page may be closed
            job.cancelled.set()


def make_app(chat: Chat, settings: ChatSettings, sampling: Sampling) -> FastAPI:
    """The application."""
    page = Page(chat, settings, sampling)
    app = new_app(chat)
    app.get("/")(page.page)
    app.post("/answer", response_model=None)(page.answer)
    return app


def serve_page(
    target: TargetSettings, settings: ChatSettings, sampling: Sampling, place: ListeningSettings
) -> None:
    """Serve the page until Ctrl-C."""
    with listen(place.host, place.port) as listening:
        chat = Chat(target, settings.method, waiting=8)
        app = make_app(chat, settings, sampling)
        run_app(app, chat, listening, place.host, "the page is at {}")
