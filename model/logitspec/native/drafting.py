"""The drafting of the method calibrated, compiled: calls drafting.cpp, which does what
drafters/calibrated.py does in Python, in a tenth of the time."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from ..budget import Budget
from ..evidence import AcceptanceTable
from .compiler import Int, Pointer, library, structure

Double = ctypes.c_double
INTEGERS = (
    *("capacity", "max_ngram_size", "lengths", "row_width", "ranks", "last_width"),
    *("row_stride", "last_stride"),
    *("earlier_stride", "most_followers", "most_earlier", "keep_rows", "keep_ngrams"),
)
Settings = structure("Settings", **dict.fromkeys(INTEGERS, Int), pruning=Double, last_steps=Pointer)
Table = structure(
    "Table", **dict.fromkeys(("probability", "seen", "right", "prior"), Pointer), strength=Double
)
Costs = structure("Costs", curve=Pointer, cheapest=Pointer, least=Double)
Tree = structure("Tree", **dict.fromkeys(("tokens", "parents", "cells", "paths"), Pointer))


class Drafting:
    """One drafter's evidence, and the growth of its trees.

    Args:
        table: learnt from and into; its numbers become arrays.
        last_steps: of LastEvidence, by rank.
        settings: the other fields of Settings in drafting.cpp, by name.

    Raises:
        Unavailable: it cannot be compiled or loaded here.
    """

    def __init__(self, table: AcceptanceTable, last_steps: Sequence[int], **settings: Any) -> None:
        self._library = library("drafting")
        self._library.drafting_new.restype = Pointer
        for name in ("draft", "begin", "observe", "vocabulary"):
            getattr(self._library, f"drafting_{name}").restype = Int
        steps = integers(last_steps)
        wanted = Settings(last_width=len(steps), last_steps=steps.ctypes.data, **settings)
        self._handle = Pointer(self._library.drafting_new(ctypes.byref(wanted)))
        weakref.finalize(self, self._library.drafting_delete, self._handle)
        self._capacity = settings["capacity"]
        self._tokens, self._parents, self._cells = np.zeros((3, self._capacity), dtype=np.int64)
        self._paths = np.zeros(self._capacity)
        self._tree = Tree(
            tokens=self._tokens.ctypes.data,
            parents=self._parents.ctypes.data,
            cells=self._cells.ctypes.data,
            paths=self._paths.ctypes.data,
        )
        self._curves: tuple[npt.NDArray[np.float64], ...] = ()
        self.use(table)

    def use(self, table: AcceptanceTable) -> None:
        """Learn from and into this table from now on."""
        table.prior = np.array(table.prior, dtype=np.float64)
        table.probability = np.array(table.probability, dtype=np.float64)
        table.nothing = integers(table.nothing)
        table.seen, table.right = table.nothing + table.seen, table.nothing + table.right
        self._kept = (table.probability, table.seen, table.right, table.prior)
        addresses = (numbers.ctypes.data for numbers in self._kept)
        self._table = Table(*addresses, strength=table.strength)

    def set_vocabulary(self, rows: Sequence[Sequence[int]]) -> None:
        """The rows of the vocabulary, all of one width."""
        known = integers(rows)
        check(
            self._library.drafting_vocabulary(
                self._handle, Pointer(known.ctypes.data), Int(len(known)), Int(known.shape[1])
            )
        )

    def begin(self, prompt_ids: Sequence[int]) -> None:
        ids = integers(prompt_ids)
        check(self._library.drafting_begin(self._handle, Pointer(ids.ctypes.data), Int(len(ids))))

    def forget(self) -> None:
        self._library.drafting_forget(self._handle)

    def draft(
        self, root: int, top_ids: Sequence[int], budget: Budget | None
    ) -> tuple[list[int], list[int], list[float], list[int]]:
        """Tokens, parents, path probabilities and cells of the next tree.

        Args:
            root: the next token.
            top_ids: best tokens of the last logits.
            budget: of a tree that sizes itself, begun.
        """
        top = (Int * len(top_ids))(*top_ids)
        costs = None
        if budget is not None:
            if self._curves is not budget.curves:
                self._curves = budget.curves
                curve, cheapest = budget.curves
                self._costs = Costs(
                    curve=curve.ctypes.data, cheapest=cheapest.ctypes.data, least=budget.least
                )
            costs = ctypes.byref(self._costs)
        n = self._library.drafting_draft(
            self._handle, Int(root), top, Int(len(top_ids)), ctypes.byref(self._table), costs,
            ctypes.byref(self._tree),
        )  # fmt: skip
        check(n)
        numbers = (self._tokens, self._parents, self._paths, self._cells)
        tokens, parents, paths, cells = (some[:n].tolist() for some in numbers)
        return tokens, parents, paths, cells

    def observe(
        self,
        tokens: Sequence[int],
        parents: Sequence[int],
        path: Sequence[int],
        top_ids: Sequence[Sequence[int]],
        *,
        is_last: bool,
    ) -> None:
        """Learn from a verified tree.

        Args:
            tokens: the tree's.
            parents: the same.
            path: its committed nodes.
            top_ids: the best tokens after each node, as many of each; none: not known.
            is_last: whether it is the tree of the last draft(), whole.

        Raises:
            ValueError: there is not a row for every node, or they differ in length.
        """
        n, width = len(tokens), max(map(len, top_ids))
        unknown = (-1,) * width
        best = list(chain.from_iterable(row or unknown for row in top_ids))
        if len(top_ids) != n or len(best) != n * width:
            raise ValueError(f"{len(top_ids)} rows of {width} best tokens or fewer for {n} nodes")
        rows = (Int * len(best))(*best)
        nodes = (Int * len(path))(*path)
        tree = self._tree
        if not is_last:
            kept = integers([tokens, parents])
            tree = Tree(tokens=kept[0].ctypes.data, parents=kept[1].ctypes.data)
        done = self._library.drafting_observe(
            self._handle, ctypes.byref(tree), Int(n), nodes, Int(len(path)), rows, Int(width),
            Int(is_last), ctypes.byref(self._table),
        )  # fmt: skip
        check(done)


def check(status: int) -> None:
    """Raise ValueError if a call was refused."""
    if status < 0:
        raise ValueError("a token id is negative or no vocabulary is so large")


def integers(numbers: Any) -> npt.NDArray[np.int64]:
    return np.ascontiguousarray(numbers, dtype=np.int64)
