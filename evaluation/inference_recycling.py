"""Answer a benchmark with the method recycling: python -m evaluation.inference_recycling --help."""

from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "recycling")

if __name__ == "__main__":
    raise SystemExit(main())
