"""Answer a benchmark with the method rest: python -m evaluation.inference_rest --help."""

from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "rest")

if __name__ == "__main__":
    raise SystemExit(main())
