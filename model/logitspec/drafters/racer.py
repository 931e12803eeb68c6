"""RACER (Findings of ACL 2026, arXiv 2604.14885): retrieval from a trie of the context's n-grams,
and the tokens' last known successors in the places retrieval leaves."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar

from .. import origins
from ..draft_tree import DraftTree
from ..errors import InputError, require_positive
from ..sampling import Foresight
from .base import Drafter, register
from .foreseen import OPTION, WIDTH, Foreseer


@dataclass(eq=False)
class TrieNode:
    """An n-gram of the context: the tokens on the way here from the trie's root."""

    token: int
    parent: TrieNode | None
    depth: int
    count: int = 0  # occurrences in the context
    used: int = 0  # when it last occurred
    children: dict[int, TrieNode] = field(default_factory=dict)


class NgramTrie:
    """All n-grams of the context up to a length, with counts.

    The suffixes of the context are nodes too: extending each of them by the next token is what the
    failure links of an Aho-Corasick automaton do. Beyond `max_nodes` the leaf that has not occurred
    for longest is dropped.

    Raises:
        InputError: max_nodes has no room for the n-grams of max_length tokens.
    """

    def __init__(self, max_length: int, max_nodes: int) -> None:
        require_positive(trie_depth=max_length)
        least = max_length * (max_length + 1)  # the suffixes' nodes, now and one token ago
        if max_nodes < least:
            raise InputError(
                f"trie_nodes is {max_nodes}; with a trie_depth of {max_length} give {least} or more"
            )
        self.max_length = max_length
        self.max_nodes = max_nodes
        self.size = 0
        self._time = 0
        self._root = TrieNode(-1, None, 0)
        self._suffixes = [self._root]  # nodes of the context's suffixes, the empty one first
        # Heap with one entry for every leaf: when it last occurred, or some time before. With one
        # for each occurrence it would grow with the context.
        self._leaves: list[tuple[int, int, int, TrieNode]] = []
        self._entries = count()

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the context."""
        for token in tokens:
            self._time += 1
            suffixes = [self._root]
            for node in self._suffixes[: self.max_length]:
                child = node.children.get(token)
                if child is None:
                    child = TrieNode(token, node, node.depth + 1, used=self._time)
                    node.children[token] = child
                    self.size += 1
                    self._note_leaf(child)
                child.count += 1
                child.used = self._time
                suffixes.append(child)
            self._suffixes = suffixes
            while self.size > self.max_nodes:
                self._drop_oldest_leaf()

    def borders(self, token: int, least_depth: int) -> list[TrieNode]:
        """Nodes of the suffixes of context + [token], the longest first, no shorter than given."""
        found = (node.children.get(token) for node in reversed(self._suffixes))
        return [node for node in found if node is not None and node.depth >= least_depth]

    def _note_leaf(self, node: TrieNode) -> None:
        heapq.heappush(self._leaves, (node.used, -node.depth, next(self._entries), node))

    def _drop_oldest_leaf(self) -> None:
        while True:
            used, _, _, node = heapq.heappop(self._leaves)
            if node.children or node.parent is None:
                continue
            if node.used == used:
                break
            self._note_leaf(node)  # it has occurred since
        del node.parent.children[node.token]
        if not node.parent.children and node.parent is not self._root:
            self._note_leaf(node.parent)
        node.parent = None
        self.size -= 1


@register("racer")
class RacerDrafter(Drafter):
    """RACER: the most frequent n-gram continuations, then a tree of last known successors.

    Retrieval: every suffix of the context, root included, of two tokens or more that occurred
    before is a border; what followed it is drafted by count, the most frequent first, at equal
    counts behind the longer border first. The logits tree takes the places left: the `breadth` best
    tokens after the last node of a token (of the prompt, or verified, accepted or not) are its
    successors; a node of breadth b has b children, and its child of rank j the breadth b >> j in
    the first layer, b >> (j + 1) below it, 1 at least. Both are merged as a trie. Everything is
    reset for each prompt.

    Args:
        draft_tree_capacity: most nodes of a draft tree, root included.
        breadth: children of the root in the logits tree, and successors kept for each token.
        trie_depth: longest n-gram of the trie.
        trie_nodes: most nodes of the trie.
        foresight: in samples, rows of verified nodes are ranked by which token wins under their
            noise; not published.

    Raises:
        InputError: a number is below 1, or trie_nodes is too small for trie_depth.
    """

    options: ClassVar[Mapping[str, str]] = {
        "draft_tree_capacity": "most nodes of a draft tree, root included",
        "breadth": "children of the root in the logits tree",
        "trie_depth": "longest n-gram of the retrieval trie",
        "trie_nodes": "most nodes of the retrieval trie",
        "foresight": OPTION,
    }

    def __init__(
        self,
        draft_tree_capacity: int = 64,
        breadth: int = 8,
        trie_depth: int = 10,
        trie_nodes: int = 10_000,
        *,
        foresight: bool = False,
    ) -> None:
        require_positive(draft_tree_capacity=draft_tree_capacity, breadth=breadth)
        self.capacity = draft_tree_capacity
        self.prompt_top_k = self._breadth = breadth
        self._foreseer = Foreseer(wanted=foresight)
        self.foresee(None)
        self._trie = NgramTrie(trie_depth, trie_nodes)
        self._successors: dict[int, Sequence[int]] = {}
        self._retrieved = 1  # nodes of the last tree that are no copied logits

    def foresee(self, foresight: Foresight | None) -> None:
        self._foreseer.foresee(foresight)
        self.wants_logprobs = self._foreseer.sees
        self.node_top_k = max(WIDTH, self._breadth) if self.wants_logprobs else self._breadth

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        self._trie = NgramTrie(self._trie.max_length, self._trie.max_nodes)
        self._trie.extend(prompt_ids)
        self._successors = dict(zip(prompt_ids, top_ids, strict=True))
        self._foreseer.rows.clear()
        self._foreseer.begin(prompt_ids)

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        self._add_retrieved(tree)
        self._retrieved = len(tree)
        self._add_successors(tree)
        return tree

    def observe(
        self,
        tree: DraftTree,
        path: Sequence[int],
        top_ids: Sequence[Sequence[int]] = (),
        logprobs: Sequence[Sequence[float]] = (),
    ) -> None:
        self._trie.extend([tree.tokens[node] for node in path])
        self._foreseer.commit(len(path))
        if self.wants_logprobs:
            self._foreseer.learn(tree.tokens, top_ids, logprobs)
        else:
            known = zip(tree.tokens, top_ids, strict=True)
            self._successors.update((token, row) for token, row in known if row)

    def origins(self, tree: DraftTree) -> list[str]:
        copied = [origins.COPIED] * (len(tree) - self._retrieved)
        return [origins.NEXT, *[origins.RETRIEVED] * (self._retrieved - 1), *copied]

    def _add_retrieved(self, tree: DraftTree) -> None:
        order = count()
        # (-occurrences, -border's length, when found, node of the trie, parent in the tree)
        candidates: list[tuple[int, int, int, TrieNode, int]] = []

        def push_children(node: TrieNode, border: int, parent: int) -> None:
            for child in node.children.values():
                heapq.heappush(candidates, (-child.count, -border, next(order), child, parent))

        for border in self._trie.borders(tree.tokens[0], least_depth=2):
            push_children(border, border.depth, 0)
        while candidates and not tree.full:
            _, minus_border, _, node, parent = heapq.heappop(candidates)
            push_children(node, -minus_border, tree.merge(node.token, parent))

    def _add_successors(self, tree: DraftTree) -> None:
        queue = deque([(0, self._breadth)])
        while queue:
            node, breadth = queue.popleft()
            for j, token in enumerate(self._after(tree, node)[:breadth]):
                if tree.full:
                    return
                shift = j if node == 0 else j + 1
                queue.append((tree.merge(token, node), max(1, breadth >> shift)))

    def _after(self, tree: DraftTree, node: int) -> Sequence[int]:
        """What may follow a node, the likeliest first."""
        foreseen = self._foreseer.after(tree, node)
        return self._successors.get(tree.tokens[node], ()) if foreseen is None else foreseen
