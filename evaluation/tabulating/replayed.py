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
    """MAT, by task where there are several, and the speeds that are predicted from step costs.

    Raises:
        InputError: the file cannot be read, or is none of evaluation.replay's.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            keys = [key for key in reader.fieldnames or () if key.startswith("mat:")]
            tasks = {key: key.partition(":")[2] for key in keys if len(keys) > 1}
            rows = [
                Row(
                    ("≈ " if int(line["estimated"]) else "") + line["method"],
                    {key: float(line[key]) for key in (*tasks, *COLUMNS)},
                )
                for line in reader
            ]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a file of evaluation.replay") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is not what evaluation.replay --csv writes") from error
    if not rows:
        raise InputError(f"{path} holds no method; replay some")
    names = [row.name for row in rows]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path} has {twice} more than once; replay it without --grid")
    notes = [
        "Replayed from a recording: tokens/s are predicted from step costs.",
        "≈: learns from nodes off the answer, of which a recording knows a part at most, or sizes "
        "its trees by step costs, which a live run measures anew.",
    ]
    return Table(path.stem, {**tasks, **COLUMNS}, rows, notes)
