"""What answers of several engines come to: the table of llama_cpp.py, and the page's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from .measure import Columns, Figures, grouped

THEIRS = "llama.cpp "  # begins the names of its engines
PLAIN = THEIRS + "none"
COLUMNS: Columns = {
    "engine": (24, "{engine}"),
    "questions": (9, "{questions}"),
    "tokens/s": (8, "{speed:.1f}"),
    "median": (7, "{median:.1f}"),
    "decoding": (8, "{decoding:.1f}"),
    "prompt/s": (8, "{reading:.0f}"),
    "x llama.cpp": (11, "{over_plain:.2f}"),
    "x its best": (10, "{over_best:.2f}"),
    "same answers": (12, "{same}"),
    "same tokens": (11, "{agreed:.0f}"),
}


def same_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two answers share before they differ."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def summary(answers: Sequence[Figures]) -> list[Figures]:
    """A row for each engine over the questions that all of them answered.

    Speeds are of totals, and their median over questions. The reference of equal answers is our
    first engine; `agreed` is the median number of tokens before the first that differs.
    """
    by_engine = {
        name: {row["question"]: row for row in rows}
        for name, rows in grouped(answers, "{engine}").items()
    }
    common = set.intersection(*(set(rows) for rows in by_engine.values())) if by_engine else set()
    if not common:
        return []
    chosen = {name: [rows[q] for q in sorted(common, key=str)] for name, rows in by_engine.items()}
    reference = next((n for n in chosen if not n.startswith(THEIRS)), next(iter(chosen)))
    result = []
    for name, rows in chosen.items():
        pairs = list(zip(rows, chosen[reference], strict=True))
        agreed = [same_tokens(a["output_ids"], b["output_ids"]) for a, b in pairs]
        equal = sum(a["output_ids"] == b["output_ids"] for a, b in pairs)
        decoding = sum(row["seconds"] - row["prompt_seconds"] for row in rows)
        result.append(
            {
                "engine": name,
                "questions": len(rows),
                "speed": total(rows, "tokens") / total(rows, "seconds"),
                "median": float(np.median([row["tokens"] / row["seconds"] for row in rows])),
                "decoding": total(rows, "tokens") / decoding,
                "reading": total(rows, "prompt_tokens") / total(rows, "prompt_seconds"),
                "same": f"{equal} of {len(rows)}",
                "agreed": float(np.median(agreed)),
            }
        )
    plain = next((row["speed"] for row in result if row["engine"] == PLAIN), None)
    best = max((row["speed"] for row in result if row["engine"].startswith(THEIRS)), default=None)
    for row in result:
        row["over_plain"] = plain and row["speed"] / plain
        row["over_best"] = best and row["speed"] / best
    return result


def total(rows: Sequence[Figures], key: str) -> float:
    return float(sum(row[key] for row in rows))
