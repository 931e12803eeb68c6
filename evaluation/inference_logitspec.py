"""Answer a benchmark with the method logitspec: python -m evaluation.inference_logitspec --help."""

from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "logitspec")

if __name__ == "__main__":
    raise SystemExit(main())
