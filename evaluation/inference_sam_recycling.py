"""Answer a benchmark with sam_recycling: python -m evaluation.inference_sam_recycling --help."""

from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "sam_recycling")

if __name__ == "__main__":
    raise SystemExit(main())
