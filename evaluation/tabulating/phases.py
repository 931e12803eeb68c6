"""Where a step's time goes, and how long the first token takes, by method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..traces.comparing import Comparison, Trace, in_order
from ..traces.reading import PHASES, Record
from .table import Row, Table

STEP_PHASES = tuple(phase.removesuffix("_seconds") for phase in PHASES[1:])  # all but prefill


@dataclass(frozen=True)
class Timing:
    """Where the time of one question went, in seconds; None for what its trace does not say."""

    tokens: int
    steps: int
    after_prefill: float | None
    first_token: float | None  # of the first turn
    phases: dict[str, float]  # of STEP_PHASES those that the trace has, over all turns' steps

    @classmethod
    def of(cls, choice: Record) -> Timing:
        """The timing of a question's answer."""

        def total(key: str) -> float | None:
            values = choice.get(key) or [None]
            return None if None in values else float(sum(values))

        prefill = total("prefill_seconds")
        first = None if prefill is None else float(choice["prefill_seconds"][0])
        steps = (choice.get("step_seconds") or [[]])[0]
        if first is None and steps and "prefill_seconds" in choice:
            # generate() does not time its prefill: its first step is the forward over the prompt.
            first = float(steps[0])
        return cls(
            tokens=int(sum(choice["new_tokens"])),
            steps=len(choice["accept_lengths"]),
            after_prefill=None if prefill is None else sum(choice["wall_time"]) - prefill,
            first_token=first,
            phases={
                phase: seconds
                for phase in STEP_PHASES
                if (seconds := total(f"{phase}_seconds")) is not None
            },
        )

    def outside(self, inside: Sequence[str]) -> float | None:
        """Percent of the steps' time that is in none of the phases `inside`."""
        spent = sum(self.phases.values())
        if len(self.phases) < len(STEP_PHASES) or not spent:
            return None
        return 100 * (1 - sum(self.phases[phase] for phase in inside) / spent)


def timings(trace: Trace) -> list[Timing]:
    """The timing of every question, in the order of the question ids."""
    records = sorted(trace.records, key=lambda record: in_order(record["question_id"]))
    return [Timing.of(record["choices"][0]) for record in records]


def median(values: Sequence[float | None]) -> float | None:
    """The median; None unless every value is known."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if values and len(known) == len(values) else None


def phases(comparison: Comparison) -> Table:
    """The table of nodes per step, time to the first token and milliseconds of each phase.

    What a trace does not hold is a dash.
    """
    name, baseline = next(iter(comparison.baselines.items()))
    base = timings(baseline)
    on_gpu = comparison.settings.get("device", "cpu") != "cpu"
    inside = ("verify", "accept") if on_gpu else ("verify",)
    rows = []
    for trace in comparison.traces:
        own = timings(trace)
        sizes = trace.per_step("tree_sizes")
        values: dict[str, float | None] = {
            "tree_size": float(np.mean(sizes)) if sizes else None,
            "after_prefill": median(
                [t.tokens / t.after_prefill if t.after_prefill else None for t in own]
            ),
            "first_token": median([t.first_token and 1e3 * t.first_token for t in own]),
            "first_token_ratio": median(
                [
                    a.first_token / b.first_token if a.first_token and b.first_token else None
                    for a, b in zip(own, base, strict=True)
                ]
            ),
            "outside": median([t.outside(inside) for t in own]),
        }
        for phase in STEP_PHASES:
            values[phase] = median(
                [1e3 * t.phases[phase] / t.steps if phase in t.phases else None for t in own]
            )
        known = {key: value for key, value in values.items() if value is not None}
        rows.append(Row(trace.label, known))
    columns = {
        "tree_size": "nodes",
        "after_prefill": "tokens/s\nafter\nprefill",
        "first_token": "first\ntoken ms",
        "first_token_ratio": "÷ base",
        **{phase: f"{phase}\nms" for phase in STEP_PHASES},
        "outside": "outside\nverify %",
    }
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
    return Table(title, columns, rows, notes, ranked=False)
