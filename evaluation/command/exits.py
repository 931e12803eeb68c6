"""How a command ends: its exit status, and one sentence on bad input."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TextIO

from model.logitspec.errors import InputError

from .files import ROOT

INTERRUPTED = "interrupted; what is finished is on disk: run again, without --overwrite, to go on"


class Incomplete(Exception):
    """Some of a command's work could not be done; the rest is done."""


def run_command(prog: str, command: Callable[[], None], interrupted: str = INTERRUPTED) -> int:
    """Run a command and return its exit status.

    The status is 0 for success, 2 for bad input, 3 if some of the work could not be done, 130 for
    Ctrl-C and SIGTERM, 141 if nobody reads the output any more (as behind `| head`). Each status
    but 0 and 141 comes with one sentence on stderr, after the command's name `prog`;
    `interrupted` is the sentence for Ctrl-C.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal or a log may lack characters
        sys.stdout.reconfigure(errors="backslashreplace")
    status, said = 0, ""
    try:
        with terminable(), plain_warnings(), progress_shown():
            command()
    except InputError as error:
        status, said = 2, str(error)
    except Incomplete as error:
        status, said = 3, str(error)
    except KeyboardInterrupt:
        status, said = 130, interrupted
    except OSError as error:
        status, said = unwritable(error)
    return ended(prog, status, said)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print this project's own warnings as a sentence, without a file and a line of code."""
    usual = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any
    ) -> str:
        ours = ROOT in Path(filename).parents and "site-packages" not in filename
        if category is UserWarning and ours:
            return f"{message}\n"
        return usual(message, category, filename, *rest, **more)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextmanager
def progress_shown() -> Iterator[None]:
    """Print on stderr what the package logs of work that takes long."""
    log, handler = logging.getLogger("model.logitspec"), logging.StreamHandler()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def ended(prog: str, status: int, said: str) -> int:
    """Flush what a command printed and print why it ended; the exit status, as in run_command."""
    lost = flush(sys.stdout)
    if lost is not None and status == 0:
        status, said = unwritable(lost)
    if said:
        with suppress(OSError):
            print(f"{prog}: {said}", file=sys.stderr)
        flush(sys.stderr)
    return status


def unwritable(error: OSError) -> tuple[int, str]:
    """The exit status and the sentence for a full disk or a closed pipe; other errors rise."""
    if error.errno == errno.EPIPE:
        return 141, ""  # as in a shell
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise error
    return 2, f"cannot write {error.filename or 'the output'}: {error.strerror}; make room"


def flush(stream: TextIO | None) -> OSError | None:
    """Flush a stream. On an error, return it and point the stream to the null device."""
    if stream is None:
        return None
    try:
        stream.flush()
    except OSError as error:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())  # else the interpreter tries again
        return error
    return None


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM acts like Ctrl-C inside this context (in the main thread only)."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
