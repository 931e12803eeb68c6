"""A table of what evaluation.replay --csv wrote."""

from __future__ import annotations

import csv
from pathlib import Path

from model.logitspec.errors import InputError

from .table import Row, Table

COLUMNS = {
    "mat": "MAT",
    "mean_nodes": "nodes",
    "draft_ms": "draft ms",
    "tokens_per_second": "tokens/s",
    "speedup": "over one-node loop",
}


def replayed(path: Path) -> Table:
    """MAT by task and over all, and the speeds that are predicted from step costs.

    Raises:
        InputError: the file cannot be read, or is none of evaluation.replay's.
    """
    rows = []
    tasks: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                tasks |= {key: key.partition(":")[2] for key in line if key.startswith("mat:")}
                mark = "≈ " if int(line["estimated"]) else ""
                numbers = {key: float(line[key]) for key in (*tasks, *COLUMNS)}
                rows.append(Row(mark + line["method"], numbers))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a file of evaluation.replay") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is not what evaluation.replay --csv writes") from error
    if not rows:
        raise InputError(f"{path} holds no method; replay some")
    shown = {} if len(tasks) == 1 else tasks
    notes = [
        "Replayed from a recording: MAT by task and over all; tokens/s are predicted from step "
        "costs that were measured while it was recorded.",
        "≈: learns from nodes off the answer, of which a recording knows a part, or sizes its "
        "trees by step costs, which a live run measures anew.",
    ]
    return Table(path.stem, {**shown, **COLUMNS}, rows, notes)
