"""Answer a benchmark without speculation: python -m evaluation.inference_baseline --help."""

from __future__ import annotations

from .asking.methods import METHODS
from .command.exits import run_command
from .command.flags import inference_parser
from .command.inference import run_one


def main(argv: list[str] | None = None) -> int:
    parser = inference_parser(
        "inference_baseline", "Answer a benchmark with plain autoregressive decoding."
    )
    engines = (
        "hf: transformers' generate(), the paper's baseline; "
        "kv: this project's loop with a one-node tree"
    )
    parser.add_argument("--engine", choices=["hf", "kv"], default="hf", help=engines)
    args = parser.parse_args(argv)
    method = METHODS["baseline" if args.engine == "hf" else "vanilla"]
    return run_command(parser.prog, lambda: run_one(args, method))


if __name__ == "__main__":
    raise SystemExit(main())
