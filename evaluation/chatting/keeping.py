"""What a server's drafter learnt, kept in a file over restarts."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from model.logitspec import Drafter
from model.logitspec.errors import InputError, brief
from model.logitspec.states import read_state, way_out, write_state

from ..command.files import check_writable, lock, whole_file, writing

KEPT_EVERY = 60.0  # seconds at least between two writes, but for the last

log = logging.getLogger(__name__)


class StateFile:
    """A drafter's state in a file: read if it is there, then written now and then.

    Args:
        path: of the file.
        drafter: that learns.
        tokenizer: fingerprint of the one whose ids it learns.

    Raises:
        InputError: the method learns nothing, or the file cannot be read or written.
    """

    def __init__(self, path: Path, drafter: Drafter, tokenizer: str) -> None:
        self._path, self._drafter, self._tokenizer = path, drafter, tokenizer
        if not drafter.state():
            raise InputError(
                f"--state {path}: the method {drafter.name} keeps nothing from answer to answer, "
                "or nothing that can be saved; leave it out"
            )
        check_writable(path)
        self._beside = path.with_name(path.name + ".lock")
        try:
            self._lock = lock(self._beside)
        except BlockingIOError as error:
            raise InputError(
                f"--state {path} is kept by another server; give each a file of its own"
            ) from error
        try:
            if path.exists():
                with way_out(f"give --state another file than {path}"):
                    drafter.restore(read_state(path, drafter.name, tokenizer).arrays)
        except BaseException:
            self._unlock()
            raise
        self._written = time.monotonic()

    def keep(self) -> None:
        """Write the state, if it is time; a failure is logged."""
        if time.monotonic() - self._written >= KEPT_EVERY:
            self._write()

    def close(self) -> None:
        """Write the state, and let another server keep it."""
        self._write()
        self._unlock()

    def _write(self) -> None:
        self._written = time.monotonic()
        try:
            with writing(self._path, "make room"), whole_file(self._path) as file:
                write_state(file, self._drafter.name, self._drafter.state(), self._tokenizer)
        except Exception as error:  # the server goes on
            log.error("%s; what was learnt since is not saved", brief(error))

    def _unlock(self) -> None:
        self._beside.unlink(missing_ok=True)
        self._lock.close()
