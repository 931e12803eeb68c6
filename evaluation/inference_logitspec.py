"""Answer a benchmark with LogitSpec: python -m evaluation.inference_logitspec --help."""

from __future__ import annotations

import sys

from model.logitspec import LogitSpecDrafter

from .arguments import at_least, inference_parser, run_command
from .engines import KVEngine
from .eval import run_eval
from .targets import Target


def main(argv: list[str] | None = None) -> int:
    parser = inference_parser("inference_logitspec", "Answer a benchmark with LogitSpec.")
    add = parser.add_argument
    add(
        "--max-ngram-size",
        type=at_least(1),
        default=3,
        help="longest n-gram matched in the context",
    )
    add("--num-pred-tokens", type=at_least(1), default=20, help="longest continuation retrieved")
    add(
        "--draft-tree-capacity",
        type=at_least(1, 4096),
        default=64,
        help="most nodes of a draft tree, root included",
    )
    args = parser.parse_args(argv)
    options = {
        "max_ngram_size": args.max_ngram_size,
        "num_pred_tokens": args.num_pred_tokens,
        "draft_tree_capacity": args.draft_tree_capacity,
    }

    def build_engine(target: Target) -> KVEngine:
        return KVEngine(target, LogitSpecDrafter(**options))

    return run_command(parser.prog, lambda: run_eval(args, "logitspec", build_engine, options))


if __name__ == "__main__":
    sys.exit(main())
