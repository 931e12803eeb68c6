"""Answer a benchmark with the method pld: python -m evaluation.inference_pld --help."""

from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "pld")

if __name__ == "__main__":
    raise SystemExit(main())
