"""What a comparison was made with, in words and as JSON: model, settings, machine, commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from ..traces.comparing import Comparison, Trace
from ..traces.sidecars import COMMON
from .table import Row, Table

SHOWN = ("model", "dtype", "template", "max_new_tokens", "temperature")
KIND = "evaluation.tables 1"  # tells this JSON from any other


def describe(comparison: Comparison) -> list[str]:
    """What was run, on what, when: lines of a Markdown list."""
    questions = len(comparison.traces[0].records)
    lines = [f"{questions} questions of {comparison.bench_name or 'a benchmark'}"]
    known = comparison.settings
    lines += [f"{key.replace('_', ' ')}: {known[key]}" for key in SHOWN if known]
    stamps = [r["tstamp"] for t in comparison.traces for r in t.records if "tstamp" in r]
    if stamps:
        ends = [datetime.fromtimestamp(f(stamps), timezone.utc).date() for f in (min, max)]
        lines.append(f"date: {' to '.join(map(str, dict.fromkeys(ends)))}")
    made = [f"machine: {machine(env)}{commit(env)}" for env in environments(comparison)]
    return [*lines, *dict.fromkeys(made)]


def environments(comparison: Comparison) -> list[dict[str, Any]]:
    """All that the traces were made in, each once."""
    found: list[dict[str, Any]] = []
    for trace in comparison.traces:
        found += [known for known in trace.sidecar.environments if known not in found]
    return found


def machine(environment: Mapping[str, Any]) -> str:
    """Hardware and versions of an environment; KeyError or TypeError if it is none."""
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    found = environment.get("instruction_set")
    return (
        f"{', '.join(environment['device_names'])}, {f'{found}, ' if found else ''}"
        f"{environment['threads']} threads, {environment['platform']}; {versions}"
    )


def commit(environment: Mapping[str, Any]) -> str:
    """The commit of an environment, behind a semicolon; empty where there was no git."""
    if environment["commit"] is None:
        return ""
    changed = " with uncommitted changes" if environment["uncommitted_changes"] else ""
    return f"; commit {environment['commit'][:12]}{changed}"


def own_options(trace: Trace) -> dict[str, Any]:
    """The settings that are the method's own."""
    skipped = {*COMMON, "method", "model_id", "num_choices", "seed"}
    return {key: value for key, value in trace.settings.items() if key not in skipped}


def to_json(comparison: Comparison, tables: Mapping[str, Table]) -> dict[str, Any]:
    """Tables with all that they were made with, for `read_tables` and benchmarks.report."""
    return {
        "kind": KIND,
        "settings": {key: comparison.settings.get(key) for key in COMMON},
        "questions": len(comparison.traces[0].records),
        "first_turns": comparison.first_turns,
        "methods": {trace.label: own_options(trace) for trace in comparison.traces},
        "environments": environments(comparison),
        "tables": {name: asdict(table) for name, table in tables.items()},
    }


def read_tables(content: Mapping[str, Any]) -> dict[str, Table]:
    """The tables in what `to_json` gave; KeyError, TypeError or ValueError for anything else."""
    if content["kind"] != KIND:
        raise ValueError(f"it is a {content['kind']!r}")

    def row(values: Mapping[str, Any]) -> Row:
        found = {**values}
        if ends := found.pop("interval", None):  # earlier versions had one, of the speedup
            found["intervals"] = {"speedup": ends}
        intervals = {key: (low, high) for key, (low, high) in found.pop("intervals", {}).items()}
        return Row(**found, intervals=intervals)

    return {
        name: Table(**{**table, "rows": [row(values) for values in table["rows"]]})
        for name, table in content["tables"].items()
    }
