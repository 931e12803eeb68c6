"""Asks an engine questions, one at a time; each gives a trace line, an answer or an error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import shortuuid
import torch

from model.logitspec.decoding import check_lengths
from model.logitspec.errors import InputError, brief
from model.logitspec.listed import Numbers

from ..traces.reading import PHASES, Record
from .engines import Engine
from .prompts import answer_text
from .questions import Question
from .settings import AnswerSettings
from .target import Target

WARMUP_TOKENS = 64
# A question, and the model_ids of the runs that answer it, in this order.
Assignment = tuple[Question, list[str]]


class TraceLine(NamedTuple):
    """A line for the trace of a run."""

    model_id: str
    record: Record  # with choices or an error
    environment: Record | None = None  # of the process that answered; None: of this one
    state: dict[str, Numbers] | None = None  # what the method has learnt; None: not known here


class Broken(InputError):
    """Nothing can be answered in this process any more."""


@dataclass
class Answerer:
    """Asks an engine a question's turns and gives a trace line per question."""

    target: Target
    engine: Engine
    model_id: str
    settings: AnswerSettings

    def answer(self, question: Question) -> Record:
        """Generate all choices of all turns of one question; a line with the error if that fails.

        InputError, which names the question, if it fails and the settings are strict. Broken if
        no further question can be answered in this process.
        """
        try:
            choices = [self._choice(question, index) for index in range(self.settings.num_choices)]
        except Exception as error:  # the run goes on
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            elif "CUDA error" in str(error):  # after which every call fails
                raise Broken(
                    f"question {question.question_id}: {brief(error)}; what is finished is on "
                    "disk, run again, without --overwrite, to go on"
                ) from error
            named = f"question {question.question_id}: "
            reason = why_it_failed(error).removeprefix(named)
            if self.settings.strict:
                raise InputError(f"{named}{reason}") from error
            return trace_line(question, self.model_id, error=reason)
        return trace_line(question, self.model_id, choices=choices)

    def warm_up(self, question: Question, times: int) -> None:
        """Answer a question briefly and unmeasured, so that kernels and memory are in place.

        The method then forgets what it learnt from the question, which is asked again later.
        """
        prompt_ids = self.target.prompts.start().ask(question.turns[0])
        tokens = allowed_tokens(question, prompt_ids, self.target, self.settings)
        with suppress(Exception):  # the error shows when the question is asked
            for _ in range(times):
                self.engine.generate(prompt_ids, min(tokens, WARMUP_TOKENS), self.settings.sampling)
        self.engine.forget()

    def _choice(self, question: Question, index: int) -> Record:
        first = self.settings.sampling
        sampling = replace(first, seed=first.seed + index)
        conversation = self.target.prompts.start()
        choice: Record = {"index": index, "turns": [], "accept_lengths": []}
        for asked in question.turns:
            prompt_ids = conversation.ask(asked)
            max_new_tokens = allowed_tokens(question, prompt_ids, self.target, self.settings)
            synchronize(self.target.device)
            start = time.perf_counter()
            result = self.engine.generate(
                prompt_ids, max_new_tokens, sampling, reuse_prefix=index > 0
            )
            synchronize(self.target.device)
            seconds = time.perf_counter() - start
            text = answer_text(self.target.tokenizer, result.tokens, conversation.stop_strings)
            conversation.answer(text)
            choice["turns"].append(text)
            # one list for all turns, as in the reference
            choice["accept_lengths"] += result.accept_lengths
            per_turn = {
                "decoding_steps": result.steps,
                "new_tokens": len(result.tokens),
                "wall_time": seconds,
                "output_ids": result.tokens,
                "prompt_tokens": result.prompt_tokens,
                "cached_tokens": result.cached_tokens,
                "tree_sizes": result.tree_sizes,
                "step_seconds": [round(seconds, 6) for seconds in result.step_seconds],
                "misses": result.misses,
                "next_next_ranks": result.next_next_ranks,
            }
            for phase in PHASES:
                per_turn[phase] = getattr(result, phase) if self.engine.splits_time else None
            for key, value in per_turn.items():
                choice.setdefault(key, []).append(value)
        return choice


def trace_line(question: Question, model_id: str, **content: Any) -> Record:
    """A line of a trace, with the choices, or with the error of a question that failed."""
    return {
        "question_id": question.question_id,
        "category": question.category,
        "answer_id": shortuuid.uuid(),
        "model_id": model_id,
        **content,
        "tstamp": time.time(),
    }


def why_it_failed(error: Exception) -> str:
    """An exception as the reason in a trace line."""
    if isinstance(error, InputError):
        return str(error)
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if out_of_memory or "can't allocate memory" in str(error):  # as PyTorch says on a CPU
        return (
            "out of memory; it may do with a lower --max-new-tokens (a run of its own) or more "
            "--num-gpus-per-model"
        )
    return brief(error)


def check_prompts(
    questions: Sequence[Question], target: Target, settings: AnswerSettings
) -> list[Question]:
    """The questions whose first turn's prompt is not too long for the model, at least one.

    InputError if all are too long, or one is and the settings are strict.
    """
    fitting, refused = [], []
    for question in questions:
        prompt_ids = target.prompts.start().ask(question.turns[0])
        try:
            allowed_tokens(question, prompt_ids, target, settings)
            fitting.append(question)
        except InputError as error:
            refused.append(str(error))
    if refused and (settings.strict or not fitting):
        raise InputError(refused[0])
    if refused:
        print(
            f"{len(refused)} of {len(questions)} questions cannot be answered, the first is "
            f"{refused[0]}"
        )
    return fitting


def allowed_tokens(
    question: Question, prompt_ids: list[int], target: Target, settings: AnswerSettings
) -> int:
    """How many tokens a turn may generate: --max-new-tokens, or what --cap-new-tokens leaves of it.

    InputError if the prompt and as many tokens exceed the model's positions.
    """
    wanted = settings.max_new_tokens
    if settings.cap_new_tokens:
        wanted = max(1, min(wanted, target.max_positions - len(prompt_ids)))
    try:
        check_lengths(len(prompt_ids), wanted, target.max_positions)
    except InputError as error:
        way_out = "" if settings.cap_new_tokens else "; --cap-new-tokens makes do with what is left"
        raise InputError(f"question {question.question_id}: {error}{way_out}") from error
    return wanted


def synchronize(device: str) -> None:
    """Wait for everything queued on the GPUs in use; nothing to wait for on a CPU."""
    if device == "auto":
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
    elif device != "cpu":
        torch.cuda.synchronize(device)
