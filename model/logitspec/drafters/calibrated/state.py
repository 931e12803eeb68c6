"""What a calibrated drafter learnt, as arrays: their names, and whether they make sense."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...errors import InputError
from ...listed import Numbers, are_answers, are_scored, count_tokens
from .corrections import SUMS, Corrections
from .evidence import Evidence
from .foresight import BINS, KINDS, LEVELS

LAYOUT = 4  # version of the arrays below; another one cannot be read
NOTHING: Numbers = np.empty(0, np.int64)
STATES = {False: "greedy.", True: "sampled."}  # what the names of each state's arrays begin with
KEPT = ("answers", "rows", "scored", "logs")  # evidence; the others are the tables'
INTEGERS = ("grades", "seen", "right", "answers", "rows", "scored")
PAIRS = ("bins", "shares"), ("weights", "sums")  # neither comes without the other
SHAPES = {  # of the arrays whose first row is a part of the second
    "bins": (2, KINDS * BINS), "shares": (2, KINDS * LEVELS), "sums": (2, len(SUMS) + 1)
}  # fmt: skip


def parts(state: Mapping[str, Numbers], *, sampled: bool) -> dict[str, Numbers]:
    """The arrays of one of the two states, by their names in it."""
    begin = STATES[sampled]
    return {n.removeprefix(begin): state[n] for n in state if n.startswith(begin)}


def with_answers(state: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """The arrays with `answers` added to those of both states."""
    found = {**state}
    more = found.pop("answers")
    for begin in STATES.values():
        own = found.get(f"{begin}answers", NOTHING)
        found[f"{begin}answers"] = np.concatenate((own, more))
    return found


def layout_of(evidence: Evidence, last_width: int, corrections: Corrections) -> Numbers:
    """What of a drafter decides whether a state fits it.

    Args:
        evidence: of the drafter.
        last_width: ranks of the last logits that are candidates.
        corrections: of the drafter.
    """
    grades = sum(len(source.grades) for source in evidence.sources)
    sizes = grades, evidence.rows.width, evidence.ngrams.max_ngram_size, last_width
    return np.array([LAYOUT, *sizes, corrections.count, len(SUMS), KINDS, BINS, LEVELS], np.int64)


def check(state: Mapping[str, Numbers], layout: Numbers) -> None:
    """Raise InputError unless arrays are a state, or a part of one, of such a layout."""
    own = state.get("layout", layout)
    if not np.array_equal(own, layout):
        if own.flat[:1] != [LAYOUT]:
            raise InputError(
                f"the state was written by another version of calibrated: its layout is "
                f"{own.flat[:1].tolist()}, and here it is [{LAYOUT}]; begin without it"
            )
        raise InputError(
            "the state is of a drafter with other options: its layout is "
            f"{own.tolist()}, and here it is {layout.tolist()}"
        )
    found = [parts(state, sampled=sampled) for sampled in STATES]
    known = sum(map(len, found)) + ("layout" in state)
    grades, weights = int(layout[1]), int(layout[5])
    if known < len(state) or not all(makes_sense(each, grades, weights) for each in found):
        raise InputError("the state makes no sense, it may be damaged")


def makes_sense(state: Mapping[str, Numbers], grades: int, weights: int) -> bool:
    """Whether arrays may be taken in; for those of one of the states.

    Args:
        state: by name, see parts().
        grades: of the acceptance table.
        weights: of the corrections.
    """
    shapes = {**SHAPES, "weights": (2, weights)}
    if set(state) - {*INTEGERS, "logs", *shapes}:
        return False
    if any((one in state) != (other in state) for one, other in PAIRS):
        return False
    for name, numbers in state.items():
        integers = name in INTEGERS
        if not np.issubdtype(numbers.dtype, np.integer if integers else np.floating):
            return False
        if name in shapes and numbers.shape != shapes[name]:
            return False
        if name not in shapes and numbers.ndim != 1:
            return False
    return (
        table_makes_sense(state, grades)
        and are_answers(state.get("answers", NOTHING))
        and count_tokens(state.get("rows", NOTHING)) is not None
        and are_scored(state.get("scored", NOTHING), state.get("logs", NOTHING))
        and all(shares_make_sense(state[name]) for name in SHAPES if name in state)
        and ("shares" not in state or bool((np.diff(state["shares"], axis=0) > 0).all()))
        and ("shares" not in state or bool((state["shares"] > 0).all()))
        and ("weights" not in state or weights_make_sense(state["weights"]))
    )


def table_makes_sense(state: Mapping[str, Numbers], grades: int) -> bool:
    """Of the grades that were seen, how often, and how often they were right."""
    at, seen, right = (state.get(name, NOTHING) for name in ("grades", "seen", "right"))
    if not len(at) == len(seen) == len(right):
        return False
    inside = (at >= 0) & (at < grades) & (right >= 0) & (right <= seen)
    return bool(inside.all()) and len(set(at.tolist())) == len(at)


def shares_make_sense(numbers: Numbers) -> bool:
    """Of two rows, the first a part of the second: right and seen, or share and count."""
    some, whole = numbers
    return bool((np.isfinite(numbers) & (numbers >= 0)).all() and (some <= whole + 1e-9).all())


def weights_make_sense(numbers: Numbers) -> bool:
    """Of the weights and of the squared errors that each has seen."""
    return bool(np.isfinite(numbers).all() and (numbers[1] > 0).all())
