"""Answer a benchmark with our own method: python -m evaluation.inference_calibrated --help."""

from __future__ import annotations

import sys

from .command.inference import inference_main


def main(argv: list[str] | None = None) -> int:
    return inference_main("calibrated", argv)


if __name__ == "__main__":
    sys.exit(main())
