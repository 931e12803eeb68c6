"""The trace of a run: one JSON line per question, and a sidecar that says how it was made.

The lines have the reference implementation's fields, so its tools read them, and besides per turn
output_ids, prompt_tokens, the seconds of each of PHASES, and a number of every step of the turn:
tree_sizes, step_seconds, misses, next_next_ranks (as in decoding.DecodingResult).
`NAME.jsonl` has the sidecar `NAME.meta.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.logitspec.errors import InputError

Record = dict[str, Any]

PHASES = tuple(
    f"{phase}_seconds" for phase in ("prefill", "draft", "build", "verify", "accept", "commit")
)


def validate(record: object) -> str | None:
    """What is wrong with a trace line, or None. Lines of the reference implementation pass."""
    if not isinstance(record, dict):
        return "is not a JSON object"
    for key, kinds in (("question_id", (int, str)), ("category", str), ("model_id", str)):
        if not isinstance(record.get(key), kinds):
            return f"has no {key!r}"
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
    return None


def is_number(value: object) -> bool:
    """Whether a JSON value counts tokens or seconds: finite, not negative, not absurd."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15


def read_trace(path: Path) -> list[Record]:
    """All lines of a trace.

    Raises:
        InputError: no such file, an empty one, a line that is no trace line, or a question twice.
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
        if record["question_id"] in records:
            raise InputError(
                f"{path}:{number} repeats question {record['question_id']}; "
                "delete one of the two lines"
            )
        records[record["question_id"]] = record
    if not records:
        raise InputError(f"the trace {path} is empty; run the inference script first")
    return list(records.values())


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
    line, left by a killed run, is cut off.

    The sidecar also says in which environments answers were written, and how many answers there
    were each time a run began to write.

    Args:
        path: of the trace.
        settings: all that an answer depends on; compared with the sidecar's.
        environment: device, versions and the like; recorded (each different one), not compared.
        overwrite: start anew; the old files are kept as NAME.jsonl.bak and so on.

    Raises:
        InputError: the file cannot be written, or was made with other settings.
    """

    def __init__(
        self, path: Path, settings: Record, environment: Record, *, overwrite: bool = False
    ) -> None:
        self.path = path
        self._settings = settings
        self._environment: Record | None = environment  # until it is in the sidecar
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if overwrite and path.is_file() and path.stat().st_size > 0:
                for old in (path, meta_path(path)):
                    if old.is_file():
                        old.replace(old.with_name(old.name + ".bak"))
            self._environments, self._starts = self._history()
            with path.open("ab"):
                pass
            self.done = [record["question_id"] for record in self._repair()]
            self._write_meta()
        except OSError as error:
            raise InputError(
                f"cannot write the answer file {path}: {error.strerror}; "
                "choose another (--answer-file, or --answer-dir of evaluation.run)"
            ) from error

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
        if not self.path.is_file() or self.path.stat().st_size == 0:
            return [], []
        try:
            meta = json.loads(meta_path(self.path).read_text(encoding="utf-8"))
            before, environments = dict(meta["settings"]), list(meta["environments"])
            starts = list(meta.get("starts", ()))
        except (OSError, ValueError, KeyError, TypeError) as error:
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

    def _repair(self) -> list[Record]:
        """Cut off a torn last line and give the records before it."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("rb+") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        return read_trace(self.path) if whole else []

    def write(self, record: Record) -> None:
        """Append one line and return when it is on disk.

        Raises:
            InputError: it cannot be written, as on a full disk; what was there before stays whole.
        """
        size = None
        try:
            if self._environment is not None:
                self._starts.append(len(self.done))
                if self._environment not in self._environments:
                    self._environments.append(self._environment)
                self._write_meta()
                self._environment = None
            size = self.path.stat().st_size
            with self.path.open("ab") as file:
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if size is not None:
                os.truncate(self.path, size)
            raise InputError(
                f"cannot write to {self.path}: {error.strerror}; "
                "make room and run again, without --overwrite, to go on"
            ) from error
        self.done.append(record["question_id"])


def write_atomically(path: Path, content: Record) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
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
