"""Answer a benchmark with our own method: python -m evaluation.inference_calibrated --help."""

import sys
from functools import partial

from .command.inference import inference_main

main = partial(inference_main, "calibrated")

if __name__ == "__main__":
    sys.exit(main())
