"""Runs a benchmark's questions and reports on the answers."""

import sys
from types import TracebackType

OURS = ("benchmarks", "data", "evaluation", "model")


def _stopped(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    """What ends a command before it has begun, while it imports: a sentence, no traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    elif isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] not in OURS:
        print(
            f"{sys.executable} has no {error.name}; run `. .venv/bin/activate` first (`sh eval.sh` "
            "creates .venv), or pip install -r requirements.txt",
            file=sys.stderr,
        )
        sys.exit(2)
    else:
        sys.__excepthook__(kind, error, at)


if sys.argv[:1] == ["-m"]:  # python -m has found the package, and is about to run a command of it
    sys.excepthook = _stopped
