"""A set of traces made to be compared: the same questions, model and settings, several methods.

tables.py, plots.py and report.py read their traces through here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.logitspec.errors import InputError

from .speed import TASKS, recorded_tokens, task_of
from .traces import Record, meta_path, read_trace

# Settings in which traces of one comparison agree; the others are the methods' own.
COMMON = (
    "bench_name", "questions", "model", "model_fingerprint", "template", "max_new_tokens",
    "temperature", "dtype", "device", "num_gpus_per_model",
)  # fmt: skip
BASELINES = {"baseline": "transformers' generate()", "vanilla": "one-node loop"}  # main one first


@dataclass
class Trace:
    """One method's answers and how they were made."""

    path: Path
    records: list[Record]
    settings: dict[str, Any]  # empty where there is no sidecar, as with the reference's traces
    environments: list[dict[str, Any]]
    label: str

    @classmethod
    def read(cls, path: Path) -> Trace:
        """A trace with its sidecar.

        Raises:
            InputError: the trace cannot be read, or the sidecar is there and broken.
        """
        records = read_trace(path)
        meta: Any = {}
        if meta_path(path).is_file():
            try:
                meta = json.loads(meta_path(path).read_text(encoding="utf-8"))
                meta = {"settings": dict(meta["settings"]), "environments": [*meta["environments"]]}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{meta_path(path)} does not say how the trace was made; delete it or run again"
                ) from error
        settings = meta.get("settings", {})
        label = str(settings.get("method") or records[0]["model_id"])
        return cls(path, records, settings, meta.get("environments", []), label)

    @property
    def method(self) -> str | None:
        return self.settings.get("method")

    @property
    def choices(self) -> list[Record]:
        """The first choice of every question, the one that counts."""
        return [record["choices"][0] for record in self.records]

    @property
    def accept_lengths(self) -> list[int]:
        return [n for choice in self.choices for n in choice["accept_lengths"]]

    @property
    def mat(self) -> float:
        return float(np.mean(self.accept_lengths))

    def per_turn(self, key: str) -> list[Any]:
        """A number of every turn; empty unless the trace holds it for all."""
        values = [value for choice in self.choices for value in choice.get(key) or [None]]
        return values if None not in values else []

    def per_step(self, key: str) -> list[Any]:
        """A number of every step, all turns in one list; empty where the trace does not hold it."""
        return [value for turn in self.per_turn(key) for value in turn]

    def speeds(self, task: str | None = None) -> npt.NDArray[np.float64]:
        """Tokens per second of every question, or of a task's, in the order of the question ids."""
        records = sorted(self.records, key=lambda r: str(r["question_id"]))
        return np.array(
            [
                recorded_tokens(r) / sum(r["choices"][0]["wall_time"])
                for r in records
                if task is None or task_of(r["category"]) == task
            ]
        )


@dataclass
class Comparison:
    """Traces over the same questions, and those that are baselines."""

    traces: list[Trace]
    baselines: dict[str, Trace]  # by what they are; the first is the main one
    tasks: list[str]

    @property
    def main_baseline(self) -> Trace:
        return next(iter(self.baselines.values()))

    @property
    def bench_name(self) -> str | None:
        return self.traces[0].settings.get("bench_name")


def read_comparison(paths: Sequence[Path], base_path: Path | None = None) -> Comparison:
    """Read traces and see that they can be compared.

    Args:
        paths: of the traces, baselines among them.
        base_path: the main baseline, if it is none of them or cannot be told by its sidecar.

    Raises:
        InputError: a trace cannot be read; they differ in questions, model or settings; there is no
            baseline.
    """
    listed = [*paths] if base_path is None or base_path in paths else [base_path, *paths]
    if len({path.resolve() for path in listed}) < len(listed):
        raise InputError("one trace is given twice; name each once")
    traces = [Trace.read(path) for path in listed]
    for trace in traces[1:]:
        check_comparable(traces[0], trace)
    labels = [trace.label for trace in traces]
    for trace in traces:
        if labels.count(trace.label) > 1:  # two settings of one method
            trace.label = str(trace.records[0]["model_id"])
    baselines: dict[str, Trace] = {}
    if base_path is not None:
        trace = traces[listed.index(base_path)]
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
    found = dict.fromkeys(task_of(record["category"]) for record in traces[0].records)
    tasks = [t for t in TASKS if t in found] + [t for t in found if t not in TASKS]
    return Comparison(traces, baselines, tasks)


def check_comparable(one: Trace, other: Trace, *, but: Sequence[str] = ()) -> None:
    """Raise InputError unless two traces differ in their methods only.

    Args:
        but: settings that may differ, questions among them if "questions" is.
    """
    if one.settings and other.settings:
        for key in COMMON:
            ours, theirs = one.settings.get(key), other.settings.get(key)
            if key not in but and ours != theirs:
                raise InputError(
                    f"{one.path} and {other.path} cannot be compared: {key} is {ours!r} in the "
                    f"one, {theirs!r} in the other; give traces of one bench, model and setting"
                )
    if "questions" in but:
        return
    ours, theirs = (
        {(str(r["question_id"]), r["category"]) for r in t.records} for t in (one, other)
    )
    if ours != theirs:
        odd = sorted(ours ^ theirs)
        raise InputError(
            f"{one.path} and {other.path} answer different questions: {len(odd)} are in one only, "
            f"the first is {odd[0][0]} ({odd[0][1]}); run both over the same questions"
        )
