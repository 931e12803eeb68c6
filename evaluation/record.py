"""Record a greedy run for replay.py: python -m evaluation.record --help.

Every question is answered by plain decoding, and the best tokens after every token of prompt and
answer are kept with their log-probabilities (recordings.py has the format). Then draft trees of
`calibrated` go over the same prompt once, for the rows of nodes off the answer, which some methods
learn from.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from model.logitspec import CalibratedDrafter, DraftTree, LlamaKVForCausalLM, decode
from model.logitspec.decoding import PREFILL_LOGITS, read_in
from model.logitspec.errors import InputError
from model.logitspec.sampling import Sampling

from .asking.answering import allowed_tokens, check_prompts
from .asking.engines import Models
from .asking.prompts import answer_text
from .asking.questions import Question, chosen_questions
from .asking.runs import run_settings
from .asking.target import Target
from .command.exits import run_command
from .command.files import write_atomically
from .command.flags import add_machine_flags, add_slice_flags
from .command.parser import Parser, at_least, plain_name
from .recordings.costs import (
    METER_EVERY,
    ROW_WIDTH,
    StepCosts,
    measured_rounds,
    what_is_measured,
)
from .recordings.format import (
    FORMAT,
    META,
    STEP_COST,
    SUCCESSORS,
    Ints,
    RecordedQuestion,
    RecordedTurn,
    load_question,
    question_file,
    read_meta,
    save_arrays,
    save_question,
)
from .traces.environment import describe_run
from .traces.sidecars import differing


class NodeRows(CalibratedDrafter):
    """Notes the rows of all nodes of its trees."""

    name = "calibrated"

    def __init__(self, draft_tree_capacity: int, vocabulary_rows: int) -> None:
        super().__init__(draft_tree_capacity, row_width=ROW_WIDTH, vocabulary_rows=vocabulary_rows)
        self.at: list[tuple[int, int, int]] = []
        self.rows: list[Sequence[int]] = []
        self._ids: list[int] = []

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        super().reset(prompt_ids, top_ids)
        self.at, self.rows, self._ids = [], [], list(prompt_ids)

    def observe(
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        super().observe(tree, path, top_ids)
        for node, token in enumerate(tree.tokens):
            before = tree.tokens[tree.parents[node]] if node else self._ids[-1]
            self.at.append((len(self._ids) + tree.depths[node], before, token))
            self.rows.append(top_ids[node])
        self._ids += [tree.tokens[node] for node in path]


class Recorder:
    """Answers questions and keeps what replay needs.

    Args:
        target: the checkpoint.
        model: it, loaded.
        args: the flags.
    """

    def __init__(self, target: Target, model: LlamaKVForCausalLM, args: argparse.Namespace) -> None:
        self._target = target
        self._model = model
        self._args = args
        self._drafter = (
            NodeRows(args.tree_rows, args.vocabulary_rows) if args.tree_rows > 1 else None
        )

    def record(self, question: Question) -> RecordedQuestion:
        conversation = self._target.prompts.start()
        turns = []
        for asked in question.turns:
            prompt_ids = conversation.ask(asked)
            most = allowed_tokens(question, prompt_ids, self._target, self._args)
            turn = self._turn(prompt_ids, most)
            turns.append(turn)
            text = answer_text(
                self._target.tokenizer, turn.output.tolist(), conversation.stop_strings
            )
            conversation.answer(text)
        return RecordedQuestion(question.question_id, question.category, turns)

    @torch.inference_mode()
    def _turn(self, prompt_ids: list[int], most: int) -> RecordedTurn:
        model = self._model
        cache = model.new_cache(len(prompt_ids) + most)
        start = time.perf_counter()
        x = read_in(model, prompt_ids, cache)
        cache.keep(range(len(prompt_ids)))
        root = int(model.logits(x[-1:]).argmax())
        seconds = time.perf_counter() - start
        # the last row alone, as it was computed to choose the root: a batch may round otherwise
        parts = [*torch.split(x[:-1], PREFILL_LOGITS), x[-1:]]
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
            if len(output) == most or root in self._target.eos_token_ids:
                break
            root = int(best[-1][0][0, 0])
        ids, logprobs = (np.concatenate(parts) for parts in zip(*best, strict=True))
        nodes: dict[str, Ints] = {}
        if self._drafter is not None:
            decode(
                model, prompt_ids, self._drafter, max_new_tokens=most,
                eos_token_ids=self._target.eos_token_ids,
            )  # fmt: skip
            nodes["node_at"] = np.array(self._drafter.at, dtype=np.int32)
            nodes["node_ids"] = np.array(self._drafter.rows, dtype=np.int32)
        return RecordedTurn(
            np.array(prompt_ids, dtype=np.int32), np.array(output, dtype=np.int32), ids, logprobs,
            seconds, most, **nodes,
        )  # fmt: skip

    def _best(self, logits: torch.Tensor) -> tuple[Ints, Any]:
        """Best ids and their log-probabilities after each row of logits [n, vocab]."""
        best = logits.float().topk(self._args.top_k)
        values, ids = best.values.cpu().numpy(), best.indices.cpu().numpy()
        order = np.lexsort((ids, -values))  # of equal logits the first token first
        total = logits.float().logsumexp(dim=-1, keepdim=True).cpu().numpy()
        logprobs = np.take_along_axis(values, order, 1) - total
        ids = np.take_along_axis(ids, order, 1)
        ids[:, 0] = logits.max(dim=-1).indices.cpu().numpy()  # the first, however many are equal
        return ids.astype(np.int32), logprobs.astype(np.float16)


def record(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    folder = args.output
    path, questions = chosen_questions(args)
    target = Target.resolve(args)
    settings = run_settings(args, target, path, Sampling()) | {
        "format": FORMAT,
        "top_k": args.top_k,
        "tree_rows": args.tree_rows,
        "vocabulary_rows": args.vocabulary_rows,
        "vocab_size": len(target.tokenizer),
        "question_ids": [question.question_id for question in questions],
    }
    environment = describe_run(target)
    environments = check_folder(folder, settings)
    check_machine(folder, environment, environments)
    made = what_is_measured(settings, environment)
    measured_rounds(folder / STEP_COST, made)
    check_prompts(questions, target, args)
    todo = [q for q in questions if not is_recorded(folder, q)]
    print(
        f"{len(questions) - len(todo)} of {len(questions)} questions are recorded in {folder}; "
        f"{settings['model']}, {settings['dtype']}, {target.device}, {target.kernels} kernels; "
        f"prompts in {target.prompts}"
    )
    model = Models(target, shared=False).kv
    settings["vocab_size"] = vocab = int(model.config.vocab_size)
    if args.top_k > vocab:
        raise InputError(f"--top-k is {args.top_k}, the vocabulary has {vocab} tokens")
    if environment not in environments:
        environments.append(environment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / META, {"settings": settings, "environments": environments})
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; choose another") from error
    width = min(ROW_WIDTH, vocab)
    rows = model.successors(args.vocabulary_rows, width) if args.vocabulary_rows else []
    save_arrays(folder / SUCCESSORS, {"rows": np.array(rows, dtype=np.int32).reshape(-1, width)})
    recorder = Recorder(target, model, args)
    costs = StepCosts(model, folder / STEP_COST, args.top_k, made)
    start, tokens = time.perf_counter(), 0
    for at, question in enumerate(tqdm(todo, unit="question")):
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
    if not costs.stored:  # as when all was recorded before, and the file was lost
        for _ in range(METER_EVERY):
            costs.measure()
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(
        f"{tokens} tokens in {time.perf_counter() - start:.0f} s; {folder} holds "
        f"{len(questions)} questions, {size / 2**20:.1f} MiB"
    )


def check_machine(
    folder: Path, environment: Mapping[str, Any], before: Sequence[Mapping[str, Any]]
) -> None:
    """Raise InputError if a recording that is gone on with was begun on another machine."""
    for other in before:
        if other.get("device_names") != environment["device_names"]:
            raise InputError(
                f"{folder} was recorded on {other.get('device_names')}, this is "
                f"{environment['device_names']}, and a recording holds what a step costs; "
                "choose another --output"
            )


def check_folder(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Environments so far of a recording that is to be gone on with.

    Raises:
        InputError: it was made with other settings, or the folder holds something else.
    """
    if not folder.exists():
        return []
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / META).is_file()):
        raise InputError(f"{folder} is there and is no recording; choose another --output")
    if not (folder / META).is_file():
        return []
    meta = read_meta(folder)
    now, before = json.loads(json.dumps(settings)), meta["settings"]
    for key in differing(before, now, sorted((now.keys() | before.keys()) - {"vocab_size"})):
        raise InputError(
            f"{folder} was recorded with {key} {brief_value(before.get(key))}, now it is "
            f"{brief_value(now.get(key))}; choose another --output"
        )
    return list(meta["environments"])


def brief_value(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_recorded(folder: Path, question: Question) -> bool:
    path = question_file(folder, question.question_id)
    return path.is_file() and load_question(path).question_id == question.question_id


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m evaluation.record", "Record a greedy run for evaluation.replay.")
    add = parser.add_argument
    add(
        "--model-path", required=True, help="checkpoint: a local directory, a hub id or a GGUF file"
    )
    add("--bench-name", default="spec_bench", type=plain_name, help="data/NAME/question.jsonl")
    add("--output", required=True, type=Path, metavar="DIR", help="the recording; gone on with")
    add("--top-k", type=at_least(1, 4096), default=64, metavar="K", help="best tokens kept")
    add(
        "--tree-rows", type=at_least(0, 4096), default=64, metavar="C",
        help="nodes of the trees that rows off the answer are recorded from; 0: none",
    )  # fmt: skip
    add(
        "--vocabulary-rows", type=at_least(0), default=16384, metavar="N",
        help="token ids whose best successors are recorded, for the method calibrated",
    )  # fmt: skip
    add_slice_flags(parser)
    add("--max-new-tokens", type=at_least(1), default=128, help="most tokens per turn")
    add("--cap-new-tokens", action="store_true", help="as in the inference scripts")
    add("--conv-template", metavar="NAME", help="as in the inference scripts")
    add_machine_flags(parser)
    parser.set_defaults(num_choices=1, strict=True)
    args = parser.parse_args(argv)
    return run_command(
        parser.prog, lambda: record(args), "interrupted; what is finished is on disk: run again"
    )


if __name__ == "__main__":
    sys.exit(main())
