"""Log-probabilities of an answer in the two forms of OpenAI's API."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from model.logitspec.scoring import Scored

from .chat import HALF


class Logprobs:
    """What a request wants to know of its answer's tokens.

    Args:
        tokenizer: of the target.
        eos_token_ids: end an answer and are no part of it.
        raw: in the form of completions, not of chats.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: Collection[int], *, raw: bool) -> None:
        self._tokenizer = tokenizer
        self._eos = eos_token_ids
        self._raw = raw
        self._offset = 0  # characters of the tokens so far
        self._before = tokenizer("a", add_special_tokens=False).input_ids[-1]

    def of(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """The field `logprobs` of a choice that holds these tokens."""
        shown = [one for one in scored if one.token not in self._eos]
        if not self._raw:
            return {"content": [self._entry(one) for one in shown], "refusal": None}
        found: dict[str, Any] = {
            "tokens": [self._text(one.token) for one in shown],
            "token_logprobs": [one.logprob for one in shown],
            "top_logprobs": [self._best(one) for one in shown],
            "text_offset": [],
        }
        for text in found["tokens"]:
            found["text_offset"].append(self._offset)
            self._offset += len(text)
        return found

    def _best(self, one: Scored) -> dict[str, float]:
        """Of tokens whose text is the same, the first."""
        found: dict[str, float] = {}
        for token, logprob in one.best:
            found.setdefault(self._text(token), logprob)
        return found

    def _entry(self, one: Scored) -> dict[str, Any]:
        best = [self._named(token, logprob) for token, logprob in one.best]
        return {**self._named(one.token, one.logprob), "top_logprobs": best}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text, whole = self._decoded(token)
        return {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode()) if whole else None,
        }

    def _text(self, token: int) -> str:
        return self._decoded(token)[0]

    def _decoded(self, token: int) -> tuple[str, bool]:
        """A token's text, and whether it is one; of a part of a character its vocabulary entry.

        It is decoded behind another token: some tokenizers drop a text's first blank.
        """
        text = str(self._tokenizer.decode([self._before, token]))
        text = text.removeprefix(str(self._tokenizer.decode([self._before])))
        if HALF in text:
            return str(self._tokenizer.convert_ids_to_tokens(token)), False
        return text, True
