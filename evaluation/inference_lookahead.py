"""Answer a benchmark with the method lookahead: python -m evaluation.inference_lookahead --help."""

from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "lookahead")

if __name__ == "__main__":
    raise SystemExit(main())
