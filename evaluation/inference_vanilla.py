"""Answer a benchmark with the method vanilla: python -m evaluation.inference_vanilla --help."""

from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "vanilla")

if __name__ == "__main__":
    raise SystemExit(main())
