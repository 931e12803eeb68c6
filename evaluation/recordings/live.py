"""Compares live runs with their replay: `--against` of evaluation.replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from model.logitspec.errors import InputError

from ..asking.methods import find_method
from ..command.terminal import drawn
from ..traces.comparing import Trace
from ..traces.reading import output_ids
from ..traces.sidecars import differing
from .format import Recording
from .replaying import Configuration, Summary

# Settings that a live run and a recording must share to have the same answers.
SAME = (
    "model_fingerprint", "tokenizer_fingerprint", "template", "questions", "max_new_tokens",
    "dtype", "temperature", "repetition_penalty",
)  # fmt: skip


def pair_with_live(
    recording: Recording, paths: Sequence[Path], configurations: Sequence[Configuration]
) -> list[tuple[Trace, int | None]]:
    """Traces, each with the index of its configuration; None for vanilla if that is not replayed.

    InputError if a trace is of other questions or another model, or is no run of a configuration.
    """
    pairs: list[tuple[Trace, int | None]] = []
    for path in paths:
        trace = Trace.read(path)
        check_same_run(recording, trace)
        at = next((at for at, c in enumerate(configurations) if is_run_of(trace, c)), None)
        if at is None and trace.method != "vanilla":
            raise InputError(
                f"--against {path} is a run of {trace.method} with options that are not "
                "replayed; add it to --methods or --grid"
            )
        pairs.append((trace, at))
    return pairs


def compare_live(
    recording: Recording,
    base: Summary,
    found: Mapping[int, Summary],
    live: Sequence[tuple[Trace, int | None]],
) -> None:
    """Print live runs, from pair_with_live(), beside their replay; `base` is vanilla's."""
    vanilla = next((trace for trace, _ in live if trace.method == "vanilla"), None)
    table = Table(title="live beside replay", title_justify="left")
    headings = ("MAT live", "replay", "speedup live", "replay", "ratio", "answers alike")
    for heading in ("method", *headings):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for trace, at in live:
        if at is None:
            continue
        summary = found[at]
        cells = [summary.configuration.title, f"{trace.mat:.3f}"]
        cells += [f"{summary.mats['overall']:.3f}", "–", "–", "–"]
        if vanilla is not None:
            measured = float(trace.speeds().mean() / vanilla.speeds().mean())
            predicted = summary.speedup_over(base)
            cells[3:] = f"{measured:.3f}", f"{predicted:.3f}", f"{predicted / measured:.3f}"
        cells.append(alike(recording, trace))
        table.add_row(*cells)
    print(drawn(table), end="")


def check_same_run(recording: Recording, trace: Trace) -> None:
    """Raise InputError unless a trace answers the recording's questions with its model."""
    for key in differing(recording.settings, trace.settings, SAME):
        raise InputError(
            f"--against {trace.path} was made with {key} {trace.settings.get(key)!r}, the "
            f"recording with {recording.settings.get(key)!r}; record or run anew with the same"
        )
    if trace.failed:
        raise InputError(
            f"--against {trace.path}: {len(trace.failed)} question(s) failed, as "
            f"{trace.failed[0]['question_id']} ({trace.failed[0]['error']}); run it again"
        )
    if {r["question_id"] for r in trace.records} != {q.question_id for q in recording.questions}:
        raise InputError(
            f"--against {trace.path} answers other questions than are replayed of "
            f"{recording.path}; run it over the same, or replay fewer with --question-stride"
        )


def is_run_of(trace: Trace, configuration: Configuration) -> bool:
    """Whether a trace has a configuration's method and options; NAME@16 counts as NAME."""
    plain = find_method(configuration.name).name.partition("@")[0]
    return str(trace.method).partition("@")[0] == plain and all(
        trace.settings.get(key) == value for key, value in configuration.options
    )


def alike(recording: Recording, trace: Trace) -> str:
    """The number of turns with the recorded answer, as "3 of 4"."""
    records = {record["question_id"]: record for record in trace.records}
    same = []
    for question in recording.questions:
        record = records[question.question_id]
        answers = output_ids(record, record["choices"][0], trace.path)
        for turn, ids in zip(question.turns, answers, strict=True):
            same.append(turn.output.tolist() == ids)
    return f"{sum(same)} of {len(same)}"
