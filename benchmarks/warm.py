"""What it is worth to begin with what was learnt before: python -m benchmarks.warm --help.

Of each benchmark some questions teach and others are asked: by `calibrated` that begins cold, with
what the teaching questions left, and with what those of another kind of task left.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from evaluation.asking.answering import Answerer
from evaluation.asking.engines import KVEngine, Models
from evaluation.asking.questions import Question, load_questions, question_path
from evaluation.asking.settings import AnswerSettings, TargetSettings
from evaluation.asking.target import Target
from evaluation.command.flags import add_machine_flags, read
from evaluation.command.parser import Parser, at_least
from model.logitspec import CalibratedDrafter
from model.logitspec.errors import InputError
from model.logitspec.listed import Numbers

from .measure import MODEL, MODEL_KINDS, Results, run_benchmark

FIRST = 200  # tokens of a run that are told apart from those after them
COLUMNS = {
    "benchmark": (12, "{bench}"),
    "begins": (18, "{begins}"),
    f"MAT, first {FIRST}": (15, "{early:.2f}"),
    "after": (6, "{late:.2f}"),
    "all": (6, "{mat:.2f}"),
    "all ÷ cold": (10, "{gain:.3f}"),
    "after ÷ cold": (12, "{late_gain:.3f}"),
    "equal answers": (14, "{equal} of {answers}"),
}


@dataclass
class Answers:
    """What one drafter answered: texts, and the accept lengths of all steps in their order."""

    texts: list[Any] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def mats(self) -> tuple[float, float, float]:
        """MAT of the first FIRST tokens, of the others, of all; InputError if there are fewer."""
        tokens = steps = 0
        while tokens < FIRST and steps < len(self.lengths):
            tokens += self.lengths[steps]
            steps += 1
        late = self.lengths[steps:]
        if not late:
            raise InputError(f"the answers have {tokens} tokens; ask more --questions")
        whole = sum(self.lengths) / len(self.lengths)
        return tokens / steps, sum(late) / len(late), whole


def halves(questions: Sequence[Question], count: int, bench: str) -> list[list[Question]]:
    """Twice so many questions, spread over all: those that teach, and those that are asked."""
    if len(questions) < 2 * count:
        raise InputError(
            f"{bench} has {len(questions)} questions, and --questions {count} takes twice as many"
        )
    chosen = [questions[i * len(questions) // (2 * count)] for i in range(2 * count)]
    return [chosen[::2], chosen[1::2]]


def run(args: argparse.Namespace) -> None:
    """Teach, ask, and print a table."""
    if len(set(args.benches)) < max(2, len(args.benches)):
        raise InputError("--benches wants two benchmarks or more, each once")
    target = Target.resolve(read(TargetSettings, args))
    models = Models(target, shared=False)
    settings = read(AnswerSettings, args, strict=True)
    sets = {
        name: halves(load_questions(question_path(name)), args.questions, name)
        for name in args.benches
    }

    def answer(drafter: CalibratedDrafter, questions: Sequence[Question], said: str) -> Answers:
        answerer = Answerer(target, KVEngine(models, drafter), "", settings)
        found = Answers()
        for question in tqdm(questions, desc=said, unit="question"):
            (choice,) = answerer.answer(question)["choices"]
            found.texts.append(choice["turns"])
            found.lengths += choice["accept_lengths"]
        return found

    def new() -> CalibratedDrafter:
        return CalibratedDrafter(args.draft_tree_capacity)

    learnt: dict[str, Mapping[str, Numbers]] = {}
    for name, (teaching, _) in sets.items():
        drafter = new()
        answer(drafter, teaching, f"{name}: teaching")
        learnt[name] = drafter.state()

    results = Results(args, target.device)
    title = f"{args.questions} questions of each, after {args.questions} others that taught"
    table = results.table("warm", title, COLUMNS)
    first, second = args.benches[:2]
    for name, (_, asked) in sets.items():
        other = second if name == first else first
        cold = answer(new(), asked, f"{name}: cold")
        _, late, mat = cold.mats()
        for begins, known in (("cold", None), ("same kind", name), (f"of {other}", other)):
            found = cold
            if known is not None:
                drafter = new()
                drafter.warm(learnt[known])
                found = answer(drafter, asked, f"{name}: {begins}")
            own_early, own_late, own_mat = found.mats()
            table.add(
                {
                    "bench": name,
                    "begins": begins,
                    "early": own_early,
                    "late": own_late,
                    "mat": own_mat,
                    "gain": own_mat / mat,
                    "late_gain": own_late / late,
                    "equal": sum(a == b for a, b in zip(found.texts, cold.texts, strict=True)),
                    "answers": len(asked),
                }
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.warm", "Begin with what was learnt before, from like and other tasks."
    )
    add = parser.add_argument
    add("--model-path", default=MODEL, help=MODEL_KINDS)
    benches = ["spec_bench", "humaneval", "gsm8k", "mgsm_zh"]
    text = "data/NAME/question.jsonl; the first is the other kind of all, the second of the first"
    add("--benches", nargs="+", default=benches, metavar="NAME", help=text)
    add("--questions", type=at_least(1), default=20, metavar="N", help="asked of each, and taught")
    add("--max-new-tokens", type=at_least(1), default=128, help="most tokens per answer")
    add("--draft-tree-capacity", type=at_least(2), default=64, metavar="C", help="nodes of a tree")
    add_machine_flags(parser)
    parser.set_defaults(cap_new_tokens=True, num_choices=1, conv_template=None)
    return run_benchmark(parser, argv, run)


if __name__ == "__main__":
    sys.exit(main())
