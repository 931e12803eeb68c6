"""Appends answers to a trace so that none is lost."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

from model.logitspec import Drafter
from model.logitspec.errors import InputError
from model.logitspec.listed import Numbers
from model.logitspec.states import read_state, write_state

from ..command.files import HALF_PAIRS, lock, whole_file, why_not, write_atomically, writing
from .reading import Lines, Record, read_lines
from .sidecars import differing, meta_path, state_path


class TraceWriter:
    """Appends answers to a trace: one line per question, on disk when write() returns.

    A file that exists is continued if it was made with the same settings; an incomplete last line,
    left by a killed run, is cut off. The file is locked against other writers while it is open.

    The sidecar also holds the environments in which answers were written, how many answers there
    were each time a run began to write, and at which of these times it knew what the method had
    learnt before. That is in NAME.state.npz.

    Args:
        path: of the trace.
        settings: everything an answer depends on; compared with the sidecar's.
        environment: device, versions and the like; every different one is recorded, none compared.
        overwrite: start anew; the old files are kept as NAME.jsonl.bak, NAME.meta.json.bak and
            NAME.state.npz.bak.

    Attributes:
        done: ids of the questions answered.
        failed: reasons of the questions that have a line with an error, by id.

    Raises:
        InputError: the file cannot be written, is being written by another run, or was made with
            other settings.
    """

    def __init__(
        self, path: Path, settings: Record, environment: Record, *, overwrite: bool = False
    ) -> None:
        self.path = path
        self._settings = settings
        self._environment = environment
        self._begun = self._restored = False
        self._last: str | None = None  # answer_id of the last answer
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise IsADirectoryError(errno.EISDIR, "it is no plain file")
            self._file = open_locked(path)
            try:
                if overwrite and path.stat().st_size > 0:
                    with self._file:  # locked until the old files are renamed
                        for old in (path, meta_path(path), state_path(path)):
                            if old.is_file():
                                old.replace(old.with_name(old.name + ".bak"))
                        self._file = open_locked(path)
                self._environments, self._starts, self._restores = self._history()
                answered, failed = self._repair()
                self.done = [record["question_id"] for record in answered]
                self.failed = {record["question_id"]: record["error"] for record in failed}
                self._write_meta()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise InputError(
                f"cannot write the answer file {path}: {why_not(path, error)}; "
                "choose another (--answer-file, or --answer-dir of evaluation.run)"
            ) from error

    def close(self) -> None:
        """Close the file and release its lock."""
        self._file.close()

    def _write_meta(self) -> None:
        write_atomically(
            meta_path(self.path),
            {
                "settings": self._settings,
                "environments": self._environments,
                "starts": self._starts,
                "restored": self._restores,
            },
        )

    def _history(self) -> tuple[list[Record], list[int], list[int]]:
        """Environments, starts, and those of the starts at which a state was restored, so far.

        Raises:
            InputError: the file was made with other settings.
        """
        if self.path.stat().st_size == 0:
            return [], [], []
        try:
            meta = json.loads(meta_path(self.path).read_text(encoding="utf-8"))
            before, environments = {**meta["settings"]}, list(meta["environments"])
            starts, restored = list(meta.get("starts", ())), list(meta.get("restored", ()))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{self.path} exists without a readable {meta_path(self.path).name} "
                "that says how it was made; "
                "choose another --model-id or --answer-file, or give --overwrite"
            ) from error
        now = json.loads(json.dumps(self._settings))
        changed = differing(before, now, sorted(before.keys() | now.keys()))
        if changed:
            first = changed[0]
            raise InputError(
                f"{self.path} was made with {first} {before.get(first)!r}, "
                f"now it is {now.get(first)!r}; "
                "choose another --model-id or --answer-file, or give --overwrite"
            )
        return environments, starts, restored

    def _repair(self) -> Lines:
        """Cut off an incomplete last line and return the records before it."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
            os.fsync(self._file.fileno())
        found = read_lines(self.path) if whole else Lines([], [])
        for line in reversed(whole.splitlines()):
            if line.strip() and "error" not in (record := json.loads(line)):
                self._last = record.get("answer_id")
                break
        return found

    def read_state(self, drafter: Drafter) -> Mapping[str, Numbers] | None:
        """What a drafter had learnt when the last answer was written; None: it is not known.

        Raises:
            InputError: the file cannot be read, or is of another method.
        """
        path = state_path(self.path)
        if not self.done or not path.is_file():
            return None
        saved = read_state(path, drafter.name, self._settings.get("tokenizer_fingerprint"))
        self._restored = self._last is not None and saved.head.get("after") == self._last
        return saved.arrays if self._restored else None

    def write(
        self,
        record: Record,
        environment: Record | None = None,
        state: Mapping[str, Numbers] | None = None,
    ) -> None:
        """Append one line and return when it is on disk.

        Args:
            record: an answer, or why there is none.
            environment: of the process that answered, if not the writer's.
            state: what the drafter has learnt so far; kept beside the trace.

        Raises:
            InputError: it cannot be written, as on a full disk; the lines before it stay complete.
        """
        question_id = record["question_id"]
        if self.failed.get(question_id) == record.get("error", ()):
            return  # tried again, and failed again
        size = None
        try:
            if not self.path.exists() or not os.path.samestat(
                self.path.stat(), os.fstat(self._file.fileno())
            ):
                raise InputError(
                    f"{self.path} was moved or deleted while this run wrote to it; put it back and "
                    "run again, without --overwrite, to go on"
                )
            self._note(environment or self._environment)
            size = os.fstat(self._file.fileno()).st_size
            text = json.dumps(record, ensure_ascii=False)
            line = memoryview(text.encode(errors=HALF_PAIRS) + b"\n")
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except BaseException as error:
            if size is not None:
                self._file.truncate(size)
            if not isinstance(error, OSError):
                raise
            raise InputError(
                f"cannot write to {self.path}: {error.strerror}; "
                "make room and run again, without --overwrite, to go on"
            ) from error
        self.failed.pop(question_id, None)
        if "error" in record:
            self.failed[question_id] = record["error"]
        else:
            self.done.append(question_id)
            self._last = record.get("answer_id")
            if state:
                self._keep(state)

    def _keep(self, state: Mapping[str, Numbers]) -> None:
        """Write a state beside the trace, for a run that goes on."""
        path = state_path(self.path)
        method = str(self._settings["method"]).partition("@")[0]
        tokenizer = self._settings.get("tokenizer_fingerprint")
        way_out = "make room and run again, without --overwrite, to go on"
        with writing(path, way_out), whole_file(path) as file:
            write_state(file, method, {**state}, tokenizer, after=self._last)

    def _note(self, environment: Record) -> None:
        """Note in the sidecar that this run writes, and in which environment."""
        if self._begun and environment in self._environments:
            return
        starts = self._starts if self._begun else [*self._starts, len(self.done)]
        environments = self._environments
        if environment not in environments:
            environments = [*environments, environment]
        restored = [len(self.done)] if self._restored and not self._begun else []
        before = self._starts, self._environments, self._restores
        self._starts, self._environments = starts, environments
        self._restores = [*self._restores, *restored]
        try:
            self._write_meta()
        except BaseException:
            self._starts, self._environments, self._restores = before
            raise
        self._begun = True


def open_locked(path: Path) -> FileIO:
    """Open a file for appending and lock it; it is created if it does not exist.

    Raises:
        InputError: another process has locked it.
        OSError: it cannot be opened.
    """
    try:
        return lock(path)
    except BlockingIOError as error:
        raise InputError(
            f"another run is writing {path}; wait for it, or choose another --model-id or "
            "--answer-file"
        ) from error
