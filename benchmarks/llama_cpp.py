"""Tokens per second beside llama.cpp on one GGUF file: python -m benchmarks.llama_cpp --help.

Every engine answers every question, one at a time and in turn: ours in this process, llama.cpp in
processes of their own, with as many threads each.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from data.prepare import GGUF
from evaluation.asking.answering import allowed_tokens
from evaluation.asking.engines import Engine, Models
from evaluation.asking.methods import Method, find_methods
from evaluation.asking.questions import chosen_questions
from evaluation.asking.settings import AnswerSettings, QuestionSettings, TargetSettings
from evaluation.asking.target import Target
from evaluation.command.exits import Incomplete
from evaluation.command.flags import read
from evaluation.command.parser import Parser, at_least
from model.logitspec.errors import InputError, brief

from .llama_server import MODES, Lacking, LlamaServer, find_llama
from .llama_summary import COLUMNS, THEIRS, summary
from .measure import (
    AS_THERE,
    MODEL,
    Columns,
    Figures,
    PrintedTable,
    Results,
    add_question_flags,
    run_benchmark,
)

SUFFIX = ".gguf"
PAUSE = 0.1  # seconds before an answer, for the threads of the engine before it to fall asleep
WARMUP_TOKENS = 32
ROOM = 128  # more tokens of context, for llama.cpp's drafts
ANSWERS: Columns = {
    "engine": (24, "{engine}"),
    "question": (8, "{question}"),
    "prompt": (6, "{prompt_tokens}"),
    "tokens": (6, "{tokens}"),
    "tokens/s": (8, "{speed:.1f}"),
    "others %": (8, "{others:.0%}"),
}
Asked = Callable[[list[int], int], Figures]
Answer = TypeVar("Answer")


def ask_ours(engine: Engine, prompt_ids: list[int], max_new_tokens: int) -> Figures:
    """Tokens and seconds of our engine's answer, as LlamaServer.answer gives them."""
    start = time.perf_counter()
    result = engine.generate(prompt_ids, max_new_tokens)
    return {
        "output_ids": result.tokens,
        "tokens": len(result.tokens),
        "prompt_tokens": len(prompt_ids),
        "prompt_seconds": result.prefill_seconds,
        "seconds": time.perf_counter() - start,
        "drafted": sum(result.tree_sizes) - result.steps,
        "accepted": len(result.tokens) - result.steps,
    }


class Contest:
    """The engines, started once; close them by leaving it as a context.

    An engine that fails is left out from then on, and `failed` says why.

    Args:
        args: of the command.
        target: of our engines.
        context: most tokens of a prompt and its answer.
    """

    def __init__(self, args: argparse.Namespace, target: Target, context: int) -> None:
        self.failed: dict[str, str] = {}
        self.facts: list[Figures] = []
        self._stack = ExitStack()
        self._servers: list[LlamaServer] = []
        self._asked: dict[str, Asked] = {}
        self._forget: dict[str, Callable[[], None]] = {}
        self._args = args
        self._target = target
        self._context = context

    def __enter__(self) -> Contest:
        with self._stack:
            self._start_theirs()
            models = Models(self._target, shared=False)
            for name, method in find_methods(self._args.methods).items():
                self._try(name, partial(self._start_ours, name, models, method))
            self._stack = self._stack.pop_all()
        if not self._asked:
            raise InputError(f"no engine started: {'; '.join(self.failed.values())}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        return list(self._asked)

    def warm_up(self, prompt_ids: list[int]) -> None:
        """Have every engine answer briefly, so that memory and kernels are in place."""
        for name in self.names:
            self.ask(name, prompt_ids, WARMUP_TOKENS)
            if name in self._forget:
                self._forget[name]()  # what our method learnt from it

    def ask(self, name: str, prompt_ids: list[int], max_new_tokens: int) -> Figures | None:
        """An engine's answer, and the share of a core that the others used; None if it failed."""
        time.sleep(PAUSE)
        before, start = self._cpu_seconds(name), time.perf_counter()
        row = self._try(name, partial(self._asked[name], prompt_ids, max_new_tokens))
        if row is not None:
            used = self._cpu_seconds(name) - before
            row["others"] = used / (time.perf_counter() - start)
        return row

    def _cpu_seconds(self, name: str) -> float:
        """Of all processes but that of an engine."""
        theirs = sum(server.cpu_seconds() for server in self._servers if server.name != name)
        return theirs + (time.process_time() if name.startswith(THEIRS) else 0.0)

    def _start_theirs(self) -> None:
        args = self._args
        wanted = list(MODES) if args.modes == ["all"] else args.modes
        for mode in wanted:
            try:
                server = LlamaServer(
                    args.model_path, mode, args.threads, self._context, args.llama_server
                )
            except Lacking as error:
                if args.modes != ["all"]:
                    raise
                print(f"left out: {error}")
                continue
            self._stack.callback(server.close)
            self._servers.append(server)
            self._asked[server.name] = server.answer
            self.facts.append({"engine": server.name, **server.facts})

    def _start_ours(self, name: str, models: Models, method: Method) -> None:
        engine = method.engine(models, method.settings({}))
        self._asked[name] = partial(ask_ours, engine)
        self._forget[name] = engine.forget
        kernels = models.kv.kernels.name
        self.facts.append({"engine": name, "kernels": kernels, "dtype": str(models.kv.dtype)})

    def _try(self, name: str, work: Callable[[], Answer]) -> Answer | None:
        try:
            return work()
        except Exception as error:  # the others go on
            said = str(error) if isinstance(error, InputError) else brief(error)
            self.failed[name] = f"{name}: {said}"
            self._asked.pop(name, None)
            print(f"left out from here: {self.failed[name]}", flush=True)
            return None


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    args.threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(args.threads)
    if not args.model_path.endswith(SUFFIX):
        raise InputError(f"{args.model_path} is no GGUF file, which llama.cpp needs; give one")
    find_methods(args.methods)
    unknown = [mode for mode in args.modes if mode not in (*MODES, "all")]
    if unknown:
        raise InputError(f"--modes {unknown[0]!r} is not known; give all or {', '.join(MODES)}")
    find_llama(args.llama_server)
    target = Target.resolve(read(TargetSettings, args, device="cpu"))
    _, questions = chosen_questions(read(QuestionSettings, args))
    results = Results(args, "cpu", resume=True)
    there = {(row["question"], row["engine"]) for row in results.content.get("answers", ())}
    settings = read(AnswerSettings, args)
    prompts = {q: target.prompts.start().ask(q.turns[0]) for q in questions}
    tokens = {q: allowed_tokens(q, ids, target, settings) for q, ids in prompts.items()}
    context = max(len(ids) + tokens[q] for q, ids in prompts.items()) + ROOM
    with Contest(args, target, context) as contest:
        results.put("engines", contest.facts)
        contest.warm_up(next(iter(prompts.values())))
        title = f"{args.model_path}, {args.threads} threads each"
        table = results.table("answers", title, ANSWERS)
        for number, (question, prompt_ids) in enumerate(prompts.items()):
            names = contest.names
            turn = number % len(names) if names else 0
            for name in (*names[turn:], *names[:turn]):  # nobody is always first
                if (question.question_id, name) in there:
                    continue
                row = contest.ask(name, prompt_ids, tokens[question])
                if row is not None:
                    known = {"engine": name, "question": question.question_id}
                    table.add({**known, **row}, speed=row["tokens"] / row["seconds"])
    show(results.content["answers"], args)
    if contest.failed:
        raise Incomplete(f"not all engines answered: {'; '.join(contest.failed.values())}")


def show(answers: Sequence[Figures], args: argparse.Namespace) -> None:
    rows = summary(answers)
    table = PrintedTable(
        f"{args.bench_name}: tokens/s with the prompt, of all questions and their median, without "
        "the prompt, and the prompt's",
        COLUMNS,
    )
    for row in rows:
        table.add(row)
    print(
        "while one engine answered, the others used at most "
        f"{max(row['others'] for row in answers):.0%} of a core; llama.cpp rounds activations to "
        "8 bits and ours does not, so that answers may differ"
    )


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.llama_cpp",
        "Tokens per second beside llama.cpp, on the same GGUF file; first turns only.",
    )
    add_question_flags(parser)
    parser.set_defaults(model_path=f"{MODEL}/{GGUF}")
    add = parser.add_argument
    add("--methods", default="vanilla,calibrated@auto", metavar="A,B", help="of evaluation.run")
    kinds = f"its speculation, with its own settings: all, or of {', '.join(MODES)}"
    add("--modes", type=lambda text: text.split(","), default="all", metavar="A,B", help=kinds)
    threads = "of each engine (default: as many as PyTorch uses)"
    add("--threads", type=at_least(1), metavar="N", help=threads)
    add("--llama-server", type=Path, metavar="FILE", help="a build of your own, not xllamacpp")
    add("--dtype", default="auto", help=f"of ours, {AS_THERE}")
    add("--cpu-kernels", default="auto", help=f"of ours, {AS_THERE}")
    return run_benchmark(parser, argv, report)


if __name__ == "__main__":
    sys.exit(main())
