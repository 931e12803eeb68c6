"""Answer a benchmark with the method hf_pld: python -m evaluation.inference_hf_pld --help."""

from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "hf_pld")

if __name__ == "__main__":
    raise SystemExit(main())
