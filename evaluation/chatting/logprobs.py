"""Log-probabilities of an answer in the two forms of OpenAI's API."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from model.logitspec.scoring import Scored


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

    def of(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """The field `logprobs` of a choice that holds these tokens."""
        shown = [one for one in scored if one.token not in self._eos]
        if not self._raw:
            return {"content": [self._entry(one) for one in shown], "refusal": None}
        found: dict[str, Any] = {
            "tokens": [self._text(one.token) for one in shown],
            "token_logprobs": [one.logprob for one in shown],
            "top_logprobs": [{self._text(t): log for t, log in one.best} for one in shown],
            "text_offset": [],
        }
        for text in found["tokens"]:
            found["text_offset"].append(self._offset)
            self._offset += len(text)
        return found

    def _entry(self, one: Scored) -> dict[str, Any]:
        best = [self._named(token, logprob) for token, logprob in one.best]
        return {**self._named(one.token, one.logprob), "top_logprobs": best}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        whole = "\ufffd" not in text  # else a part of a character
        return {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode()) if whole else None,
        }

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))
