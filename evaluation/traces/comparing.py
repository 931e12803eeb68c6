"""Traces to be compared: the same questions, model and settings, several methods; their speeds.

evaluation.tables, plots, report, speed and equal read their traces through here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.logitspec.errors import InputError

from .reading import Record, check_answered, list_tasks, read_lines, task_of
from .sidecars import COMMON, Sidecar, differing, doubts

BASELINES = {"baseline": "transformers' generate()", "vanilla": "one-node loop"}  # main one first
TokenCount = Callable[[Record], int]  # of a question's first choice
SpeedRow = dict[str, float]  # the numbers of one task


def in_order(question_id: int | str) -> tuple[str, bool]:
    """A sort key: ids by their text, 1 before "1"."""
    return str(question_id), isinstance(question_id, str)


def shown(question_id: int | str) -> str:
    """An id for a message: a text that looks like a number is quoted."""
    number = isinstance(question_id, str) and question_id.lstrip("-").isdigit()
    return f'"{question_id}"' if number else str(question_id)


def recorded_tokens(record: Record) -> int:
    return int(sum(record["choices"][0]["new_tokens"]))


def retokenized(tokenizer: Any) -> TokenCount:
    """Count a choice's tokens as the reference does: its texts encoded again, one token off each.

    Every text is encoded once, whatever number of tasks asks for it.
    """
    lengths: dict[str, int] = {}

    def count(record: Record) -> int:
        texts = record["choices"][0]["turns"]
        for text in texts:
            if text not in lengths:
                lengths[text] = len(tokenizer(text).input_ids) - 1
        return sum(lengths[text] for text in texts)

    return count


def question_speed(record: Record, count: TokenCount = recorded_tokens) -> float:
    """Tokens over wall time."""
    return float(count(record) / sum(record["choices"][0]["wall_time"]))


@dataclass
class Trace:
    """One method's answers and how they were made."""

    path: Path
    records: list[Record]
    failed: list[Record]  # lines of questions that it did not answer
    sidecar: Sidecar
    label: str

    @classmethod
    def read(cls, path: Path) -> Trace:
        """A trace with its sidecar; InputError if one cannot be read."""
        lines = read_lines(path)
        check_answered(path, lines)
        sidecar = Sidecar.read(path)
        label = str(sidecar.settings.get("method") or lines.answered[0]["model_id"])
        return cls(path, lines.answered, lines.failed, sidecar, label)

    @property
    def settings(self) -> dict[str, Any]:
        """Empty without a sidecar, as with the reference implementation's traces."""
        return self.sidecar.settings

    @property
    def method(self) -> str | None:
        return self.settings.get("method")

    @property
    def choices(self) -> list[Record]:
        """The first choice of every question; the others do not count."""
        return [record["choices"][0] for record in self.records]

    @property
    def accept_lengths(self) -> list[int]:
        return [n for choice in self.choices for n in choice["accept_lengths"]]

    @property
    def mat(self) -> float:
        return float(np.mean(self.accept_lengths))

    def task_mat(self, task: str) -> float:
        records = [record for record in self.records if task_of(record["category"]) == task]
        return float(np.mean([n for r in records for n in r["choices"][0]["accept_lengths"]]))

    def per_turn(self, key: str) -> list[Any]:
        """A number for every turn; empty if the trace lacks it for one."""
        values = [value for choice in self.choices for value in choice.get(key) or [None]]
        return values if None not in values else []

    def per_step(self, key: str) -> list[Any]:
        """A number for every step, all turns in one list; empty if one turn lacks it."""
        return [value for turn in self.per_turn(key) for value in turn]

    def speeds(self, task: str | None = None) -> npt.NDArray[np.float64]:
        """Tokens per second of every question, or of a task's, ordered by question id."""
        records = sorted(self.records, key=lambda r: in_order(r["question_id"]))
        return np.array(
            [question_speed(r) for r in records if task is None or task_of(r["category"]) == task]
        )


@dataclass
class Comparison:
    """Traces over the same questions, and which of them are baselines."""

    traces: list[Trace]
    baselines: dict[str, Trace]  # by what they are; the first is the main one
    tasks: list[str]
    first_turns: bool = False  # whether all other turns are left out
    left_out: str = ""  # which questions, and why

    @property
    def main_baseline(self) -> tuple[str, Trace]:
        """What speedups are over: its name, and the trace."""
        return next(iter(self.baselines.items()))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the traces share; empty if none has a sidecar."""
        return next((trace.settings for trace in self.traces if trace.settings), {})

    @property
    def bench_name(self) -> str | None:
        return self.settings.get("bench_name")

    def doubts(self) -> list[str]:
        """Why the traces may not be comparable; see sidecars.doubts."""
        return doubts({trace.label: trace.sidecar for trace in self.traces})

    def cautions(self) -> list[str]:
        """Sentences on how the traces were made that a reader of the speeds should know."""
        said = [self.left_out] if self.left_out else []
        said += self.doubts()
        if self.settings.get("temperature"):
            seeds = {t.settings.get("seed") for t in self.traces if t.settings}
            if len(seeds) > 1:
                said.append("The traces are samples of several seeds, and so of different texts.")
            elif any(t.method in ("baseline", "hf_pld") for t in self.traces):
                said.append(
                    "At a temperature transformers' methods sample other texts than the others, of "
                    "the same distribution."
                )
        spans = [
            (min(stamps), max(stamps), trace.label)
            for trace in self.traces
            if (stamps := [r["tstamp"] for r in trace.records if "tstamp" in r])
        ]
        if spans:
            last_start, _, late = max(spans)
            _, first_end, early = min(spans, key=lambda span: span[1])
            if last_start > first_end:
                said.append(
                    f"{early} was finished before {late} began: "
                    "their speeds are of different times."
                )
        for trace in self.traces:
            known = {0, *trace.sidecar.restored}
            resumed = [start for start in trace.sidecar.starts if start not in known]
            if resumed:
                said.append(
                    f"{trace.label} was stopped and gone on with after "
                    f"{', '.join(map(str, resumed))} answers; what a method keeps across "
                    "questions was then lost."
                )
        return said


def first_turn(record: Record, path: Path) -> Record:
    """A trace line cut to the first turn of its choices."""
    choices = []
    for choice in record["choices"]:
        steps = choice.get("decoding_steps")
        if not isinstance(steps, list) or len(steps) != len(choice["turns"]):
            raise InputError(
                f"question {record['question_id']} in {path} does not count the steps of each "
                "turn; leave out --first-turns"
            )
        cut = {key: value[:1] for key, value in choice.items() if isinstance(value, list)}
        choices.append({**choice, **cut, "accept_lengths": choice["accept_lengths"][: steps[0]]})
    return {**record, "choices": choices}


def read_comparison(
    paths: Sequence[Path],
    base_path: Path | None = None,
    *,
    first_turns: bool = False,
    strict: bool = False,
    without: Mapping[int | str, str] | None = None,
) -> Comparison:
    """Read traces, baselines among them, and check that they can be compared.

    `base_path` is the main baseline, if `paths` lack it or its sidecar does not name its method.
    `first_turns` leaves out all turns but each question's first, `without` says which questions to
    leave out and why, `strict` refuses traces with doubts. InputError if they cannot be compared.
    """
    places = [path.resolve() for path in paths]
    listed = [*paths]
    if base_path is not None and base_path.resolve() not in places:
        listed.insert(0, base_path)
    if len(set(places)) < len(places):
        raise InputError("one trace is given twice; name each once")
    traces = [Trace.read(path) for path in listed]
    left_out = leave_out(traces, without)
    known = next((trace for trace in traces if trace.settings), traces[0])
    for trace in traces:
        check_comparable(known, trace)
        if first_turns:
            trace.records = [first_turn(record, trace.path) for record in trace.records]
    tell_apart(traces)
    baselines: dict[str, Trace] = {}
    if base_path is not None:
        trace = next(t for t in traces if t.path.resolve() == base_path.resolve())
        baselines[BASELINES.get(trace.method or "", trace.label)] = trace
    for method, name in BASELINES.items():
        for trace in traces:
            if trace.method == method:
                baselines.setdefault(name, trace)
    if not baselines:
        raise InputError(
            f"no baseline among the {len(traces)} traces; add one made with the method "
            f"{' or '.join(BASELINES)}, or name it with --base-path"
        )
    found = Comparison(traces, baselines, list_tasks(traces[0].records), first_turns, left_out)
    if strict and found.doubts():
        raise InputError(f"--strict: {found.doubts()[0]}")
    return found


def leave_out(traces: Sequence[Trace], without: Mapping[int | str, str] | None = None) -> str:
    """Remove the questions that one trace did not answer from all; a sentence that names them.

    `without` holds further questions to leave out, and why. InputError if a trace is left empty.
    """
    reasons = {**(without or {}), **failures({trace.path: trace.failed for trace in traces})}
    for trace in traces:
        trace.records = [r for r in trace.records if r["question_id"] not in reasons]
    if not all(trace.records for trace in traces):
        paths = ", ".join(str(trace.path) for trace in traces)
        raise InputError(
            f"no question is answered in {'both' if len(traces) == 2 else 'all'} of {paths}; run "
            "those that failed again"
        )
    if not reasons:
        return ""
    first, why = next(iter(reasons.items()))
    return f"{len(reasons)} question(s) that could not be answered left out, as {first} ({why})."


def tell_apart(traces: Sequence[Trace]) -> None:
    """Label traces of one method by their runs' names, or by their paths if those are equal."""
    for names in ([str(t.records[0]["model_id"]) for t in traces], [str(t.path) for t in traces]):
        labels = [trace.label for trace in traces]
        for trace, name in zip(traces, names, strict=True):
            if labels.count(trace.label) > 1:
                trace.label = name


def check_comparable(one: Trace, other: Trace, *, but: Sequence[str] = ()) -> None:
    """Raise InputError unless two traces differ in their methods and the settings `but` only."""
    if one.settings and other.settings:
        keys = [key for key in COMMON if key not in but]
        for key in differing(one.settings, other.settings, keys):
            raise InputError(
                f"{one.path} and {other.path} cannot be compared: {key} is "
                f"{one.settings.get(key)!r} in the one, {other.settings.get(key)!r} in the other; "
                "give traces of one bench, model and setting"
            )
    if "questions" not in but:
        check_same_questions(one.path, one.records, other.path, other.records)


def failures(failed: Mapping[Path, Sequence[Record]]) -> dict[int | str, str]:
    """Reasons why questions were not answered, by id; the first trace's reason if several fail."""
    reasons: dict[int | str, str] = {}
    for path, records in failed.items():
        for record in records:
            reasons.setdefault(record["question_id"], f"{path.name}: {record['error']}")
    return reasons


def check_same_questions(
    path: Path, records: Sequence[Record], other_path: Path, others: Sequence[Record]
) -> None:
    """Raise InputError unless two traces answer the same questions."""
    ours = {(r["question_id"], r["category"]) for r in records}
    theirs = {(r["question_id"], r["category"]) for r in others}
    if ours != theirs:
        odd = sorted(ours ^ theirs, key=str)
        raise InputError(
            f"{path} and {other_path} answer different questions: {len(odd)} are in one only, "
            f"the first is {odd[0][0]} ({odd[0][1]}); run both over the same questions"
        )


def compare_speeds(
    trace: Sequence[Record], base: Sequence[Record], count_base: TokenCount
) -> dict[str, SpeedRow]:
    """One row per task present, Spec-Bench's first in its order, and `overall`.

    A task's tokens/s is the mean over its questions. `count_base` counts the baseline's tokens;
    InputError if it finds none.
    """
    rows: dict[str, SpeedRow] = {}
    for name in [*list_tasks(trace), "overall"]:
        ours, theirs = (
            [r for r in records if name in ("overall", task_of(r["category"]))]
            for records in (trace, base)
        )
        speed = float(np.mean([question_speed(record) for record in ours]))
        base_speed = float(np.mean([question_speed(record, count_base) for record in theirs]))
        if base_speed == 0:
            raise InputError(
                "the baseline's answers count no tokens, so there is no speedup to give"
            )
        accept_lengths = [n for r in ours for n in r["choices"][0]["accept_lengths"]]
        rows[name] = {
            "questions": len(ours),
            "steps": len(accept_lengths),
            "mat": float(np.mean(accept_lengths)),
            "tokens_per_second": speed,
            "baseline_tokens_per_second": base_speed,
            "speedup": speed / base_speed,
        }
    return rows
