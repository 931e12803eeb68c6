"""What the columns of the tables hold, from traces made to be compared.

Speeds and MAT are those of speed.py. The interval is of the overall speedup: the bootstrap over
questions, method and baseline resampled together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model.logitspec.errors import InputError

from ..scoring.accuracy import accuracy, equal_answers, find_keys, mark
from ..traces.comparing import Comparison, Trace, check_comparable, failures, read_comparison
from ..traces.published import ABOUT, PUBLISHED
from .table import Row, Table

RESAMPLES = 10_000
ACCURACY = {"accuracy": "accuracy % [95 %]"}
PUBLISHED_NOTE = "Published figures are their sources' own, on other machines and models."


def speedup(trace: Trace, base: Trace, task: str | None = None) -> float:
    """The ratio of two traces' mean tokens/s, overall or in a task."""
    return float(trace.speeds(task).mean() / base.speeds(task).mean())


def compare(comparison: Comparison, *, published: bool = False, task_mat: bool = False) -> Table:
    """The table of traces over one benchmark.

    Args:
        comparison: the traces.
        published: append the published figures of the benchmark; InputError if there are none.
        task_mat: the tasks' columns hold MAT instead of the speedup.
    """
    (main, baseline), *others = comparison.baselines.items()
    tasks = comparison.tasks if len(comparison.tasks) > 1 else []
    columns = {f"task:{task}": task for task in tasks}
    columns |= {"mat": "MAT", "tokens_per_second": "tokens/s", "speedup": "speedup [95 %]"}
    columns |= {f"over:{name}": f"over {name}" for name, _ in others}
    columns |= {"slowest": "slowest 5 %"}
    keys, unscored = find_keys(comparison)
    columns |= ACCURACY if keys else {}
    columns |= {"equal": "equal answers"}
    last, unassisted = (others or [(main, baseline)])[-1]
    rows = []
    for trace in comparison.traces:
        values = {
            f"task:{task}": trace.task_mat(task) if task_mat else speedup(trace, baseline, task)
            for task in tasks
        }
        values["mat"] = trace.mat
        values["tokens_per_second"] = float(trace.speeds().mean())
        values["speedup"] = speedup(trace, baseline)
        values |= {f"over:{name}": speedup(trace, other) for name, other in others}
        values["slowest"] = float(np.percentile(trace.speeds() / unassisted.speeds(), 5))
        row = Row(trace.label, values)
        rows.append(row)
        if keys:
            values["accuracy"], row.intervals["accuracy"] = accuracy(mark(trace, keys))
        if trace is not baseline:
            row.intervals["speedup"] = bootstrap_interval(trace.speeds(), baseline.speeds())
            values["equal"] = equal_answers(trace, baseline)
    title = f"{comparison.bench_name or 'Traces'}: speedup over {main}"
    turns = ", their first turns only" if comparison.first_turns else ""
    notes = [
        f"{len(baseline.records)} questions{turns}; 95 % bootstrap interval over questions; "
        f"slowest 5 %: over {last}, one question in twenty gains no more",
        *(["The tasks' columns are MAT."] if task_mat else []),
        *([f"Accuracy: of {len(keys)} questions; Wilson's interval."] if keys else []),
        *([unscored] if unscored else []),
        *comparison.cautions(),
    ]
    if published:
        cited = published_rows(comparison.bench_name, "speedup", "mat")
        rows += cited
        notes.append(about_published(cited))
    return Table(title, columns, rows, notes)


class Grouping(NamedTuple):
    """What tells the groups of one table apart."""

    setting: str
    name: str  # of the setting, in the title
    heading: str  # before a group's columns; {} is the setting's value
    but: tuple[str, ...]  # settings that may differ between groups


BENCHES = Grouping("bench_name", "benchmark", "{}", ("bench_name", "questions", "max_new_tokens"))
TEMPERATURES = Grouping("temperature", "temperature", "T={}", ("temperature",))


def compare_groups(
    comparisons: Sequence[Comparison], grouping: Grouping = BENCHES, *, published: bool = False
) -> Table:
    """The table of several groups of traces: a MAT and a speedup column each, a row per method.

    Speedups are over the first kind of baseline that all groups have. `grouping` is what they
    differ in; InputError if two are alike, differ in their models or other settings, or share no
    kind of baseline. `published`: as in compare().
    """
    values = [c.settings.get(grouping.setting) for c in comparisons]
    names = [grouping.heading.format(value) for value in values]
    if None in values or len(set(names)) < len(names):
        shown = ", ".join("''" if value is None else repr(value) for value in values)
        raise InputError(f"the {grouping.name}s {shown} are not one of each")
    first = comparisons[0].traces[0]
    kinds = [[*c.baselines] for c in comparisons]
    main = next((kind for kind in kinds[0] if all(kind in own for own in kinds)), None)
    if main is None:
        odd = next(at for at, own in enumerate(kinds) if kinds[0][0] not in own)
        raise InputError(
            f"the baseline of {names[0]} is {kinds[0][0]}, that of {names[odd]} is "
            f"{kinds[odd][0]}; give both one of a kind"
        )
    columns: dict[str, str] = {}
    rows: dict[tuple[str, str], Row] = {}
    notes: list[str] = []
    for name, comparison in zip(names, comparisons, strict=True):
        check_comparable(first, comparison.traces[0], but=grouping.but)
        base = comparison.baselines[main]
        speedups, mats = f"speedup:{name}", f"mat:{name}"
        columns |= {mats: f"{name} MAT", speedups: f"{name} speedup"}
        found = [
            Row(trace.label, {mats: trace.mat, speedups: speedup(trace, base)})
            for trace in comparison.traces
        ]
        if published:
            found += published_rows(name, speedups, mats)
        keys, note = find_keys(comparison)
        if keys:
            columns[f"accuracy:{name}"] = f"{name} accuracy %"
            for row, trace in zip(found, comparison.traces, strict=False):
                row.values[f"accuracy:{name}"], _ = accuracy(mark(trace, keys))
        notes += [note] if note else []
        for row in found:
            rows.setdefault((row.name, row.source), row).values.update(row.values)
    notes = [*dict.fromkeys([*notes, *(said for c in comparisons for said in c.cautions())])]
    if published:
        notes.append(about_published([row for row in rows.values() if row.source]))
    title = f"Speedup over {main}, by {grouping.name}"
    return Table(title, columns, sorted(rows.values(), key=lambda row: bool(row.source)), notes)


def bootstrap_interval(
    speeds: npt.NDArray[np.float64], base: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """95 % percentile interval of mean(speeds) / mean(base), both [questions], paired."""
    chosen = np.random.default_rng(0).integers(len(speeds), size=(RESAMPLES, len(speeds)))
    ratios = speeds[chosen].mean(axis=1) / base[chosen].mean(axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def published_rows(bench_name: str | None, speedup: str, mat: str) -> list[Row]:
    """The published figures of a benchmark, under the given columns."""
    found = [p for p in PUBLISHED if p.bench_name == bench_name]
    if not found:
        known = ", ".join(sorted({p.bench_name for p in PUBLISHED}))
        raise InputError(
            f"no published figures for the bench {bench_name!r}; there are some for {known}"
        )
    return [
        Row(
            p.method,
            {key: v for key, v in ((speedup, p.speedup), (mat, p.mat)) if v is not None},
            source=f"published: {p.model}; {p.source}",
        )
        for p in found
    ]


def about_published(rows: Sequence[Row]) -> str:
    """What published rows are, and where their sources are found."""
    sources = " ".join(row.source for row in rows)
    said = [f"{name}: {text}." for name, text in ABOUT.items() if name in sources]
    return " ".join([PUBLISHED_NOTE, *said])


def read_groups(
    paths: Sequence[Path], grouping: Grouping, *, first_turns: bool = False, strict: bool = False
) -> list[Comparison]:
    """Read traces of several groups, each with a baseline, in the order given; numbers rising.

    Groups that differ in their temperature answer the same questions: one that a trace of any of
    them did not answer is left out of all. Errors are those of read_comparison(), for any group.
    """
    found: dict[Any, list[Path]] = {}
    failed = {}
    for path in paths:
        trace = Trace.read(path)
        failed[path] = trace.failed
        found.setdefault(trace.settings.get(grouping.setting), []).append(path)
    order = list(found)
    if all(isinstance(value, int | float) for value in order):
        order.sort()
    reasons = failures(failed) if grouping is TEMPERATURES else {}
    return [
        read_comparison(found[value], first_turns=first_turns, strict=strict, without=reasons)
        for value in order
    ]
