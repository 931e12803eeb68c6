"""Our methods beside what a user would pick instead: python -m benchmarks.compare --help.

One model, its weights shared with transformers' generate(); the methods answer each question's
first turn one after the other, and who begins rotates, so that drift of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from evaluation.answering import WARMUP_TOKENS, allowed_tokens, synchronize
from evaluation.arguments import (
    Parser,
    add_machine_flags,
    add_warmup_flag,
    run_command,
)
from evaluation.engines import Engine, Models
from evaluation.environment import describe_environment
from evaluation.eval import chosen_questions, list_jobs
from evaluation.methods import METHODS, Method, Options, add_options, find_methods
from evaluation.plots import require_matplotlib, save_figure
from evaluation.questions import Question, sha256
from evaluation.run import say_what_is_ignored
from evaluation.tables import to_terminal, write_text
from evaluation.targets import Target, model_name
from evaluation.traces import write_atomically
from model.logitspec import DecodingResult
from model.logitspec.errors import InputError

from .compare_results import (
    PHASES,
    Record,
    Results,
    check_drawable,
    draw,
    markdown,
    phase_table,
    speed_table,
)
from .measure import add_question_flags


def check_outputs(args: argparse.Namespace) -> None:
    """Raise InputError for a file that could not be written after all the measuring."""
    for flag, path in (("--plot", args.plot), ("--markdown", args.markdown), ("--json", args.json)):
        if path is None:
            continue
        if flag == "--plot" and path.suffix != ".png":
            raise InputError(f"--plot {path} is no .png file; give a name that ends in it")
        if path.is_dir():
            raise InputError(f"{flag} {path} is a folder; give a file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; choose another") from error
    if args.json is not None and args.json.exists():
        raise InputError(
            f"--json {args.json} is there already and is not measured over; move it away, or print "
            "it with --from"
        )
    if args.plot is not None:
        require_matplotlib()


def publish(results: Results, args: argparse.Namespace) -> None:
    """Print the tables and write --markdown and --plot.

    Raises:
        InputError: a file cannot be written.
    """
    print(to_terminal(speed_table(results)))
    print(to_terminal(phase_table(results)), end="", flush=True)
    if args.markdown is not None:
        write_text(args.markdown, markdown(results))
    if args.plot is not None:
        save_figure(draw(results), args.plot)


def choose_methods(
    names: str | None, given: Mapping[str, Any]
) -> tuple[dict[str, tuple[Method, Options]], dict[str, str]]:
    """The methods to measure with their options, and those left out with the reason.

    Args:
        names: of --methods; None for every registered one that can run here.
        given: the options given, by name.

    Raises:
        InputError: a method that is not there or cannot run, one named twice, an option that no
            method knows or that makes no sense.
    """
    left_out: dict[str, str] = {}
    if names is None:
        for name, method in METHODS.items():
            try:
                method.check(method.settings({}))
            except InputError as error:
                left_out[name] = str(error)
        chosen = [method for name, method in METHODS.items() if name not in left_out]
    else:
        chosen = list(find_methods(names).values())
    say_what_is_ignored(chosen, given)
    methods = {method.name: (method, method.settings(given)) for method in chosen}
    for method, options in methods.values():
        method.check(options)
    return methods, left_out


def timed(generate: Callable[[], DecodingResult], device: str) -> tuple[float, DecodingResult]:
    """Seconds from an idle device to an idle device, and the result."""
    synchronize(device)
    start = time.perf_counter()
    result = generate()
    synchronize(device)
    return time.perf_counter() - start, result


def ask(
    engine: Engine, question: Question, prompt_ids: list[int], max_new_tokens: int, device: str
) -> Record:
    """Have one question answered by one method, and note what it took."""
    first_token_seconds = 0.0
    if not engine.splits_time:
        first_token_seconds, _ = timed(lambda: engine.generate(prompt_ids, 1), device)
    seconds, result = timed(lambda: engine.generate(prompt_ids, max_new_tokens), device)
    phases = None
    if engine.splits_time:
        first_token_seconds = result.prefill_seconds
        phases = {phase: float(getattr(result, f"{phase}_seconds")) for phase in PHASES}
    return Record(
        question_id=question.question_id,
        category=question.category,
        prompt_tokens=result.prompt_tokens,
        max_new_tokens=max_new_tokens,
        place=0,
        seconds=seconds,
        tokens=len(result.tokens),
        steps=result.steps,
        tree_nodes=sum(result.tree_sizes) if result.tree_sizes else None,
        first_token_seconds=first_token_seconds,
        phase_seconds=phases,
    )


def measure(
    results: Results,
    engines: Mapping[str, Engine],
    questions: Sequence[Question],
    target: Target,
    args: argparse.Namespace,
) -> None:
    """Ask every question of every method, and add each question's records once it is complete.

    Args:
        results: grows with every question, and --json with it.
        engines: by method.
        questions: their first turns fit the model.
        target: the checkpoint.
        args: --max-new-tokens, --warmup and --json.

    Raises:
        InputError: --json cannot be written.
    """
    for engine in engines.values():
        for _ in range(args.warmup):
            prompt_ids, tokens = first_turn(questions[0], target, args)
            ask(engine, questions[0], prompt_ids, min(tokens, WARMUP_TOKENS), target.device)
        engine.forget()  # no method may meet the question warm
    jobs = list_jobs(questions, {name: set() for name in engines})
    with tqdm(total=len(jobs) * len(engines), unit="answer") as bar:
        for question, order in jobs:
            prompt_ids, tokens = first_turn(question, target, args)
            found: dict[str, Record] = {}
            for place, name in enumerate(order):
                bar.set_postfix_str(f"question {question.question_id}: {name}")
                record = ask(engines[name], question, prompt_ids, tokens, target.device)
                found[name] = replace(record, place=place)
                bar.update()
            results.records = {
                name: [*results.records.get(name, ()), found[name]] for name in engines
            }
            if args.json is not None:
                save(results, args.json)


def save(results: Results, path: Path) -> None:
    try:
        write_atomically(path, results.to_json())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; make room") from error


def first_turn(
    question: Question, target: Target, args: argparse.Namespace
) -> tuple[list[int], int]:
    """A question's prompt ids, and how many new tokens it may get.

    Raises:
        InputError: the prompt leaves no position.
    """
    prompt_ids = target.prompts.start().ask(question.turns[0])
    return prompt_ids, allowed_tokens(question, prompt_ids, target, args)


def run_comparison(args: argparse.Namespace) -> None:
    """Measure what the flags ask for; what is finished is printed however it ends.

    Raises:
        InputError: something asked for is not there; found before the model is loaded if it can be.
    """
    methods, left_out = choose_methods(args.methods, vars(args))
    check_drawable([*methods], args.plot)
    path, questions = chosen_questions(args)
    target = Target.resolve(args)
    for question in questions:
        first_turn(question, target, args)
    environment = describe_environment(target.device)
    results = Results(
        settings={
            "model": model_name(args.model_path),
            "model_fingerprint": target.fingerprint,
            "dtype": str(target.dtype).removeprefix("torch."),
            "device": target.device,
            "device_name": device_name(target.device, environment),
            "kernels": target.kernels.name,
            "cuda_graphs": target.cuda_graphs,
            "template": target.prompts.template,
            "bench_name": args.bench_name,
            "questions": sha256(path),
            "question_begin": args.question_begin,
            "question_end": args.question_end,
            "question_stride": args.question_stride,
            "question_count": len(questions),
            "max_new_tokens": args.max_new_tokens,
            "warmup": args.warmup,
            "methods": {name: options for name, (_, options) in methods.items()},
            "left_out": left_out,
        },
        environment=environment,
    )
    for name, why in left_out.items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    try:
        models = Models(target, shared=True)
        engines = {n: method.engine(models, options) for n, (method, options) in methods.items()}
        measure(results, engines, questions, target, args)
    finally:
        if results.questions:
            publish(results, args)


def device_name(device: str, environment: Mapping[str, Any]) -> str:
    """The processor that a device string means."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return ", ".join(environment["device_names"])


def command(args: argparse.Namespace, parser: Parser) -> None:
    """What main() does once the flags are parsed.

    Raises:
        InputError: bad input.
        SystemExit: 130, for Ctrl-C.
    """
    if args.from_file is None:
        check_outputs(args)
        try:
            run_comparison(args)
        except KeyboardInterrupt:
            kept = f"; {args.json} keeps what is finished" if args.json else ""
            print(f"{parser.prog}: interrupted{kept}", file=sys.stderr)
            raise SystemExit(130) from None
        return
    used = ("from_file", "plot", "markdown")
    unused = [k for k, v in vars(args).items() if k not in used and v != parser.get_default(k)]
    if unused:
        raise InputError(
            f"--{unused[0].replace('_', '-')} means nothing to --from, which measures nothing; "
            "leave it out"
        )
    check_outputs(args)
    results = Results.read(args.from_file)
    check_drawable([*results.records], args.plot)
    publish(results, args)


def build_parser() -> Parser:
    parser = Parser(
        "python -m benchmarks.compare",
        "Methods side by side with transformers' generate(): greedy, first turns, one model.",
    )
    add = parser.add_argument
    add_question_flags(parser)
    add("--methods", metavar="A,B,...", help="of `python -m evaluation.run --list` (default: all)")
    add("--json", type=Path, metavar="FILE", help="all figures, kept up after every question")
    add("--plot", type=Path, metavar="FILE.png", help="a picture; needs the extra `plots`")
    add("--markdown", type=Path, metavar="FILE", help="the tables as Markdown")
    add(
        "--from",
        dest="from_file",
        type=Path,
        metavar="FILE",
        help="measure nothing, print what --json wrote; with --plot and --markdown if wanted",
    )
    add_machine_flags(parser)
    add_warmup_flag(parser)
    add_options(parser, *METHODS.values())
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: command(args, parser))


if __name__ == "__main__":
    sys.exit(main())
