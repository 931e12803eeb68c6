"""Accept lengths against the public reference implementation's, step by step, on the real model.

golden/reference_traces.jsonl was recorded from that implementation (github.com/smart-lty/LogitSpec,
commit 659bba9; float32, greedy, on a CPU) with its defaults and two other settings. It may run past
max_new_tokens and past EOS inside its last step, so the last accept length may be larger than ours.

Each trace is followed for 32 tokens; FULL=1 follows it to its end (minutes on two cores).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from evaluation.asking.prompts import PromptFormat
from evaluation.asking.questions import load_questions
from model.logitspec import LlamaKVForCausalLM, LogitSpecDrafter, decode

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "reference_traces.jsonl"
TRACES = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
EOS = 2


def name(trace: dict[str, Any]) -> str:
    knobs = ("max_ngram_size", "num_pred_tokens", "draft_tree_capacity")
    return "-".join(str(trace[key]) for key in ("bench", "question_id", *knobs))


@pytest.mark.parametrize("trace", TRACES, ids=name)
def test_tokens_and_accept_lengths_are_the_references(
    trace: dict[str, Any], either_model: LlamaKVForCausalLM
) -> None:
    limit = trace["max_new_tokens"] if os.environ.get("FULL") else 32
    drafter = LogitSpecDrafter(
        trace["max_ngram_size"], trace["num_pred_tokens"], trace["draft_tree_capacity"]
    )
    result = decode(
        either_model, trace["prompt_ids"], drafter, max_new_tokens=limit, eos_token_ids=[EOS]
    )

    expected = trace["output_ids"][:limit]
    if EOS in expected:
        expected = expected[: expected.index(EOS) + 1]
    assert result.tokens == expected
    theirs = trace["accept_lengths"][: result.steps]
    assert result.accept_lengths[:-1] == theirs[:-1]
    assert result.accept_lengths[-1] <= theirs[-1]
    if len(result.tokens) < limit or limit == trace["max_new_tokens"]:
        assert result.steps == trace["steps"]


@pytest.mark.parametrize("bench", sorted({trace["bench"] for trace in TRACES}))
def test_prompts_of_the_published_questions_are_the_references(
    bench: str, default_tokenizer: Any
) -> None:
    path = ROOT / "data" / bench / "question.jsonl"
    if not path.exists():
        pytest.skip(f"needs the questions: python -m data.prepare {bench}")
    questions = {question.question_id: question for question in load_questions(path)}
    template = PromptFormat("smollm2-135m-instruct", default_tokenizer)
    for trace in TRACES:
        if trace["bench"] == bench:
            question = questions[trace["question_id"]]
            assert template.start().ask(question.turns[0]) == trace["prompt_ids"]
