"""Log-probabilities of answers of evaluation.serve."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import torch

from evaluation.chatting.chat import Chat
from model.logitspec import Sampling, VanillaDrafter, decode

from .serving import HELLO


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_the_targets(
    client: openai.OpenAI, chat: Chat, temperature: float, stream: bool
) -> None:
    """Those that a forward over prompt and answer gives, whatever was drafted."""
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 24, "seed": 4}
    asked |= {"temperature": temperature}
    plain = client.chat.completions.create(**asked).choices[0].message.content
    asked |= {"logprobs": True, "top_logprobs": 3}
    if stream:
        chunks = list(client.chat.completions.create(**asked, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        known = [chunk.choices[0].logprobs for chunk in chunks]
        entries = [entry for one in known if one is not None for entry in one.content or ()]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
        text, entries = choice.message.content or "", choice.logprobs.content or []
    assert text == plain
    assert "".join(entry.token for entry in entries) == text
    ids, eos = chat.prompt(HELLO), chat.target.eos_token_ids
    chooser = Sampling(temperature, seed=4).chooser(ids[:-1])
    result = decode(
        chat.model, ids, VanillaDrafter(), max_new_tokens=24, eos_token_ids=eos, chooser=chooser
    )
    answer = [token for token in result.tokens if token not in eos]
    assert [chat.target.tokenizer.decode(token) for token in answer] == [e.token for e in entries]
    with chat.model.cache(len(ids) + len(answer)) as cache:
        whole = torch.tensor([*ids, *answer])
        positions = torch.arange(len(whole))
        logits = chat.model(whole, positions, cache, last_position=len(whole) - 1)
    logs = logits.log_softmax(dim=-1)[len(ids) - 1 : -1]
    for row, token, entry in zip(logs, answer, entries, strict=True):
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
        best = row.topk(3).values.tolist()
        assert [one.logprob for one in entry.top_logprobs] == pytest.approx(best, abs=1e-4)
        assert entry.bytes == list(entry.token.encode())


def test_log_probabilities_of_completions(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "The sea", "max_tokens": 12}
    choice = client.completions.create(**asked, temperature=0, logprobs=2).choices[0]
    known = choice.logprobs
    assert known is not None and known.tokens and "".join(known.tokens) == choice.text
    assert known.text_offset == [len("".join(known.tokens[:i])) for i in range(len(known.tokens))]
    for token, logprob, best in zip(
        known.tokens, known.token_logprobs or (), known.top_logprobs or (), strict=True
    ):
        assert logprob <= 0 and best[token] == max(best.values()) == logprob
    assert client.completions.create(**asked).choices[0].logprobs is None
