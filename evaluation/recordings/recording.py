"""Records a greedy run: the work of `python -m evaluation.record`.

Every question is answered by plain decoding, and the best tokens after every token of prompt and
answer are kept with their log-probabilities (format.py says how). Then draft trees of
`calibrated` go over the same prompt once, for the rows of nodes off the answer, which some methods
learn from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from model.logitspec import CalibratedDrafter, DraftTree, LlamaKVForCausalLM, decode
from model.logitspec.errors import InputError
from model.logitspec.prefill import LOGITS_ROWS, read_in

from ..asking.answering import allowed_tokens, check_prompts
from ..asking.engines import Models
from ..asking.prompts import answer_text
from ..asking.questions import Question, chosen_questions
from ..asking.runs import shared_settings
from ..asking.settings import AnswerSettings, RunSettings
from ..asking.target import Target
from ..command.files import make_folder, write_atomically, writing
from ..traces.sidecars import differing
from .costs import (
    LAST_ROUNDS,
    METER_EVERY,
    ROW_WIDTH,
    StepCostFile,
    measured_rounds,
    model_and_machine,
)
from .format import (
    FORMAT,
    META,
    STEP_COST,
    Ints,
    RecordedQuestion,
    RecordedTurn,
    load_question,
    question_file,
    read_meta,
    save_question,
)


@dataclass(frozen=True)
class RecordingOptions:
    """What is kept of a recorded run."""

    output: Path  # the recording's folder
    top_k: int  # best tokens kept after every token
    tree_rows: int  # nodes of the trees that rows off the answer are recorded from; 0: none


class NodeRows(CalibratedDrafter):
    """Keeps the rows of all nodes of its trees."""

    name = "calibrated"

    def __init__(self, draft_tree_capacity: int) -> None:
        super().__init__(draft_tree_capacity, row_width=ROW_WIDTH)
        self.at: list[tuple[int, int, int]] = []
        self.rows: list[Sequence[int]] = []
        self._ids: list[int] = []

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        super().reset(prompt_ids, top_ids)
        self.at, self.rows, self._ids = [], [], list(prompt_ids)

    def observe(
        self,
        tree: DraftTree,
        path: Sequence[int],
        top_ids: Sequence[Sequence[int]] = (),
        logprobs: Sequence[Sequence[float]] = (),
    ) -> None:
        super().observe(tree, path, top_ids, logprobs)
        for node, token in enumerate(tree.tokens):
            if not top_ids[node]:
                continue  # behind the end of the answer
            before = tree.tokens[tree.parents[node]] if node else self._ids[-1]
            self.at.append((len(self._ids) + tree.depths[node], before, token))
            self.rows.append(top_ids[node])
        self._ids += [tree.tokens[node] for node in path]


@dataclass
class Recorder:
    """Answers questions and keeps what a replay needs."""

    target: Target
    model: LlamaKVForCausalLM
    settings: AnswerSettings
    top_k: int
    drafter: NodeRows | None

    def record(self, question: Question) -> RecordedQuestion:
        conversation = self.target.prompts.start()
        turns = []
        for asked in question.turns:
            prompt_ids = conversation.ask(asked)
            most = allowed_tokens(question, prompt_ids, self.target, self.settings)
            turn = self._turn(prompt_ids, most)
            turns.append(turn)
            ids = turn.output.tolist()
            conversation.answer(answer_text(self.target.tokenizer, ids, conversation.stop_strings))
        return RecordedQuestion(question.question_id, question.category, turns)

    @torch.inference_mode()
    def _turn(self, prompt_ids: list[int], most: int) -> RecordedTurn:
        model = self.model
        cache = model.new_cache(len(prompt_ids) + most)
        start = time.perf_counter()
        x = read_in(model, prompt_ids, cache)
        cache.keep(range(len(prompt_ids)))
        root = int(model.logits(x[-1:]).argmax())
        seconds = time.perf_counter() - start
        # the last row alone, as when the root was chosen: a batch may round differently
        parts = [*torch.split(x[:-1], LOGITS_ROWS), x[-1:]]
        best = [self._best(model.logits(part)) for part in parts if len(part)]
        output: list[int] = []
        itself = torch.ones(1, 1, dtype=torch.bool, device=model.device)
        while True:
            output.append(root)
            position = torch.tensor([cache.length], device=model.device)
            token = torch.tensor([root], device=model.device)
            logits = model(token, position, cache, last_position=cache.length, tree_mask=itself)
            cache.keep([0])
            best.append(self._best(logits))
            if len(output) == most or root in self.target.eos_token_ids:
                break
            root = int(best[-1][0][0, 0])
        ids, logprobs = (np.concatenate(parts) for parts in zip(*best, strict=True))
        nodes: dict[str, Ints] = {}
        if self.drafter is not None:
            eos = self.target.eos_token_ids
            decode(model, prompt_ids, self.drafter, max_new_tokens=most, eos_token_ids=eos)
            nodes["node_at"] = np.array(self.drafter.at, dtype=np.int32)
            nodes["node_ids"] = np.array(self.drafter.rows, dtype=np.int32)
        return RecordedTurn(
            np.array(prompt_ids, dtype=np.int32), np.array(output, dtype=np.int32), ids, logprobs,
            seconds, most, **nodes,
        )  # fmt: skip

    def _best(self, logits: torch.Tensor) -> tuple[Ints, Any]:
        """Best ids and their log-probabilities after each row of logits [n, vocab]."""
        best = logits.float().topk(self.top_k)
        values, ids = best.values.cpu().numpy(), best.indices.cpu().numpy()
        order = np.lexsort((ids, -values))  # equal logits: by token id
        total = logits.float().logsumexp(dim=-1, keepdim=True).cpu().numpy()
        logprobs = np.take_along_axis(values, order, 1) - total
        ids = np.take_along_axis(ids, order, 1)
        ids[:, 0] = logits.max(dim=-1).indices.cpu().numpy()  # as argmax chooses among equal ones
        return ids.astype(np.int32), logprobs.astype(np.float16)


def record(run: RunSettings, options: RecordingOptions) -> None:
    """Record a benchmark's answers into a folder, or go on with a recording there.

    InputError if something asked for is not there, or the folder holds something else.
    """
    folder = options.output
    path, questions = chosen_questions(run.questions)
    target = Target.resolve(run.target)
    settings = shared_settings(run, target, path) | {
        "format": FORMAT,
        "top_k": options.top_k,
        "tree_rows": options.tree_rows,
        "vocab_size": len(target.tokenizer),
        "question_ids": [question.question_id for question in questions],
    }
    environment = target.environment()
    environments = earlier_environments(folder, settings, environment)
    identity = model_and_machine(settings, environment)
    measured_rounds(folder / STEP_COST, identity)
    check_prompts(questions, target, run.answers)
    todo = [q for q in questions if not is_recorded(folder, q)]
    print(
        f"{len(questions) - len(todo)} of {len(questions)} questions are recorded in {folder}; "
        f"{settings['model']}, {settings['dtype']}, {target.device}, {target.kernels} kernels; "
        f"prompts in {target.prompts}"
    )
    model = Models(target, shared=False).kv
    settings["vocab_size"] = vocab = int(model.config.vocab_size)
    if options.top_k > vocab:
        raise InputError(f"--top-k is {options.top_k}, the vocabulary has {vocab} tokens")
    if environment not in environments:
        environments.append(environment)
    make_folder(folder)
    with writing(folder, "choose another"):
        write_atomically(folder / META, {"settings": settings, "environments": environments})
    drafter = NodeRows(options.tree_rows) if options.tree_rows > 1 else None
    recorder = Recorder(target, model, run.answers, options.top_k, drafter)
    costs = StepCostFile(model, folder / STEP_COST, options.top_k, identity)
    start = time.perf_counter()
    tokens = record_questions(folder, todo, recorder, costs)
    if todo or not costs.stored:
        print("measuring what a step costs, for some seconds more")
        costs.measure(LAST_ROUNDS)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(
        f"{tokens} tokens in {time.perf_counter() - start:.0f} s; {folder} holds "
        f"{len(questions)} questions, {size / 2**20:.1f} MiB"
    )


def record_questions(
    folder: Path, questions: Sequence[Question], recorder: Recorder, costs: StepCostFile
) -> int:
    """Record questions, and after some what a step costs; the number of tokens answered."""
    tokens = 0
    for at, question in enumerate(tqdm(questions, unit="question")):
        if at % METER_EVERY == 0:
            costs.measure()
        try:
            recorded = recorder.record(question)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"question {question.question_id}: out of GPU memory; what is finished is on disk, "
                "record into another --output with a lower --max-new-tokens or --tree-rows"
            ) from error
        save_question(folder, recorded)
        tokens += sum(len(turn.output) for turn in recorded.turns)
    return tokens


def earlier_environments(
    folder: Path, settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The environments so far of a recording that is continued.

    InputError if it was made with other settings or on another machine, or is no recording.
    """
    if not (folder / META).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is there and is no recording; choose another --output")
        return []
    meta = read_meta(folder)
    now, before = json.loads(json.dumps(settings)), meta["settings"]
    for key in differing(before, now, sorted((now.keys() | before.keys()) - {"vocab_size"})):
        raise InputError(
            f"{folder} was recorded with {key} {shortened(before.get(key))}, now it is "
            f"{shortened(now.get(key))}; choose another --output"
        )
    for other in meta["environments"]:
        if other.get("device_names") != environment["device_names"]:
            raise InputError(
                f"{folder} was recorded on {other.get('device_names')}, this is "
                f"{environment['device_names']}, and a recording holds what a step costs; "
                "choose another --output"
            )
    return list(meta["environments"])


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_recorded(folder: Path, question: Question) -> bool:
    path = question_file(folder, question.question_id)
    return path.is_file() and load_question(path).question_id == question.question_id
