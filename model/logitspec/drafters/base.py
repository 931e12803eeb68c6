"""What every method implements, and the registry that finds a method by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

from ..draft_tree import DraftTree


class Drafter(ABC):
    """A way to propose a draft tree. One instance serves one generation at a time.

    decoding.generate() calls `reset` once with the prompt, then alternates `draft` and `observe`.
    A drafter sees tokens only: no tensor layout, no mask, no cache.
    """

    name: ClassVar[str]
    capacity: int = 1  # most nodes that draft() returns, root included
    top_k: int = 0  # how many of the last logits' best token ids draft() is to be given

    @abstractmethod
    def reset(self, prompt_ids: Sequence[int]) -> None:
        """Forget the previous generation and take in the prompt."""

    @abstractmethod
    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        """Propose what may follow.

        Args:
            root: the next token, already chosen by the target; node 0 of the tree.
            top_ids: the `top_k` best token ids of the logits that chose root, best first.
        """

    def observe(self, tree: DraftTree, path: Sequence[int]) -> None:  # noqa: B027 - optional
        """Learn from a verified tree: `path` holds the committed nodes, the root's index first."""


DRAFTERS: dict[str, type[Drafter]] = {}
D = TypeVar("D", bound=type[Drafter])


def register(name: str) -> Callable[[D], D]:
    """Class decorator: make a drafter known by `name`, or fail if the name is taken."""

    def add(drafter: D) -> D:
        if name in DRAFTERS:
            raise ValueError(f"two drafters are named {name!r}")
        drafter.name = name
        DRAFTERS[name] = drafter
        return drafter

    return add
