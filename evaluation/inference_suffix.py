"""Answer a benchmark with the method suffix: python -m evaluation.inference_suffix --help."""

from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "suffix")

if __name__ == "__main__":
    raise SystemExit(main())
