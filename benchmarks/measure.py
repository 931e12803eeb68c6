"""What the benchmarks share: interleaved timing, quartiles, tables that grow, results kept on disk.

Variants are measured in turn, round after round, so that drift of the machine hits all alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from evaluation.command.files import write_atomically, writing
from evaluation.command.flags import add_slice_flags
from evaluation.command.parser import Parser, at_least, picture, plain_name
from evaluation.traces.environment import describe_environment
from model.logitspec.errors import InputError

MODEL = "checkpoints/smollm2-135m-instruct"
Figures = dict[str, Any]
Key = TypeVar("Key")

INTERRUPTED = "interrupted; what was measured is above, and in the file of --json if one was given"


def quartiles(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Lower quartile, median and upper quartile of some values (one or more), times `scale`."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)) * scale
    return {"low": float(low), "median": float(median), "high": float(high)}


def spread(row: Mapping[str, float], digits: int = 2) -> str:
    """Quartiles as a table shows them: median [low, high]."""
    return f"{row['median']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


class PrintedTable:
    """A table printed row by row, so that an interrupted run has shown what it measured.

    Args:
        title: the line above it.
        columns: heading -> characters; the first is left-aligned, the others right.
    """

    def __init__(self, title: str, columns: Mapping[str, int]) -> None:
        self._widths = list(columns.values())
        print(f"\n{title}")
        self.add(*columns)

    def add(self, *cells: object) -> None:
        first, *rest = zip(map(str, cells), self._widths, strict=True)
        line = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]
        print("  ".join(line).rstrip(), flush=True)


class Results:
    """Settings, environment and rows; in a file, where one is wanted, after every row.

    Args:
        path: the JSON file, or None.
        settings: all flags by name.
        device: what is measured on.

    Raises:
        InputError: the file is there or cannot be written; said before anything is measured.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, object], device: str) -> None:
        flags = {key: plain(value) for key, value in settings.items()}
        self.content: Figures = {"settings": flags, "environment": describe_environment(device)}
        self._path = path
        if path is not None and path.exists():
            raise InputError(f"--json {path} is there already; move it away or give another")
        self._write()

    def add(self, section: str, row: Figures) -> None:
        self.content.setdefault(section, []).append(row)
        self._write()

    def rows(self, section: str) -> list[Figures]:
        found: list[Figures] = self.content.get(section, [])
        return found

    def _write(self) -> None:
        if self._path is None:
            return
        with writing(self._path, "give --json another file"):
            write_atomically(self._path, self.content)


def add_output_flags(parser: Parser, *, plot: bool = False) -> None:
    """Where the figures go."""
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="all figures, kept up after every row")
    if plot:
        add("--plot", type=picture, metavar="FILE.png", help="draw them; needs the extra `plots`")


def add_model_flags(parser: Parser) -> None:
    """The model and what it runs on, all but its dtype."""
    add = parser.add_argument
    add("--model-path", default=MODEL, help="checkpoint or hub id")
    for flag in ("--device", "--cpu-kernels", "--cuda-graphs"):
        add(flag, default="auto", help="as in the inference scripts")


def add_question_flags(parser: Parser, *, bench_name: str = "spec_bench", stride: int = 1) -> None:
    """What is asked of which model, as in the inference scripts, with a benchmark's defaults."""
    add = parser.add_argument
    add("--model-path", default=MODEL, help="checkpoint or hub id")
    add("--bench-name", default=bench_name, type=plain_name, help="data/NAME/question.jsonl")
    add_slice_flags(parser, stride)
    add("--max-new-tokens", type=at_least(1), default=128, help="most tokens per answer")
    add("--conv-template", metavar="NAME", help="as in the inference scripts")
    parser.set_defaults(cap_new_tokens=True, num_choices=1, seed=0)


def plain(value: object) -> object:
    """A flag's value as JSON can hold it."""
    return str(value) if isinstance(value, Path) else value
