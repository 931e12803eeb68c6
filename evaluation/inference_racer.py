"""Answer a benchmark with the method racer: python -m evaluation.inference_racer --help."""

from __future__ import annotations

import sys

from .command.inference import inference_main


def main(argv: list[str] | None = None) -> int:
    return inference_main("racer", argv)


if __name__ == "__main__":
    sys.exit(main())
