"""Answer a benchmark with the method racer: python -m evaluation.inference_racer --help."""

from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "racer")

if __name__ == "__main__":
    raise SystemExit(main())
