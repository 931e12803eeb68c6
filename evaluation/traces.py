"""The trace of a run: one JSON line per question, and a sidecar that says how it was made.

A question that could not be answered has a line with its `error` and no choices; a later line for
the same question takes its place.

The lines of answers have the reference implementation's fields, so its tools read them, and besides
per turn output_ids, prompt_tokens, the seconds of each of PHASES, and a number of every step of the
turn: tree_sizes, step_seconds, misses, next_next_ranks (as in decoding.DecodingResult).
`NAME.jsonl` has the sidecar `NAME.meta.json`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from model.logitspec.errors import InputError

Record = dict[str, Any]

HALF_PAIRS = "backslashreplace"  # halves of surrogate pairs are no UTF-8: JSON's own escape, \ud800

PHASES = tuple(
    f"{phase}_seconds" for phase in ("prefill", "draft", "build", "verify", "accept", "commit")
)

PER_TURN = ("decoding_steps", "prompt_tokens", *PHASES)  # a number each, or null
PER_STEP = ("output_ids", "tree_sizes", "step_seconds", "misses", "next_next_ranks")  # or token


def validate(record: object) -> str | None:
    """What is wrong with a trace line, or None. Lines of the reference implementation pass."""
    if not isinstance(record, dict):
        return "is not a JSON object"
    for key, kinds in (("question_id", (int, str)), ("category", str), ("model_id", str)):
        if not isinstance(record.get(key), kinds):
            return f"has no {key!r}"
    if "error" in record:
        return None if isinstance(record["error"], str) else "has an error that is no text"
    if not isinstance(record.get("choices"), list) or not record["choices"]:
        return "has no choices"
    for choice in record["choices"]:
        if not isinstance(choice, dict):
            return "has a choice that is not an object"
        if not isinstance(choice.get("turns"), list) or not all(
            isinstance(t, str) for t in choice["turns"]
        ):
            return "has no list of texts 'turns' in a choice"
        for key in ("new_tokens", "wall_time", "accept_lengths"):
            values = choice.get(key)
            if not isinstance(values, list) or not values or not all(is_number(v) for v in values):
                return f"has no list of numbers {key!r} in a choice"
        if sum(choice["wall_time"]) <= 0:
            return "has a wall_time that is not positive"
        wrong = [key for key, value in choice.items() if not well_formed(key, value)]
        if wrong:
            return f"has no numbers {wrong[0]!r} in a choice"
    return None if is_number(record.get("tstamp", 0)) else "has a 'tstamp' that is no time"


def well_formed(key: str, value: object) -> bool:
    """Whether a field of a choice is what this version writes under that name; others may be."""
    if key in PER_TURN:
        return isinstance(value, list) and all(v is None or is_number(v) for v in value)
    if key in PER_STEP:
        return isinstance(value, list) and all(
            isinstance(turn, list) and all(v == -1 or is_number(v) for v in turn) for turn in value
        )
    return True


def is_number(value: object) -> bool:
    """Whether a JSON value counts tokens or seconds: finite, not negative, not absurd."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15


class Lines(NamedTuple):
    """What a trace holds."""

    answered: list[Record]
    failed: list[Record]  # what is left out of every number


def read_trace(path: Path) -> list[Record]:
    """The answers in a trace.

    Raises:
        InputError: as read_lines(), or there is none.
    """
    lines = read_lines(path)
    check_answered(path, lines)
    return lines.answered


def check_answered(path: Path, lines: Lines) -> None:
    """Raise InputError if there is no answer among the lines of a trace; it says why."""
    if not lines.answered:
        raise InputError(
            f"no question was answered in the trace {path}: {lines.failed[0]['error']}; "
            "mend that and run the inference script again"
        )


def read_lines(path: Path) -> Lines:
    """All lines of a trace, the last one for each question.

    Raises:
        InputError: no such file, an empty one, a line that is no trace line, or a question answered
            twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read the trace {path}: {reason}") from error
    records: dict[Any, Record] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number} is not JSON; delete the line") from error
        if (problem := validate(record)) is not None:
            raise InputError(f"{path}:{number} {problem}; it is no trace line")
        if "error" not in records.get(record["question_id"], {"error": ""}):
            raise InputError(
                f"{path}:{number} repeats question {record['question_id']}; "
                "delete one of the two lines"
            )
        records[record["question_id"]] = record
    if not records:
        raise InputError(f"the trace {path} is empty; run the inference script first")
    return Lines(
        [record for record in records.values() if "error" not in record],
        [record for record in records.values() if "error" in record],
    )


def meta_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".jsonl") + ".meta.json")


# Settings of sampling that a sidecar holds only where they are on.
FILTERS = ("top_k", "top_p", "min_p", "repetition_penalty")
LATER = ("tokenizer_fingerprint",)  # settings that sidecars of older versions lack


def differing(before: Record, now: Record, keys: Iterable[str]) -> list[str]:
    """Which of these settings differ; those in LATER only if both have them."""
    return [
        key
        for key in keys
        if before.get(key) != now.get(key)
        and not (key in LATER and None in (before.get(key), now.get(key)))
    ]


class TraceWriter:
    """Appends answers to a trace so that none is ever lost: one fsynced line per question.

    A file that is there already is gone on with, if it was made with the same settings; a torn last
    line, left by a killed run, is cut off. While it is open no other writer can have it.

    The sidecar also says in which environments answers were written, and how many answers there
    were each time a run began to write.

    Args:
        path: of the trace.
        settings: all that an answer depends on; compared with the sidecar's.
        environment: device, versions and the like; recorded (each different one), not compared.
        overwrite: start anew; the old files are kept as NAME.jsonl.bak and so on.

    Attributes:
        done: ids of the questions answered.
        failed: why the others that have a line are not, by id.

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
        self._begun = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise IsADirectoryError(errno.EISDIR, "it is no plain file")
            self._file = open_locked(path)
            try:
                if overwrite and path.stat().st_size > 0:
                    with self._file:  # locked until it has made room
                        for old in (path, meta_path(path)):
                            if old.is_file():
                                old.replace(old.with_name(old.name + ".bak"))
                        self._file = open_locked(path)
                self._environments, self._starts = self._history()
                answered, failed = self._repair()
                self.done = [record["question_id"] for record in answered]
                self.failed = {record["question_id"]: record["error"] for record in failed}
                self._write_meta()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise InputError(
                f"cannot write the answer file {path}: {error.strerror}; "
                "choose another (--answer-file, or --answer-dir of evaluation.run)"
            ) from error

    def close(self) -> None:
        """Let others have the file."""
        self._file.close()

    def _write_meta(self) -> None:
        write_atomically(
            meta_path(self.path),
            {
                "settings": self._settings,
                "environments": self._environments,
                "starts": self._starts,
            },
        )

    def _history(self) -> tuple[list[Record], list[int]]:
        """Environments and starts so far; refuses a file made with other settings."""
        if self.path.stat().st_size == 0:
            return [], []
        try:
            meta = json.loads(meta_path(self.path).read_text(encoding="utf-8"))
            before, environments = {**meta["settings"]}, list(meta["environments"])
            starts = list(meta.get("starts", ()))
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
        return environments, starts

    def _repair(self) -> Lines:
        """Cut off a torn last line and give the records before it."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
            os.fsync(self._file.fileno())
        return read_lines(self.path) if whole else Lines([], [])

    def write(self, record: Record, environment: Record | None = None) -> None:
        """Append one line and return when it is on disk.

        Args:
            record: an answer, or why there is none.
            environment: that it was made in, if not the writer's.

        Raises:
            InputError: it cannot be written, as on a full disk; what was there before stays whole.
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

    def _note(self, environment: Record) -> None:
        """See that the sidecar says that answers were written now, and where."""
        if self._begun and environment in self._environments:
            return
        starts = self._starts if self._begun else [*self._starts, len(self.done)]
        environments = self._environments
        if environment not in environments:
            environments = [*environments, environment]
        before = self._starts, self._environments
        self._starts, self._environments = starts, environments
        try:
            self._write_meta()
        except BaseException:
            self._starts, self._environments = before
            raise
        self._begun = True


def open_locked(path: Path) -> FileIO:
    """A file to append to that no other process has opened so; made if it is not there.

    Raises:
        InputError: another has.
        OSError: it cannot be opened.
    """
    file = FileIO(path, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(
            f"another run is writing {path}; wait for it, or choose another --model-id or "
            "--answer-file"
        ) from error
    except OSError as error:  # a file system without locks
        print(
            f"{path} cannot be locked ({error.strerror}): see that no other run writes it",
            file=sys.stderr,
        )
    return file


def write_atomically(path: Path, content: Record) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", errors=HALF_PAIRS) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def check_writable(path: Path) -> None:
    """Raise InputError if a file cannot be written, before anything is computed for it."""
    there = path.exists()
    try:
        with path.open("a", encoding="utf-8"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another file") from error
