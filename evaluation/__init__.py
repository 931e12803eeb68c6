"""Runs a benchmark's questions and reports on the answers."""

import sys
from types import TracebackType


def _stopped(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    """Ctrl-C before a command has begun, while it imports torch: a word, no traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, at)


if sys.argv[:1] == ["-m"]:  # python -m has found the package, and is about to run a command of it
    sys.excepthook = _stopped
