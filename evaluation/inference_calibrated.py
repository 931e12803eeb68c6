"""Answer a benchmark with our own method: python -m evaluation.inference_calibrated --help."""

from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "calibrated")

if __name__ == "__main__":
    raise SystemExit(main())
