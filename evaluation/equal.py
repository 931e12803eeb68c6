"""Are two traces the same, token for token?  python -m evaluation.equal A.jsonl B.jsonl

Greedy speculative decoding must give its target's own output: here is where that is checked.
Exit status 0 when every turn is equal, 1 when some differ (each is listed).
"""

from __future__ import annotations

import sys
from pathlib import Path

from model.logitspec.errors import InputError

from .arguments import Parser, run_command
from .traces import Record, read_trace


def turns(path: Path) -> dict[tuple[str, int, int], list[int]]:
    """output_ids by (question id, choice, turn), all counted from 0 but the id."""
    found: dict[tuple[str, int, int], list[int]] = {}
    for record in read_trace(path):
        for index, choice in enumerate(record["choices"]):
            for turn, ids in enumerate(output_ids(record, choice, path)):
                found[str(record["question_id"]), index, turn] = ids
    return found


def output_ids(record: Record, choice: Record, path: Path) -> list[list[int]]:
    ids = choice.get("output_ids")
    if not isinstance(ids, list) or not all(isinstance(turn, list) for turn in ids):
        raise InputError(
            f"question {record['question_id']} in {path} has no output_ids to compare; "
            "the reference implementation's traces have none"
        )
    return ids


def first_difference(a: list[int], b: list[int]) -> int | None:
    """Index of the first token in which two sequences differ; None when they are equal."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return None if len(a) == len(b) else min(len(a), len(b))


def compare(path: Path, other: Path) -> int:
    """Print which turns differ and where; how many do.

    Raises:
        InputError: a trace cannot be read, or they hold different questions.
    """
    ours, theirs = turns(path), turns(other)
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())[0]
        raise InputError(
            f"{path} and {other} do not answer the same turns: question {odd[0]}, choice {odd[1]}, "
            f"turn {odd[2]} is in one only"
        )
    different = 0
    for key, ids in ours.items():
        if (at := first_difference(ids, theirs[key])) is not None:
            different += 1
            question, choice, turn = key
            print(
                f"question {question}, choice {choice}, turn {turn}: differs from token {at} on "
                f"({len(ids)} and {len(theirs[key])} tokens)"
            )
    tokens = sum(map(len, ours.values()))
    print(f"{len(ours) - different} of {len(ours)} turns equal ({tokens} tokens)")
    return different


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m evaluation.equal", "Compare two traces token for token.")
    parser.add_argument("trace", type=Path, help="one trace")
    parser.add_argument("other", type=Path, help="the other")
    args = parser.parse_args(argv)
    different: list[int] = []
    status = run_command(parser.prog, lambda: different.append(compare(args.trace, args.other)))
    return status or int(any(different))


if __name__ == "__main__":
    sys.exit(main())
