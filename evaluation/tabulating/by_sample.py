"""How methods gain from sample to sample of one prompt, in traces of --num-choices."""

from __future__ import annotations

from collections.abc import Sequence

from ..traces.comparing import Comparison, Trace
from ..traces.reading import Record
from .table import Row, Table


def count_samples(comparison: Comparison) -> int:
    """How many answers to each question all traces have."""
    return min(len(r["choices"]) for trace in comparison.traces for r in trace.records)


def spans(count: int) -> list[range]:
    """Samples in groups, the n-th: 1, 2, 3 and 4, 5 to 8 and so on."""
    found = [range(1)]
    while found[-1].stop < count:
        end = found[-1].stop
        found.append(range(end, min(2 * end, count)))
    return found


def by_sample(comparison: Comparison) -> Table:
    """The table of MAT and tokens/s by the sample's number, for traces of two samples or more.

    Tokens/s are those of all questions, over the main baseline's of the same samples.
    """
    name, baseline = comparison.main_baseline
    groups = {
        f"{group.start + 1}" if len(group) == 1 else f"{group.start + 1}–{group.stop}": group
        for group in spans(count_samples(comparison))
    }
    first, *_, last = groups
    groups["all"] = range(groups[last].stop)
    columns = {f"{key}:{title}": f"{key}\n{title}" for key in ("MAT", "speed") for title in groups}
    columns["gain"] = "MAT last\n÷ first"
    rows = []
    for trace in comparison.traces:
        values: dict[str, float] = {}
        for title, group in groups.items():
            own, base = chosen(trace, group), chosen(baseline, group)
            values[f"MAT:{title}"] = mat(own)
            values[f"speed:{title}"] = rate(own) / rate(base)
        values["gain"] = values[f"MAT:{last}"] / values[f"MAT:{first}"]
        rows.append(Row(trace.label, values))
    notes = [
        "By the number of the sample of one prompt. speed: tokens per second of all questions, the "
        f"prompt included, over those of {name} in the same samples. After the first, a prompt is "
        "not read again, but by transformers' methods.",
    ]
    return Table(f"{comparison.bench_name or 'Traces'}: by sample", columns, rows, notes)


def chosen(trace: Trace, group: Sequence[int]) -> list[Record]:
    """The choices of a group of samples."""
    return [record["choices"][index] for record in trace.records for index in group]


def mat(choices: Sequence[Record]) -> float:
    lengths = [length for choice in choices for length in choice["accept_lengths"]]
    return float(sum(lengths) / len(lengths))


def rate(choices: Sequence[Record]) -> float:
    """Tokens per second."""
    tokens = sum(sum(choice["new_tokens"]) for choice in choices)
    return float(tokens / sum(sum(choice["wall_time"]) for choice in choices))
