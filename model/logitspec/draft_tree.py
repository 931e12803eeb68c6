"""The draft tree: what a drafter proposes and one forward verifies. Pure host data.

Node 0 is the root, the next token already known for certain; every other node is a guess whose
parent stands before it. Drafters build trees, decoding.py verifies them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from .errors import InputError


class DraftTree:
    """A tree of at most `capacity` tokens, root included.

    Attributes:
        tokens: token id per node, the root's first.
        parents: index of each node's parent, always smaller than its own; the root's is 0.
        depths: edges between each node and the root.
        probes: nodes that are never accepted, only verified for what the target says after them.
    """

    def __init__(self, root: int, capacity: int) -> None:
        if capacity < 1:
            raise InputError(
                f"the draft tree's capacity is {capacity}; give 1 or more, the root counts"
            )
        self.capacity = capacity
        self.tokens = [root]
        self.parents = [0]
        self.depths = [0]
        self.probes: set[int] = set()
        self._children: dict[tuple[int, int], int] = {}  # (parent, token) -> first such draft

    @classmethod
    def of(
        cls,
        tokens: Sequence[int],
        parents: Sequence[int],
        capacity: int,
        probes: Iterable[int] = (),
    ) -> DraftTree:
        """The tree of these nodes, the root's first, every parent before its children.

        Raises:
            IndexError: there are more of them than `capacity`.
        """
        tree = cls(tokens[0], capacity)
        if len(tokens) > capacity:
            raise IndexError(f"{len(tokens)} nodes in a draft tree whose capacity is {capacity}")
        tree.tokens, tree.parents, tree.probes = list(tokens), list(parents), set(probes)
        for parent in parents[1:]:
            tree.depths.append(tree.depths[parent] + 1)
        edges = list(zip(parents, tokens, strict=True))
        tree._children = {
            edges[node]: node for node in range(len(edges) - 1, 0, -1) if node not in tree.probes
        }
        return tree

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def full(self) -> bool:
        return len(self.tokens) >= self.capacity

    @property
    def wanted(self) -> list[int]:
        """For each node what the target has to choose so that it is accepted: the node's token,
        or -1, which is no token, for a probe."""
        wanted = self.tokens.copy()
        for node in self.probes:
            wanted[node] = -1
        return wanted

    def add(self, token: int, parent: int, *, probe: bool = False) -> int:
        """Append one node below `parent` and return its index.

        Raises:
            IndexError: the tree is full, or has no such parent.
        """
        if self.full:
            raise IndexError(f"the draft tree is full: its capacity is {self.capacity}")
        if not 0 <= parent < len(self.tokens):
            raise IndexError(f"no node {parent} in a draft tree of {len(self.tokens)} nodes")
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        node = len(self.tokens) - 1
        if probe:
            self.probes.add(node)
        else:
            self._children.setdefault((parent, token), node)
        return node

    def merge(self, token: int, parent: int) -> int:
        """The draft below `parent` that carries `token`, appended if there is none: a trie's way.

        Raises:
            IndexError: as add().
        """
        known = self._children.get((parent, token))
        return self.add(token, parent) if known is None else known

    def add_branch(self, tokens: Sequence[int], *, merge: bool = False) -> None:
        """Hang a chain of tokens below the root, cut to the room that is left.

        With `merge` the chain shares the nodes of an equal prefix already in the tree (a trie);
        without, branches stay apart even if they begin alike: the paper's way (docs/method.md, 3).
        """
        node = 0
        for token in tokens:
            known = self._children.get((node, token)) if merge else None
            if known is None and self.full:
                return
            node = self.add(token, node) if known is None else known

    def nodes_down_to(self, depth: int) -> list[int]:
        """The nodes that are no deeper than `depth`, ascending."""
        return [node for node, own in enumerate(self.depths) if own <= depth]

    def only(self, nodes: Sequence[int]) -> DraftTree:
        """The same tree without any but these nodes; itself when they are all.

        Args:
            nodes: ascending, the root and with every node its parent.
        """
        if len(nodes) == len(self):
            return self
        place = {node: at for at, node in enumerate(nodes)}
        tokens = [self.tokens[node] for node in nodes]
        parents = [place[self.parents[node]] for node in nodes]
        probes = (place[node] for node in self.probes if node in place)
        return DraftTree.of(tokens, parents, self.capacity, probes)

    def first(self, nodes: int) -> DraftTree:
        """The same tree without any but its first nodes; itself when it has no more."""
        return self.only(range(min(nodes, len(self))))

    def path_tokens(self, node: int) -> list[int]:
        """The tokens from the root down to a node, both included."""
        tokens = [self.tokens[node]]
        while node:
            node = self.parents[node]
            tokens.append(self.tokens[node])
        return tokens[::-1]

    def ancestor_mask(self) -> npt.NDArray[np.bool_]:
        """[n, n] bool: entry (i, j) is true when node j is node i or one of its ancestors."""
        mask = np.eye(len(self.tokens), dtype=np.bool_)
        for node in range(1, len(self.tokens)):
            mask[node] |= mask[self.parents[node]]
        return mask
