"""How methods fare behind long prompts: python -m benchmarks.contexts --help.

The prompts are reports of 2,000 to 16,000 tokens that are to be summarized. Each is read once;
then the methods decode behind it in turns. All answers have to be the one-node loop's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from evaluation.asking.answering import allowed_tokens, check_prompts
from evaluation.asking.engines import KVEngine, Models
from evaluation.asking.methods import DrafterMethod, find_methods
from evaluation.asking.questions import load_questions, question_path
from evaluation.asking.settings import AnswerSettings, TargetSettings
from evaluation.asking.target import Target
from evaluation.command.flags import add_machine_flags, read
from evaluation.command.parser import Parser, at_least
from model.logitspec import DecodingResult
from model.logitspec.errors import InputError

from .measure import MODEL, MODEL_KINDS, Results, run_benchmark
from .memory import held

BASE = "vanilla"
METHODS = "vanilla,pld,suffix,recycling,logitspec,calibrated,calibrated@16,calibrated@auto"
COLUMNS = {
    "bench": (13, "{bench}"),
    "tokens": (6, "{prompt_tokens:.0f}"),
    "method": (15, "{method}"),
    "MAT": (6, "{mat:.2f}"),
    "nodes": (6, "{nodes:.1f}"),
    "speed": (6, "{speed:.2f}"),
    "ms a step": (9, "{step_ms:.1f}"),
    "draft": (6, "{draft_ms:.2f}"),
    "verify": (7, "{verify_ms:.1f}"),
    "accept": (7, "{accept_ms:.2f}"),
    "commit": (7, "{commit_ms:.2f}"),
    "equal": (8, "{equal} of {answers}"),
}


@dataclass
class Books:
    """What a method did behind all prompts of a benchmark."""

    engine: KVEngine
    answers: list[DecodingResult] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return sum(answer.steps for answer in self.answers)

    @property
    def cached(self) -> float:
        """Tokens of a prompt that another method had read."""
        return float(np.mean([answer.cached_tokens for answer in self.answers]))

    def per_step(self, phase: str) -> float:
        """Milliseconds of a phase in a step."""
        return 1e3 * float(sum(getattr(answer, phase) for answer in self.answers)) / self.steps


PHASES = ("draft", "build", "verify", "accept", "commit")


def decode_seconds(answer: DecodingResult) -> float:
    """Of all steps, and of what the drafter does with the prompt."""
    return float(sum(getattr(answer, f"{phase}_seconds") for phase in PHASES))


def run(args: argparse.Namespace) -> None:
    """Have every method answer behind every prompt, and print a row for each."""
    methods = find_methods(args.methods)
    if next(iter(methods)) != BASE:
        raise InputError(f"--methods {args.methods}: the first has to be {BASE}, the others follow")
    drafters: dict[str, DrafterMethod] = {}
    for name, method in methods.items():
        if not isinstance(method, DrafterMethod):
            raise InputError(f"--methods: {name} is transformers' own loop; leave it out")
        drafters[name] = method
    target = Target.resolve(read(TargetSettings, args))
    settings = read(AnswerSettings, args, strict=True)
    models = Models(target, shared=False)
    sets = {}
    for name in args.benches:
        questions = load_questions(question_path(name))
        chosen = questions[:: max(1, len(questions) // args.questions)][: args.questions]
        sets[name] = check_prompts(chosen, target, settings)
    results = Results(args, target.device)
    title = "behind long prompts, once they are read: milliseconds of a step, and of its phases"
    table = results.table("contexts", title, COLUMNS)
    for bench, questions in sets.items():
        books = {
            name: Books(KVEngine(models, method.drafter(**method.settings({}))))
            for name, method in drafters.items()
        }
        reading: list[float] = []
        lengths: list[int] = []
        after: list[int] = []  # bytes that the process held after each prompt
        for question in tqdm(questions, desc=bench, unit="prompt"):
            prompt_ids = target.prompts.start().ask(question.turns[0])
            tokens = allowed_tokens(question, prompt_ids, target, settings)
            lengths.append(len(prompt_ids))
            for name, own in books.items():
                answer = own.engine.generate(prompt_ids, tokens, reuse_prefix=True)
                own.answers.append(answer)
                if name == BASE:
                    reading.append(answer.prefill_seconds)
            after.append(held(target.device) or 0)
        base = books[BASE].answers
        for name, own in books.items():
            ratios = [
                decode_seconds(b) / decode_seconds(a)
                for a, b in zip(own.answers, base, strict=True)
            ]
            table.add(
                {
                    "bench": bench,
                    "prompt_tokens": float(np.mean(lengths)),
                    "prefill_seconds": float(np.median(reading)),
                    "method": name,
                    "mat": sum(len(answer.tokens) for answer in own.answers) / own.steps,
                    "nodes": sum(sum(answer.tree_sizes) for answer in own.answers) / own.steps,
                    "speed": float(np.median(ratios)),
                    "step_ms": 1e3 * sum(map(decode_seconds, own.answers)) / own.steps,
                    "draft_ms": own.per_step("draft_seconds"),
                    "verify_ms": own.per_step("build_seconds") + own.per_step("verify_seconds"),
                    "accept_ms": own.per_step("accept_seconds"),
                    "commit_ms": own.per_step("commit_seconds"),
                    "cached_tokens": own.cached,
                    "grown_mib": (after[-1] - after[0]) / 2**20,
                    "equal": sum(
                        a.tokens == b.tokens for a, b in zip(own.answers, base, strict=True)
                    ),
                    "answers": len(base),
                }
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.contexts", "How methods fare behind long prompts.")
    add = parser.add_argument
    add("--model-path", default=MODEL, help=MODEL_KINDS)
    benches = ["govreport_2k", "govreport_4k", "govreport_8k"]
    add("--benches", nargs="+", default=benches, metavar="NAME", help="data/NAME/question.jsonl")
    add("--questions", type=at_least(1), default=5, metavar="N", help="prompts of each")
    add("--max-new-tokens", type=at_least(1), default=128, help="most tokens per answer")
    add("--methods", default=METHODS, metavar="A,B,...", help=f"{BASE}, then others")
    add_machine_flags(parser)
    parser.set_defaults(cap_new_tokens=True, num_choices=1, conv_template=None)
    return run_benchmark(parser, argv, run)


if __name__ == "__main__":
    sys.exit(main())
