"""Where a step's time goes, and how long the first token takes, by method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..traces.comparing import Comparison, Trace, in_order
from ..traces.reading import PHASES, Record
from .table import Row, Table

STEP_PHASES = tuple(phase.removesuffix("_seconds") for phase in PHASES[1:])  # all but prefill
COLUMNS = {
    "tree_size": "nodes",
    "after_prefill": "tokens/s\nafter\nprefill",
    "first_token": "first\ntoken ms",
    "first_token_ratio": "÷ base",
    **{phase: f"{phase}\nms" for phase in STEP_PHASES},
    "outside": "outside\nverify %",
}
Timing = dict[str, "float | None"]  # by column; None for what the trace does not say


def timing(choice: Record, inside: Sequence[str]) -> Timing:
    """What a question's answer has in COLUMNS; `inside` are the phases that are not outside."""

    def total(key: str) -> float | None:
        values = choice.get(key) or [None]
        return None if None in values else float(sum(values))

    prefill, first, after = total("prefill_seconds"), None, None
    steps = (choice.get("step_seconds") or [[]])[0]
    if prefill is not None:
        first, after = choice["prefill_seconds"][0], sum(choice["wall_time"]) - prefill
    elif steps and "prefill_seconds" in choice:
        # generate() does not time its prefill: its first step is the forward over the prompt.
        first = steps[0]
    seconds = {phase: total(f"{phase}_seconds") for phase in STEP_PHASES}
    known = {phase: spent for phase, spent in seconds.items() if spent is not None}
    whole = sum(known.values()) if len(known) == len(STEP_PHASES) else 0
    count = len(choice["accept_lengths"])
    return {
        "after_prefill": sum(choice["new_tokens"]) / after if after else None,
        "first_token": first and 1e3 * first,
        "outside": 100 * (1 - sum(known[p] for p in inside) / whole) if whole else None,
        **{phase: spent and 1e3 * spent / count for phase, spent in seconds.items()},
    }


def timings(trace: Trace, inside: Sequence[str]) -> list[Timing]:
    """The timing of every question, in the order of the question ids."""
    records = sorted(trace.records, key=lambda record: in_order(record["question_id"]))
    return [timing(record["choices"][0], inside) for record in records]


def step_milliseconds(trace: Trace) -> dict[str, float]:
    """The mean of a step by phase, prefill left out; empty if the trace does not split its time.

    Older traces count build and accept as verify.
    """
    if not trace.per_turn("verify_seconds"):
        return {}
    spent = {phase.removesuffix("_seconds"): sum(trace.per_turn(phase)) for phase in PHASES}
    spent["rest"] = sum(trace.per_turn("wall_time")) - sum(spent.values())
    del spent["prefill"]
    return {name: 1e3 * seconds / len(trace.accept_lengths) for name, seconds in spent.items()}


def phases(comparison: Comparison) -> Table:
    """The table of nodes per step, time to the first token and milliseconds of each phase.

    What a trace does not hold is a dash: a median is known if every question's value is.
    """
    name, baseline = comparison.main_baseline
    on_gpu = comparison.settings.get("device", "cpu") != "cpu"
    inside = ("verify", "accept") if on_gpu else ("verify",)
    base = [question["first_token"] for question in timings(baseline, inside)]
    rows = []
    for trace in comparison.traces:
        own = timings(trace, inside)
        columns = {key: [question[key] for question in own] for key in own[0]}
        columns["first_token_ratio"] = [
            first / other if first and other else None
            for first, other in zip(columns["first_token"], base, strict=True)
        ]
        values = {
            key: float(np.median([value for value in column if value is not None]))
            for key, column in columns.items()
            if None not in column
        }
        if sizes := trace.per_step("tree_sizes"):
            values["tree_size"] = float(np.mean(sizes))
        rows.append(Row(trace.label, values))
    notes = [
        "Milliseconds per step, prefill left out; medians over questions. `verify` is the model's "
        "forward over the draft tree, layers and head. What a drafter does with the prompt counts "
        "as draft.",
        "The first token takes the prefill, in transformers' methods the first forward of "
        f"generate(); the ratio is to {name}. A dash: the trace does not say.",
    ]
    if on_gpu:
        notes.append(
            "On a GPU verify starts the forward and accept waits for its result, so neither counts "
            "as outside."
        )
    title = f"{comparison.bench_name or 'Traces'}: time per step"
    return Table(title, dict(COLUMNS), rows, notes, ranked=False)
