"""Answer a benchmark with the method pld: python -m evaluation.inference_pld --help."""

from __future__ import annotations

import sys

from .command.inference import inference_main


def main(argv: list[str] | None = None) -> int:
    return inference_main("pld", argv)


if __name__ == "__main__":
    sys.exit(main())
