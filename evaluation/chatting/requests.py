"""Bodies of the server's requests, and the fields of OpenAI's API that are refused."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field

from .web import Refused

LONGEST_STOP = 200  # characters
LONGEST_SHOWN = 40  # characters of what is not known
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Part(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str = ""

    def plain(self) -> str:
        """Its text; Refused if it is something else."""
        extra = next(iter(self.model_extra or ()), None)
        if self.type != "text" or extra is not None:
            name = self.type if self.type != "text" else extra
            raise Refused(f"{name} in a message is not supported", param="messages")
        return self.text


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="allow")  # an answer sent back has empty fields

    role: str
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        """As a chat template wants it; Refused for an unknown role, or for more than text."""
        if self.role not in ROLES:
            long = len(self.role) > LONGEST_SHOWN
            role = f"{self.role[:LONGEST_SHOWN]}…" if long else self.role
            raise Refused(
                f"the role {role!r} of a message is not supported; give {', '.join(ROLES)}",
                param="messages",
            )
        for name, value in (self.model_extra or {}).items():
            if value:
                raise Refused(f"{name} of a message is not supported", param="messages")
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.plain() for part in text)
        return {"role": ROLES[self.role], "content": text}


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding of the events, which is not supported


class Asked(BaseModel):
    """Fields of both kinds of request."""

    model_config = ConfigDict(extra="allow")  # HARMLESS says which are taken

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None  # null is OpenAI's default
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def most(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_tokens

    @property
    def scored(self) -> int | None:
        """How many best tokens are scored beside each of the answer's; None: nothing is."""
        raise NotImplementedError

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatAsked(Asked):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def scored(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise Refused("top_logprobs wants logprobs to be true", param="top_logprobs")
        return self.top_logprobs or 0 if self.logprobs else None


class TextAsked(Asked):
    """The body of /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def scored(self) -> int | None:
        return self.logprobs

    @property
    def only(self) -> str | list[int]:
        """The one prompt, for many clients send a list of one; Refused if there are several."""
        if isinstance(self.prompt, str) or all(isinstance(part, int) for part in self.prompt):
            return cast("str | list[int]", self.prompt)
        if len(self.prompt) > 1:
            raise Refused(
                f"prompt holds {len(self.prompt)} prompts; this server answers 1 in a request",
                param="prompt",
            )
        return cast("str | list[int]", self.prompt[0])


# Other fields, with the values that ask for nothing; None: any value, for it changes no answer.
# Fields that are not listed are refused.
HARMLESS: dict[str, tuple[Any, ...] | None] = {
    **dict.fromkeys(("audio", "prediction", "reasoning_effort", "verbosity"), (None,)),
    "echo": (None, False),
    **dict.fromkeys(("best_of", "n"), (None, 1)),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), (None, 0)),
    **dict.fromkeys(("function_call", "tool_choice"), (None, "none")),
    **dict.fromkeys(("functions", "tools"), (None, [])),
    **dict.fromkeys(("metadata", "parallel_tool_calls", "prompt_cache_key", "service_tier")),
    **dict.fromkeys(("prompt_cache_retention", "safety_identifier", "store", "user")),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
}
