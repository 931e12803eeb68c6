"""Where a step's time goes, from traces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.logitspec.errors import InputError

from ..pictures.from_traces import by_speed, time_per_step
from ..pictures.style import new_figure
from ..tabulating.origin import describe
from ..tabulating.phases import step_milliseconds
from ..traces.comparing import Comparison
from .sections import Section


def time_section(comparison: Comparison) -> Section:
    """InputError if no trace splits its time into phases."""
    comparison = by_speed(comparison)
    rows: list[Sequence[object]] = []
    phases: list[str] = []
    for trace in comparison.traces:
        parts = step_milliseconds(trace)
        if not parts:
            continue
        phases = list(parts)
        whole = sum(parts.values())
        nodes = np.mean(trace.per_step("tree_sizes"))
        numbers = [f"{parts[phase]:.2f}" for phase in phases]
        outside = f"{100 * (1 - parts['verify'] / whole):.1f}"
        rows.append((trace.label, f"{nodes:.1f}", f"{whole:.2f}", *numbers, outside))
    if not rows:
        raise InputError(
            "--traces: none splits its time into phases; give traces of this project's loop"
        )
    figure = new_figure()
    time_per_step(figure, comparison, "")
    return Section(
        "times",
        "Where a step's time goes",
        f"From traces: {'; '.join(describe(comparison))}.\n\nMilliseconds of a step, mean, prefill "
        "left out; the fastest method first. `verify` is the forward, layers and head but for what "
        "a compiled head leaves to `accept`; `build` takes the tree to the device; `commit` moves "
        "the cache and lets the drafter learn; `rest` lies between the steps.",
        ["method", "nodes", "step", *phases, "outside verify %"],
        rows,
        figure,
    )
