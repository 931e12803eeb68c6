"""What benchmarks.compare found: records, their figures, tables and the picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evaluation.plots import new_figure, style
from evaluation.tables import Row, Table, to_markdown
from model.logitspec.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINE = "baseline"  # transformers' generate()
VANILLA = "vanilla"  # our loop without drafts
PHASES = ("draft", "build", "verify", "accept", "commit")  # of a step, in this order
KIND = "benchmarks.compare 1"  # tells this command's JSON from any other


@dataclass(frozen=True)
class Record:
    """One method's answer to one question; times in seconds."""

    question_id: int | str
    category: str
    prompt_tokens: int
    max_new_tokens: int
    place: int  # in the turn order of this question, the one who began has 0
    seconds: float  # the whole call
    tokens: int
    steps: int
    tree_nodes: int | None  # of all steps' trees together
    first_token_seconds: float  # prefill of our loop, generate(max_new_tokens=1) of transformers
    phase_seconds: dict[str, float] | None  # of PHASES, summed over the steps; our loop only

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> Record:
        """The record that asdict() wrote.

        Raises:
            KeyError, TypeError or ValueError: it is none.
        """
        record = cls(**entry)
        numbers = [record.seconds, record.tokens, record.steps, record.first_token_seconds]
        if record.phase_seconds is not None:
            numbers.append(sum(record.phase_seconds[phase] for phase in PHASES))
        if not all(number > 0 for number in numbers):
            raise ValueError("a figure is missing")
        return record


Records = dict[str, list[Record]]  # by method, each with the same questions in the same order


@dataclass(frozen=True)
class Ratio:
    """How many times faster than another method: per question, and over all questions."""

    median: float
    lower_quartile: float
    upper_quartile: float
    of_totals: float  # all tokens by all seconds, of the one by the other

    @classmethod
    def of(cls, own: Sequence[Record], other: Sequence[Record]) -> Ratio:
        """The ratio between the records of two methods, of the same questions in one order."""
        ratios = [a.speed / b.speed for a, b in zip(own, other, strict=True)]
        low, median, high = map(float, np.percentile(ratios, (25, 50, 75)))
        return cls(median, low, high, total_speed(own) / total_speed(other))


@dataclass(frozen=True)
class Summary:
    """What is reported of a method; None for what it does not measure or has no partner for."""

    tokens_per_second: float  # median over questions
    over_generate: Ratio | None
    over_vanilla: Ratio | None
    mat: float  # tokens per step
    tree_size: float | None  # nodes per step, root included
    phase_ms: dict[str, float] | None  # per step: each question's mean, the median of these
    outside_verify_percent: float | None  # of a step, median over questions
    first_token_ms: float  # median over questions
    first_token_over_generate: float | None  # time by time, median over questions


@dataclass
class Results:
    """All that was measured, and with what."""

    settings: dict[str, Any]
    environment: dict[str, Any]
    records: Records = field(default_factory=dict)

    @property
    def questions(self) -> int:
        """How many were finished, by every method."""
        return min(map(len, self.records.values()), default=0)

    @property
    def on_gpu(self) -> bool:
        return bool(self.settings["device"] != "cpu")

    def summaries(self) -> dict[str, Summary]:
        return summarize(self.records, waits_in_accept=self.on_gpu)

    def to_json(self) -> dict[str, Any]:
        summaries = self.summaries()
        return {
            "kind": KIND,
            "settings": self.settings,
            "environment": self.environment,
            "methods": {
                name: {"summary": asdict(summaries[name]), "records": [*map(asdict, records)]}
                for name, records in self.records.items()
            },
        }

    @classmethod
    def read(cls, path: Path) -> Results:
        """The results in a file that --json wrote.

        Raises:
            InputError: it cannot be read or holds something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["kind"] != KIND:
                raise ValueError(f"it is a {content['kind']!r}")
            records = {
                str(name): [Record.parse(entry) for entry in method["records"]]
                for name, method in content["methods"].items()
            }
            asked = {tuple(record.question_id for record in own) for own in records.values()}
            if len(asked) != 1 or asked == {()}:
                raise ValueError("its methods did not answer the same questions")
            settings, environment = dict(content["settings"]), dict(content["environment"])
            results = cls(settings, environment, records)
            speed_table(results)  # reads every setting that is shown
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path} is not what `python -m benchmarks.compare --json FILE` writes; "
                "give a file that is"
            ) from error
        return results


def total_speed(records: Sequence[Record]) -> float:
    """Tokens per second over all questions together."""
    return sum(record.tokens for record in records) / sum(record.seconds for record in records)


def median(values: Sequence[float] | npt.NDArray[np.float64]) -> float:
    return float(np.median(values))


def summarize(records: Records, *, waits_in_accept: bool = False) -> dict[str, Summary]:
    """The reported figures of every method.

    Args:
        records: by method; at least one each, of the same questions in one order.
        waits_in_accept: whether the accept phase holds the wait for the forward, as on a GPU, and
            so is no part of what is outside of verification.
    """
    return {
        name: summarize_one(
            own, records.get(BASELINE), records.get(VANILLA), waits_in_accept=waits_in_accept
        )
        for name, own in records.items()
    }


def summarize_one(
    own: Sequence[Record],
    baseline: Sequence[Record] | None,
    vanilla: Sequence[Record] | None,
    *,
    waits_in_accept: bool,
) -> Summary:
    """The figures of one method, beside the two it is compared with if they were measured."""
    steps = sum(record.steps for record in own)
    nodes = [record.tree_nodes for record in own if record.tree_nodes is not None]
    phase_ms = outside = None
    split = [(r.phase_seconds, r.steps) for r in own if r.phase_seconds is not None]
    if split:
        # [questions, phases]
        ms = np.array([[1e3 * phases[p] / n for p in PHASES] for phases, n in split])
        phase_ms = {phase: median(ms[:, index]) for index, phase in enumerate(PHASES)}
        forward = ms[:, PHASES.index("verify")]
        if waits_in_accept:
            forward = forward + ms[:, PHASES.index("accept")]
        outside = median(100 * (1 - forward / ms.sum(axis=1)))
    first = [record.first_token_seconds for record in own]
    return Summary(
        tokens_per_second=median([record.speed for record in own]),
        over_generate=Ratio.of(own, baseline) if baseline else None,
        over_vanilla=Ratio.of(own, vanilla) if vanilla else None,
        mat=sum(record.tokens for record in own) / steps,
        tree_size=sum(nodes) / steps if len(nodes) == len(own) else None,
        phase_ms=phase_ms,
        outside_verify_percent=outside,
        first_token_ms=1e3 * median(first),
        first_token_over_generate=median(
            [a / b.first_token_seconds for a, b in zip(first, baseline, strict=True)]
        )
        if baseline
        else None,
    )


@dataclass
class Figures(Table):
    """A table whose spreads, under KEY:low and KEY:high, stand behind their figures."""

    def cell(self, row: Row, key: str) -> str:
        if key not in row.values:
            return "-"
        text = f"{row.values[key]:.2f}"
        if f"{key}:low" in row.values:
            text += f" [{row.values[f'{key}:low']:.2f}, {row.values[f'{key}:high']:.2f}]"
        return text

    def best(self, row: Row, key: str) -> bool:
        """Only of what is better when there is more of it."""
        more_is_better = key == "speed" or key.startswith("over_")
        return more_is_better and super().best(row, key)


def speed_table(results: Results) -> Table:
    """How fast each method is, and beside which."""
    columns = {
        "speed": "tokens/s",
        "over_generate": "× generate() [quartiles]",
        "over_generate_total": "of totals",
        "over_vanilla": "× vanilla [quartiles]",
        "over_vanilla_total": "of totals",
        "mat": "MAT",
        "tree_size": "tree nodes",
        "first_token": "first token ms",
        "first_token_ratio": "time ÷ generate()'s",
    }
    rows = []
    for name, summary in results.summaries().items():
        values: dict[str, float | None] = {
            "speed": summary.tokens_per_second,
            "mat": summary.mat,
            "tree_size": summary.tree_size,
            "first_token": summary.first_token_ms,
            "first_token_ratio": summary.first_token_over_generate,
        }
        for key, ratio in (
            ("over_generate", summary.over_generate),
            ("over_vanilla", summary.over_vanilla),
        ):
            if ratio is not None:
                values[key] = ratio.median
                values[f"{key}:low"] = ratio.lower_quartile
                values[f"{key}:high"] = ratio.upper_quartile
                values[f"{key}_total"] = ratio.of_totals
        rows.append(Row(name, {key: value for key, value in values.items() if value is not None}))
    settings = results.settings
    notes = [
        f"{settings['model']}, {settings['dtype']}, {settings['device_name']}, "
        f"{settings['kernels']} kernels, at most {settings['max_new_tokens']} new tokens; "
        f"{results.questions} of {settings['question_count']} questions answered by all.",
        "Medians over questions; `of totals` is all tokens by all seconds. The first token: our "
        "loop's prefill, transformers' generate(max_new_tokens=1).",
    ]
    notes += [f"Without {name}: {why}." for name, why in settings["left_out"].items()]
    return Figures(f"{settings['bench_name']}, first turns: speed", columns, rows, notes)


def phase_table(results: Results) -> Table:
    """Where the time of a step goes."""
    columns = {phase: f"{phase} ms" for phase in PHASES} | {"outside": "outside verify %"}
    rows = []
    for name, summary in results.summaries().items():
        values = dict(summary.phase_ms or {})
        if summary.outside_verify_percent is not None:
            values["outside"] = summary.outside_verify_percent
        rows.append(Row(name, values))
    notes = [
        "Per step, prefill left out; medians over questions. What a drafter does with the prompt "
        "counts as draft; generate() does not say where its time goes."
    ]
    if results.on_gpu:
        notes.append(
            "On a GPU verify is the start of the forward and accept holds the wait for it, so "
            "neither counts as outside."
        )
    return Figures("time per step", columns, rows, notes)


def markdown(results: Results) -> str:
    return "\n".join(to_markdown(table) for table in (speed_table(results), phase_table(results)))


def check_drawable(methods: Sequence[str], plot: Path | None) -> None:
    """Raise InputError if there is nothing that the picture's bars could be measured by."""
    if plot is not None and BASELINE not in methods:
        raise InputError(
            f"--plot {plot} draws the ratio to the method {BASELINE}, which is not among "
            f"{', '.join(methods)}; add it or leave out --plot"
        )


def draw(results: Results) -> Figure:
    """Bars of the ratio to generate() with their quartiles, beside bars of a step's phases."""
    ratios = {
        name: (summary.over_generate, summary.phase_ms)
        for name, summary in results.summaries().items()
        if summary.over_generate is not None
    }
    order = sorted(ratios, key=lambda name: -ratios[name][0].median)
    figure = new_figure(11, 1.6 + 0.42 * len(order))
    speed, time_ = figure.subplots(1, 2, sharey=True)

    found = [ratios[name][0] for name in order]
    medians = np.array([ratio.median for ratio in found])
    high = np.array([ratio.upper_quartile for ratio in found])
    low = np.array([ratio.lower_quartile for ratio in found])
    speed.barh(order, medians, 0.7, color="0.75", edgecolor="black", linewidth=0.6)
    speed.errorbar(
        medians, order, xerr=[medians - low, high - medians], fmt="none", color="black", capsize=3
    )
    speed.axvline(1, color="black", linewidth=0.8, linestyle="--")
    for row, ratio in enumerate(found):
        # behind the dashed line too, so that it does not cross the number
        end = ratio.upper_quartile if ratio.upper_quartile > 1 else max(1, ratio.median)
        speed.annotate(
            f"{ratio.median:.2f}", (end, row), (5, 0), textcoords="offset points", va="center"
        )
    speed.set_xlim(0, 1.18 * max(1.0, *high))
    speed.set_xlabel("times as fast as transformers' generate()\nmedian and quartiles")

    left = np.zeros(len(order))
    for index, phase in enumerate(PHASES):
        widths = np.array([(ratios[name][1] or {}).get(phase, 0.0) for name in order])
        time_.barh(order, widths, 0.7, left=left, label=phase, **style(index, len(PHASES)))
        left += widths
    for row, name in enumerate(order):
        said = f"{left[row]:.1f}" if ratios[name][1] else "generate() does not say"
        time_.annotate(said, (left[row], row), (5, 0), textcoords="offset points", va="center")
    time_.set_xlim(0, 1.15 * float(left.max()) or 1)
    time_.set_xlabel("milliseconds per step, without prefill\nmedian of each phase")
    time_.legend(ncols=len(PHASES), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False,
                 columnspacing=1.2, handlelength=1.4)  # fmt: skip
    speed.invert_yaxis()
    return figure
