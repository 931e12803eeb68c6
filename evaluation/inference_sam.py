"""Answer a benchmark with the method sam: python -m evaluation.inference_sam --help."""

from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "sam")

if __name__ == "__main__":
    raise SystemExit(main())
