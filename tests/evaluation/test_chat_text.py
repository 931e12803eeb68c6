"""The text of an answer: pieces while it is streamed, and all of it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from evaluation.chatting.chat import Text


class Characters:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize("stop", [[], ["STOP"], ["x", "STOP"]])
def test_text_holds_back_what_may_change(stop: list[str]) -> None:
    text = Text(Characters(), stop)
    given = ""
    for byte in "äS€STO STOP more".encode():
        ended = text.push(byte)
        new = text.take()
        assert "\ufffd" not in new
        given += new
        if ended:
            break
    given += text.take(last=True)
    assert given == ("äS€STO " if stop else "äS€STO STOP more")
    assert text.stopped is bool(stop)


class Stripping:
    """As Llama's: a blank before each word but a text's first; 0 and 1 are special."""

    def __init__(self) -> None:
        vocabulary = {"<unk>": 0, "<s>": 1, "▁": 2, "▁A": 3, "▁B": 4, "C": 5}
        vocabulary |= {f"<0x{byte:02X}>": 6 + byte for byte in range(256)}
        merges: list[tuple[str, str]] = []
        model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)
        self.tokenizer = Tokenizer(model)
        self.tokenizer.add_special_tokens(["<unk>", "<s>"])
        self.tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )  # fmt: skip

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def test_pieces_keep_the_blanks_behind_tokens_without_text() -> None:
    rng = random.Random(1)
    tokenizer = Stripping()
    euro = [6 + byte for byte in "€".encode()]
    for _ in range(300):
        ids = [rng.choice([0, 1, 2, 3, 4, 5]) for _ in range(12)]
        ids[4:4] = euro
        text = Text(tokenizer)
        given = ""
        for token in ids:
            text.push(token)
            given += text.take()
        assert given + text.take(last=True) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("before", [0, 1, 5])
def test_pieces_are_the_text_of_all_tokens(default_tokenizer: Any, before: int) -> None:
    """Random tokens, special ones and halves of characters among them, decoded a few at a time."""
    rng = random.Random(before)
    longest = 0

    class Counting:
        def decode(self, ids: list[int], **options: Any) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return str(default_tokenizer.decode(ids, **options))

    euro = default_tokenizer("€ 😀 ä").input_ids
    for _ in range(20):
        ids = [rng.randrange(len(default_tokenizer)) for _ in range(60)]
        ids[20:20] = ids[45:45] = euro
        text = Text(Counting(), before=ids[:before])
        given = ""
        for token in ids[before:]:
            text.push(token)
            given += text.take()
        given += text.take(last=True)
        whole = default_tokenizer.decode(ids, skip_special_tokens=True)
        start = default_tokenizer.decode(ids[:before], skip_special_tokens=True)
        assert given == whole[len(start.rstrip("\ufffd")) :]
    assert longest < 20


class Words:
    """A tokenizer that drops the first blank of a text, as SentencePiece ones do."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(f" {number}" for number in ids)[1:]


def test_a_continuation_keeps_its_first_blank() -> None:
    for before, wanted in (((), "3 4"), ((1, 2), " 3 4")):
        text = Text(Words(), before=before)
        text.push(3)
        given = text.take()
        text.push(4)
        assert given + text.take(last=True) == wanted
