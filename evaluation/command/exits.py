"""How a command ends: its exit status, and one sentence on bad input."""

from __future__ import annotations

import errno
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
    """What a command was to do is done, but for some of it that could not be."""


def run_command(prog: str, command: Callable[[], None], interrupted: str = INTERRUPTED) -> int:
    """Run a command and give its exit status.

    0; 2 for bad input and 3 where some of the work could not be done (one sentence on stderr);
    130 for Ctrl-C and SIGTERM; 141 where nobody reads what it prints any more (as behind `| head`).

    Args:
        prog: its name, before what it says on stderr.
        command: what it does.
        interrupted: what to say at Ctrl-C.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # whatever characters a terminal or a log has
        sys.stdout.reconfigure(errors="backslashreplace")
    status, said = 0, ""
    try:
        with terminable(), plain_warnings():
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
    """This project's own warnings are a sentence for users: without a file and a line of code."""
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


def ended(prog: str, status: int, said: str) -> int:
    """Write out what a command printed, and say how it ended; its exit status, as in run_command.

    Args:
        prog: its name.
        status: of what it did.
        said: why, if there is something to say.
    """
    lost = flush(sys.stdout)
    if lost is not None and status == 0:
        status, said = unwritable(lost)
    if said:
        with suppress(OSError):
            print(f"{prog}: {said}", file=sys.stderr)
        flush(sys.stderr)
    return status


def unwritable(error: OSError) -> tuple[int, str]:
    """Exit status, and what to say of something that could not be written.

    Raises:
        OSError: it is another error.
    """
    if error.errno == errno.EPIPE:
        return 141, ""  # as a shell has it
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise error
    return 2, f"cannot write {error.filename or 'the output'}: {error.strerror}; make room"


def flush(stream: TextIO | None) -> OSError | None:
    """Write out what a stream holds; what kept it from that, after which it leads nowhere."""
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
    """SIGTERM is as Ctrl-C here, where signals can be caught."""

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
