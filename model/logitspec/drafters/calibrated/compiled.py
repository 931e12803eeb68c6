"""Calibrated trees in C++: calls drafting.cpp, which does what growth.py does."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...compiler import Int, Pointer, library, structure
from ...listed import Numbers
from ...sampling import Foresight
from ...sizing.acceptance_table import AcceptanceTable
from ...sizing.budget import GIVEN, Budget
from . import growth
from .corrections import Corrections
from .evidence import MOST_EARLIER, MOST_FOLLOWERS, Evidence
from .foresight import ForesightTable

SOURCE = Path(__file__).with_name("drafting.cpp")
FLAGS = ("-O2", "-ffp-contract=off")  # the very sums of Python
Double = ctypes.c_double
INTEGERS = (
    *("capacity", "max_ngram_size", "lengths", "row_width", "ranks", "last_width"),
    *("most_followers", "most_earlier", "keep_rows", "keep_ngrams"),
)
Settings = structure(
    "Settings", **dict.fromkeys(INTEGERS, Int),
    **dict.fromkeys(("pruning", "patience", "chain_least"), Double), grade_count=Int,
    **dict.fromkeys(("last_grades", "firsts", "named"), Pointer),
)  # fmt: skip
OF_CORRECTIONS = ("weights", "squares", "any_right", "nodes")
OF_GRADES = dict.fromkeys(("prior", "probability"), np.float64) | dict.fromkeys(
    ("nothing", "seen", "right"), np.int64
)
OF_TABLE = ("probability", "seen", "right", "prior", *OF_CORRECTIONS)
Table = structure("Table", **dict.fromkeys(OF_TABLE, Pointer), strength=Double)
Costs = structure(
    "Costs", curve=Pointer, cheapest=Pointer, least=Double, weight=Double, lesson=Double,
    given=Double, plain_nodes=Int,
)  # fmt: skip
Tree = structure("Tree", **dict.fromkeys(("tokens", "parents", "grades", "paths"), Pointer))


Noise = structure(
    "Noise", stream=ctypes.c_uint64,
    **dict.fromkeys(("prior", "seen", "right", "share", "count"), Pointer),
)  # fmt: skip


class CompiledCore:
    """The same as growth.ReadableCore, or with a foresight table foresight.SampledCore, compiled.

    Args:
        evidence: only its settings are read; C++ collects the evidence itself.
        table: learnt from and into; its numbers become arrays.
        corrections: of the table; the same.
        capacity: most nodes of a tree.
        foresight_table: learnt from and into, of samples; None: of best tokens.
        chain_least: see growth.ReadableCore.
        shared: what is kept from prompt to prompt is that core's, too; of the same settings.

    Raises:
        Unavailable: it cannot be compiled or loaded here.
    """

    def __init__(
        self,
        evidence: Evidence,
        table: AcceptanceTable,
        corrections: Corrections,
        capacity: int,
        foresight_table: ForesightTable | None = None,
        *,
        chain_least: float = 0.0,
        shared: CompiledCore | None = None,
    ) -> None:
        self._noise: Any = None
        if foresight_table is not None:
            self._learnt = foresight_table
            names = ("prior", "seen", "right", "share", "count")
            self._noise = Noise(
                **{name: getattr(foresight_table, name).ctypes.data for name in names}
            )
        self._by_noise = None if self._noise is None else ctypes.byref(self._noise)
        self._library = library(SOURCE, FLAGS)
        self._library.drafting_new.restype = Pointer
        for name in ("draft", "begin", "observe", "skip", "list", "listed_tokens"):
            getattr(self._library, f"drafting_{name}").restype = Int
        for name in ("listed", "listed_logs"):
            getattr(self._library, f"drafting_{name}").restype = Pointer
        ngrams, rows = evidence.ngrams, evidence.rows
        last_grades = integers(evidence.last.by_rank)
        firsts = integers([source.first for source in evidence.sources])
        named = np.array(corrections.named[: corrections.grades], np.uint8)
        settings = Settings(
            capacity=capacity, pruning=growth.PRUNING, chain_least=chain_least,
            patience=1.0 if chain_least else growth.PATIENCE,
            max_ngram_size=ngrams.max_ngram_size, lengths=ngrams.lengths,
            row_width=rows.width, ranks=rows.ranks, keep_rows=rows.keep,
            keep_ngrams=evidence.earlier.keep, most_followers=MOST_FOLLOWERS,
            most_earlier=MOST_EARLIER, last_width=len(last_grades),
            last_grades=last_grades.ctypes.data, firsts=firsts.ctypes.data,
            named=named.ctypes.data, grade_count=len(named),
        )  # fmt: skip
        other = None if shared is None else shared._handle
        self._handle: ctypes.c_void_p = Pointer(
            self._library.drafting_new(ctypes.byref(settings), other)
        )
        weakref.finalize(self, self._library.drafting_delete, self._handle)
        self._tokens, self._parents = np.zeros((2, capacity), dtype=np.int64)
        self._grades = np.zeros((capacity, len(evidence.sources)), dtype=np.int64)
        self._paths = np.zeros(capacity)
        self._tree = Tree(
            tokens=self._tokens.ctypes.data,
            parents=self._parents.ctypes.data,
            grades=self._grades.ctypes.data,
            paths=self._paths.ctypes.data,
        )
        self._curves: tuple[npt.NDArray[np.float64], ...] = ()
        for name in OF_CORRECTIONS:
            setattr(corrections, name, np.asarray(getattr(corrections, name)))
        self._corrections = [getattr(corrections, name) for name in OF_CORRECTIONS]
        self.use(table)

    def use(self, table: AcceptanceTable) -> None:
        for name, kind in OF_GRADES.items():
            setattr(table, name, np.ascontiguousarray(getattr(table, name), kind))
        known = (table.probability, table.seen, table.right, table.prior)
        self._kept = (*known, *self._corrections)
        addresses = (numbers.ctypes.data for numbers in self._kept)
        self._table = Table(*addresses, strength=table.strength)

    def foresee(self, foresight: Foresight) -> None:
        self._noise.stream = foresight.stream

    def begin(self, prompt_ids: Sequence[int]) -> None:
        ids = integers(prompt_ids)
        check(self._library.drafting_begin(self._handle, Pointer(ids.ctypes.data), Int(len(ids))))

    def forget(self) -> None:
        self._library.drafting_forget(self._handle)

    def kept(self) -> dict[str, Numbers]:
        """The same as the readable core's."""
        found: dict[str, Numbers] = {}
        for what, name in enumerate(self._kinds):
            n = self._library.drafting_list(self._handle, Int(what))
            found[name] = self._copied(self._library.drafting_listed, Int, n)
        if "scored" in found:
            n = self._library.drafting_listed_tokens(self._handle)
            found["logs"] = self._copied(self._library.drafting_listed_logs, ctypes.c_float, n)
        return found

    def _copied(self, find: Any, kind: Any, count: int) -> Numbers:
        """A copy of the numbers that a function of the library points to."""
        if not count:
            return np.empty(0, np.dtype(kind))
        return np.ctypeslib.as_array(
            ctypes.cast(find(self._handle), ctypes.POINTER(kind)), (count,)
        ).copy()

    def take(self, kept: Mapping[str, Numbers]) -> None:
        """Take in evidence as kept() gives it."""
        logs = np.ascontiguousarray(kept.get("logs", ()), np.float32)
        for what, name in enumerate(self._kinds):
            listed = integers(kept[name])
            self._library.drafting_take(
                self._handle, Int(what), Pointer(listed.ctypes.data), Int(len(listed)),
                Pointer(logs.ctypes.data),
            )  # fmt: skip

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("answers", "rows", "scored") if self._noise is not None else ("answers", "rows")

    def draft(self, root: int, top_ids: Sequence[int], budget: Budget | None) -> growth.Drafted:
        top = (Int * len(top_ids))(*top_ids)
        costs = None
        if budget is not None:
            if self._curves is not budget.curves:
                self._curves = budget.curves
                curve, cheapest = budget.curves
                self._costs = Costs(curve=curve.ctypes.data, cheapest=cheapest.ctypes.data)
            self._costs.least, self._costs.weight = budget.least, budget.weight
            self._costs.lesson, self._costs.given = budget.lesson, GIVEN
            costs = ctypes.byref(self._costs)
        n = self._library.drafting_draft(
            self._handle, Int(root), top, Int(len(top_ids)), ctypes.byref(self._table), costs,
            self._by_noise, ctypes.byref(self._tree),
        )  # fmt: skip
        check(n)
        if budget is not None:
            budget.plain_nodes = self._costs.plain_nodes
        numbers = (self._tokens, self._parents, self._paths, self._grades)
        tokens, parents, paths, grades = (some[:n].tolist() for some in numbers)
        grades[0] = ()
        return growth.Drafted(tokens, parents, paths, grades)

    def observe(
        self,
        drafted: growth.Drafted,
        path: Sequence[int],
        top_ids: Sequence[Sequence[int]],
        logprobs: Sequence[Sequence[float]] = (),
    ) -> None:
        n, width = len(drafted.tokens), max(map(len, top_ids))
        unknown = (-1,) * width
        whole = (row if len(row) == width else (*row, *unknown[len(row) :]) for row in top_ids)
        best = list(chain.from_iterable(whole))
        if len(top_ids) != n:
            raise ValueError(f"{len(top_ids)} rows of best tokens for {n} nodes")
        rows = (Int * len(best))(*best)
        logs = None
        if self._noise is not None:
            nothing = (0.0,) * width
            known = (its if row else nothing for row, its in zip(top_ids, logprobs, strict=True))
            numbers = list(chain.from_iterable(known))
            if len(numbers) != len(best):
                raise ValueError(f"{len(numbers)} log-probabilities of {len(best)} tokens")
            logs = (ctypes.c_float * len(numbers))(*numbers)
        nodes = (Int * len(path))(*path)
        done = self._library.drafting_observe(
            self._handle, ctypes.byref(self._tree), Int(n), nodes, Int(len(path)), rows, logs,
            Int(width), ctypes.byref(self._table), self._by_noise,
        )  # fmt: skip
        check(done)

    def skip(self, token: int) -> None:
        table = ctypes.byref(self._table)
        check(self._library.drafting_skip(self._handle, Int(token), table, self._by_noise))


def check(status: int) -> None:
    """Raise ValueError if a call was refused."""
    if status < 0:
        raise ValueError("a token id is negative or no vocabulary is so large")


def integers(numbers: Any) -> npt.NDArray[np.int64]:
    return np.ascontiguousarray(numbers, dtype=np.int64)
