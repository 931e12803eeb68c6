"""run_eval: questions in, trace out. Every inference script ends here with its engine."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import shortuuid
import torch
from tqdm import tqdm

from model.logitspec.decoding import DecodingResult, check_lengths
from model.logitspec.errors import InputError

from .arguments import answer_path, check_slice
from .environment import describe_environment
from .prompts import answer_text
from .questions import Question, load_questions, question_path, sha256
from .targets import Target, model_name
from .traces import PHASES, Record, TraceWriter

WARMUP_TOKENS = 64


class Engine(Protocol):
    """A loaded model and a way to decode with it."""

    splits_time: bool  # whether the phases of its results are measured

    def generate(self, prompt_ids: list[int], max_new_tokens: int) -> DecodingResult:
        """Answer one prompt."""


class Answerer:
    """Asks an engine a question's turns and keeps the books: one trace line per question.

    Args:
        target: the checkpoint.
        engine: decodes with it.
        args: the shared flags.
    """

    def __init__(self, target: Target, engine: Engine, args: argparse.Namespace) -> None:
        self.target = target
        self.engine = engine
        self.args = args

    def answer(self, question: Question) -> Record:
        """Generate all choices of all turns of one question.

        Raises:
            InputError: a prompt is too long for the model (the question is named).
        """
        return {
            "question_id": question.question_id,
            "category": question.category,
            "answer_id": shortuuid.uuid(),
            "model_id": self.args.model_id,
            "choices": [self._choice(question, index) for index in range(self.args.num_choices)],
            "tstamp": time.time(),
        }

    def warm_up(self, question: Question, times: int) -> None:
        """Answer a question unmeasured and briefly, so that kernels and memory are in place."""
        prompt_ids = self.target.prompts.start().ask(question.turns[0])
        for _ in range(times):
            self.engine.generate(prompt_ids, min(self.args.max_new_tokens, WARMUP_TOKENS))

    def _choice(self, question: Question, index: int) -> Record:
        torch.manual_seed(self.args.seed + index)
        conversation = self.target.prompts.start()
        choice: Record = {"index": index, "turns": [], "accept_lengths": []}
        for asked in question.turns:
            prompt_ids = conversation.ask(asked)
            max_new_tokens = allowed_tokens(question, prompt_ids, self.target, self.args)
            synchronize(self.target.device)
            start = time.perf_counter()
            try:
                result = self.engine.generate(prompt_ids, max_new_tokens)
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"question {question.question_id}: out of GPU memory with a prompt of "
                    f"{len(prompt_ids)} tokens; what is finished is on disk, start a run of "
                    "another --model-id with a lower --max-new-tokens or more --num-gpus-per-model"
                ) from error
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
                "tree_sizes": result.tree_sizes,
            }
            for phase in PHASES:
                per_turn[phase] = getattr(result, phase) if self.engine.splits_time else None
            for key, value in per_turn.items():
                choice.setdefault(key, []).append(value)
        return choice


def allowed_tokens(
    question: Question, prompt_ids: list[int], target: Target, args: argparse.Namespace
) -> int:
    """How many tokens a turn may generate: --max-new-tokens, or what --cap-new-tokens leaves of it.

    Raises:
        InputError: the prompt and as many tokens exceed the model's positions.
    """
    wanted = int(args.max_new_tokens)
    if args.cap_new_tokens:
        wanted = max(1, min(wanted, target.max_positions - len(prompt_ids)))
    try:
        check_lengths(len(prompt_ids), wanted, target.max_positions)
    except InputError as error:
        way_out = "" if args.cap_new_tokens else "; --cap-new-tokens makes do with what is left"
        raise InputError(f"question {question.question_id}: {error}{way_out}") from error
    return wanted


def synchronize(device: str) -> None:
    """Wait for everything queued on the GPUs in use; nothing to wait for on a CPU."""
    if device == "auto":
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
    elif device != "cpu":
        torch.cuda.synchronize(device)


def run_eval(
    args: argparse.Namespace,
    method: str,
    build_engine: Callable[[Target], Engine],
    options: dict[str, Any] | None = None,
) -> None:
    """Answer a benchmark's questions and write the trace; what the trace already holds is skipped.

    Args:
        args: the shared flags, from arguments.inference_parser.
        method: its name, for the sidecar.
        build_engine: loads the weights and gives the engine.
        options: the method's own settings, for the sidecar.

    Raises:
        InputError: something asked for is not there; found before the model is loaded if it can be.
    """
    if args.temperature != 0:
        raise InputError(
            f"temperature {args.temperature:g} is not supported; decoding is greedy: give 0"
        )
    workers = count_workers(args)
    path = question_path(args.bench_name)
    questions = load_questions(path)
    questions = questions[check_slice(args.question_begin, args.question_end, questions, path)]
    target = Target.resolve(args)
    for question in questions:
        prompt_ids = target.prompts.start().ask(question.turns[0])
        allowed_tokens(question, prompt_ids, target, args)
    settings = {"method": method, **(options or {}), **run_settings(args, target, path)}
    environment = describe_environment(target.device) | {"model_path": args.model_path}
    answer_file = answer_path(args.answer_file, args.bench_name, args.model_id)
    if answer_file.resolve() == path.resolve():
        raise InputError(f"the answer file {answer_file} is the question file; choose another")
    writer = TraceWriter(answer_file, settings, environment, overwrite=args.overwrite)
    done = set(writer.done)
    todo = [question for question in questions if question.question_id not in done]
    print(
        f"{method} on {args.bench_name}: {settings['model']}, {settings['dtype']}, "
        f"{target.device}; prompts in {target.prompts}\n"
        f"{len(todo)} of {len(questions)} questions to answer, into {answer_file}"
    )

    def build_answerer() -> Answerer:
        answerer = Answerer(target, build_engine(target), args)
        answerer.warm_up(questions[0], args.warmup)
        return answerer

    if todo:
        with closing(answer_all(build_answerer, todo, workers, args)) as records:
            write_with_progress(records, writer, len(todo))


def run_settings(args: argparse.Namespace, target: Target, questions: Path) -> dict[str, Any]:
    """Everything but the method's own options that an answer depends on."""
    return {
        "model": model_name(args.model_path),
        "model_fingerprint": target.fingerprint,
        "model_id": args.model_id,
        "bench_name": args.bench_name,
        "questions": sha256(questions),
        "template": target.prompts.template,
        "max_new_tokens": args.max_new_tokens,
        "num_choices": args.num_choices,
        "temperature": args.temperature,
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": "cpu" if target.device == "cpu" else "cuda",
        "num_gpus_per_model": args.num_gpus_per_model,
        "seed": args.seed,
    }


def answer_all(
    build_answerer: Callable[[], Answerer],
    questions: list[Question],
    workers: int,
    args: argparse.Namespace,
) -> Generator[Record, None, None]:
    """Answer the questions as they are asked for: here, with a model loaded now, or in workers."""
    if workers > 1:
        from .sharding import answer_in_workers

        return answer_in_workers(
            build_answerer, questions, workers, gpus_per_worker=args.num_gpus_per_model
        )
    answerer = build_answerer()
    return (answerer.answer(question) for question in questions)


def count_workers(args: argparse.Namespace) -> int:
    """How many copies of the model --num-gpus-total asks for; one if it is not given."""
    per_model = args.num_gpus_per_model
    total = args.num_gpus_total or per_model
    if total % per_model:
        raise InputError(
            f"--num-gpus-total {total} is no multiple of --num-gpus-per-model {per_model}"
        )
    workers = int(total // per_model)
    if workers > 1 and args.device not in ("auto", "cuda"):
        raise InputError(
            f"--num-gpus-total {total} asks for {workers} copies of the model, "
            f"--device {args.device} has room for one; use --device cuda"
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if workers > 1 and total > gpus:
        raise InputError(
            f"--num-gpus-total is {total}, torch sees {gpus} GPU(s) here; ask for no more than that"
        )
    return workers


def write_with_progress(records: Iterable[Record], writer: TraceWriter, count: int) -> None:
    """Write each record as it comes, with the running MAT and speed on the progress bar."""
    accept_lengths: list[int] = []
    speeds: list[float] = []
    with tqdm(records, total=count, unit="question") as bar:
        for record in bar:
            writer.write(record)
            choice = record["choices"][0]
            accept_lengths += choice["accept_lengths"]
            speeds.append(sum(choice["new_tokens"]) / sum(choice["wall_time"]))
            bar.set_postfix_str(
                f"MAT {np.mean(accept_lengths):.2f}, {np.mean(speeds):.1f} tokens/s"
            )
    print(f"mean accepted tokens {np.mean(accept_lengths):.3f}, {np.mean(speeds):.2f} tokens/s")
