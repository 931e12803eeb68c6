"""Are two traces the same, token for token?  python -m evaluation.equal A.jsonl B.jsonl

Greedy speculative decoding must give its target's own output. Where two traces differ, the command
can also print the target's logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from model.logitspec.errors import InputError

from .asking.settings import TargetSettings
from .command.exits import run_command
from .command.flags import add_trust_flags, read
from .command.parser import Parser
from .traces.comparing import Trace, in_order, leave_out, shown
from .traces.reading import output_ids

Key = tuple[int | str, int, int]  # question id, choice, turn; the last two counted from 0


@dataclass
class Turn:
    """One generated turn and the answers before it."""

    ids: list[int]
    earlier: list[str]  # the texts of the answers before it
    prompt_tokens: int | None


def turns(trace: Trace) -> dict[Key, Turn]:
    """All turns of a trace."""
    found: dict[Key, Turn] = {}
    for record in trace.records:
        for index, choice in enumerate(record["choices"]):
            counts = choice.get("prompt_tokens") or []
            for turn, ids in enumerate(output_ids(record, choice, trace.path)):
                count = counts[turn] if turn < len(counts) else None
                found[record["question_id"], index, turn] = Turn(ids, choice["turns"][:turn], count)
    return found


def first_difference(a: list[int], b: list[int]) -> int | None:
    """Index of the first token in which two sequences differ; None when they are equal."""
    return next((at for at, (x, y) in enumerate(zip_longest(a, b)) if x != y), None)


class LogitGap:
    """The target's logits where two turns differ.

    `trace` is one of the two; its sidecar names the bench, the template and the dtype.
    """

    def __init__(self, settings: TargetSettings, trace: Trace) -> None:
        from model.logitspec import load

        from .asking.questions import load_questions, question_path, sha256
        from .asking.target import Target

        known = trace.settings
        if not known:
            raise InputError(
                f"{trace.path} has no sidecar that says how it was made; leave out --model-path"
            )
        self.target = Target.resolve(
            replace(settings, dtype=known["dtype"], conv_template=known["template"])
        )
        if self.target.fingerprint != known["model_fingerprint"]:
            raise InputError(
                f"{settings.model_path} is not the checkpoint {known['model']} that {trace.path} "
                "was made with; give that one"
            )
        path = question_path(known["bench_name"])
        if sha256(path) != known["questions"]:
            raise InputError(
                f"{path} holds other questions than {trace.path} answers; "
                "prepare those it was made with"
            )
        self.questions = {q.question_id: q for q in load_questions(path)}
        self.model = load(
            self.target.path,
            **self.target.loading(),
            cpu_kernels=self.target.kernels.name,
            cuda_graphs=self.target.cuda_graphs,
        )

    def describe(self, key: Key, turn: Turn, other: Turn, at: int) -> str:
        """Both tokens' texts and logits after the prompt and the `at` tokens both turns share."""
        from model.logitspec.prefill import last_logits

        question, _, index = key
        conversation = self.target.prompts.start()
        asked = self.questions[question].turns
        prompt = conversation.ask(asked[0])
        for answer, following in zip(turn.earlier, asked[1:], strict=False):
            conversation.answer(answer)
            prompt = conversation.ask(following)
        if len(prompt) != turn.prompt_tokens:
            raise InputError(
                f"question {question}, turn {index}: the prompt has {len(prompt)} tokens, the "
                f"trace says {turn.prompt_tokens}; give the tokenizer it was made with"
            )
        logits = last_logits(self.model, [*prompt, *turn.ids[:at]])
        tokens = [ids[at] for ids in (turn.ids, other.ids) if at < len(ids)]
        said = [f"{self.target.tokenizer.decode([t])!r} {float(logits[t]):.4f}" for t in tokens]
        if len(tokens) == 2:
            said.append(f"gap {abs(float(logits[tokens[0]]) - float(logits[tokens[1]])):.4f}")
        return f"; logits {', '.join(said)}"


def differences(
    ours: dict[Key, Turn], theirs: dict[Key, Turn], parted: dict[Key, int], logits: LogitGap | None
) -> Iterator[str]:
    """A line for every turn that differs; `parted` holds the first differing token of each."""
    for key, at in parted.items():
        turn, other = ours[key], theirs[key]
        question, choice, index = shown(key[0]), key[1], key[2]
        tokens = " against ".join(
            str(ids[at]) if at < len(ids) else "no more" for ids in (turn.ids, other.ids)
        )
        line = f"question {question}, choice {choice}, turn {index}: "
        if turn.earlier != other.earlier:
            yield line + "differs, after different answers to the turns before it"
            continue
        line += f"differs from token {at} on: {tokens}"
        yield line + (logits.describe(key, turn, other, at) if logits is not None else "")


def print_differences(path: Path, other: Path, checkpoint: TargetSettings | None) -> bool:
    """Print which turns differ and where; return whether all are answered and equal.

    `checkpoint`: that both traces were made with, for logits where turns differ; None: no logits.
    """
    trace, other_trace = Trace.read(path), Trace.read(other)
    if left_out := leave_out([trace, other_trace]):
        print(left_out)
    ours, theirs = turns(trace), turns(other_trace)
    if ours.keys() != theirs.keys():
        odd = min(ours.keys() ^ theirs.keys(), key=lambda key: (in_order(key[0]), key[1:]))
        raise InputError(
            f"{path} and {other} do not answer the same turns: question {shown(odd[0])}, "
            f"choice {odd[1]}, turn {odd[2]} is in one only"
        )
    parted = {
        key: at
        for key, turn in ours.items()
        if (at := first_difference(turn.ids, theirs[key].ids)) is not None
    }
    logits = LogitGap(checkpoint, trace) if checkpoint is not None and parted else None
    for line in differences(ours, theirs, parted, logits):
        print(line)
    seeds = [t.settings.get("seed") for t in (trace, other_trace) if t.settings]
    if parted and trace.settings.get("temperature") and len(set(seeds)) > 1:
        print(f"the traces are samples of the seeds {seeds[0]} and {seeds[1]}")
    lengths = {key: len(turn.ids) for key, turn in ours.items()}
    equal = len(ours) - len(parted)
    print(
        f"{equal} of {len(ours)} turns equal ({equal / len(ours):.1%}); "
        f"mean matched prefix {np.mean([*(lengths | parted).values()]):.1f} "
        f"of {np.mean([*lengths.values()]):.1f} tokens"
    )
    return not parted and not left_out


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m evaluation.equal", "Compare two traces token for token.")
    add = parser.add_argument
    add("trace", type=Path, help="one trace")
    add("other", type=Path, help="the other")
    add("--model-path", help="the checkpoint of both: print its logits where the turns part")
    add("--device", default="auto", help="of that checkpoint: cpu, cuda or cuda:N")
    add("--strict", action="store_true", help="exit status 1 when some turn differs or failed")
    add_trust_flags(parser)
    args = parser.parse_args(argv)
    given = read(TargetSettings, args, cuda_graphs="off") if args.model_path else None
    equal: list[bool] = []
    status = run_command(
        parser.prog, lambda: equal.append(print_differences(args.trace, args.other, given))
    )
    return status or int(args.strict and not all(equal))


if __name__ == "__main__":
    raise SystemExit(main())
