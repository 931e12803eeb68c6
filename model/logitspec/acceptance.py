"""Which drafts the target agrees with: logits and tree in, committed path and next root out.

On a GPU everything happens there and comes down in one transfer. Used by verification.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .draft_tree import DraftTree


@dataclass(frozen=True)
class TreeTensors:
    """A draft tree on the device, uploaded in one buffer. n is the number of nodes."""

    tokens: torch.Tensor  # [n] int64
    parents: torch.Tensor  # [n] int64, the root's is 0
    depths: torch.Tensor  # [n] int64
    ancestors: torch.Tensor  # [n, n] bool, see DraftTree.ancestor_mask

    @classmethod
    def upload(cls, tree: DraftTree, device: torch.device) -> TreeTensors:
        n = len(tree)
        buffer = np.empty((n + 3, n), dtype=np.int64)
        buffer[0], buffer[1], buffer[2] = tree.tokens, tree.parents, tree.depths
        buffer[3:] = tree.ancestor_mask()
        rows = torch.from_numpy(buffer).to(device, non_blocking=True)
        return cls(rows[0], rows[1], rows[2], rows[3:].bool())


@dataclass(frozen=True)
class Verdict:
    """What verification decided."""

    path: list[int]  # accepted nodes, ascending, the root's index 0 first
    next_root: int  # the target's own token after the path
    top_ids: list[int]  # the best token ids of the logits that chose next_root, best first
    node_top_ids: list[list[int]]  # the best token ids after each node, in the tree's order


def accept(
    logits: torch.Tensor,
    tree: TreeTensors,
    top_k: int,
    node_top_k: int = 0,
    chosen: torch.Tensor | None = None,
) -> Verdict:
    """The longest path on which every node is what the target chose after its parent
    (docs/method.md, 4).

    Among paths of that length the one whose last node was drafted first wins.

    Args:
        logits: [n, vocab], the target's after each node.
        tree: the n nodes.
        top_k: how many of the best next token ids to report, at most the vocabulary's size.
        node_top_k: the same for every node, accepted or not.
        chosen: [n], the target's token after each node (sampling.py); None: the best one.
    """
    n, vocab = logits.shape
    widths = min(top_k, vocab), min(node_top_k, vocab)
    return read_answer(find_answer(logits, tree, *widths, chosen).tolist(), n, n, *widths)


def find_answer(
    logits: torch.Tensor,
    tree: TreeTensors,
    top_k: int,
    node_top_k: int,
    chosen: torch.Tensor | None = None,
) -> torch.Tensor:
    """What accept() decides, still on the device: [n + 1 + top_k + n * node_top_k] int64.

    For each node whether it is accepted, the next root, its logits' best ids, every node's best.
    """
    n = len(logits)
    if chosen is None:
        chosen = logits.max(dim=-1).indices  # [n], of equal ones the first
    agreed = chosen[tree.parents] == tree.tokens  # [n]
    agreed[:1].fill_(True)  # not agreed[0] = True, which copies a value up and so waits
    reached = (agreed | ~tree.ancestors).all(dim=-1)  # [n]: every ancestor agreed
    order = torch.arange(n, 0, -1, device=logits.device)
    # [1]-shaped and index_select: indexing by a 0-dimensional tensor would wait for the device
    last = torch.where(reached, tree.depths * n + order, 0).argmax().view(1)
    path = tree.ancestors.index_select(0, last)[0].long()
    parts = [path, chosen.index_select(0, last)]
    if top_k:
        parts.append(logits.index_select(0, last)[0].topk(top_k).indices)
    if node_top_k:
        parts.append(logits.topk(node_top_k, dim=-1).indices.flatten())
    return torch.cat(parts)


def read_answer(answer: list[int], padded: int, nodes: int, top_k: int, node_top_k: int) -> Verdict:
    """The verdict that find_answer wrote down.

    Args:
        answer: its numbers.
        padded: nodes that it was asked for.
        nodes: the first so many of them are the tree's.
        top_k: as it was given, and node_top_k.
    """
    end = padded + 1 + top_k
    rows = range(end, end + nodes * node_top_k, node_top_k) if node_top_k else ()
    return Verdict(
        path=[node for node in range(nodes) if answer[node]],
        next_root=answer[padded],
        top_ids=answer[padded + 1 : end],
        node_top_ids=[answer[row : row + node_top_k] for row in rows],
    )


ROWS = 6  # nodes whose logits cost a CPU no more than one's: native/layers.cpp


def agreed_path(tree: DraftTree, chosen: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """The same longest path, on the host, as far as the target's choices are known.

    Args:
        tree: what is verified.
        chosen: the target's token after some nodes: the root, and what was asked for before.

    Returns:
        The path, and the nodes whose choices are to be found before it is final: those reached,
        and the drafts below them, first children first, until they are ROWS. None once it is.
    """
    reached = {0}
    open_nodes: list[int] = []
    last = 0
    for node in range(1, len(tree)):
        parent = tree.parents[node]
        if parent in reached and chosen.get(parent) == tree.tokens[node]:
            reached.add(node)
            if node not in chosen:
                open_nodes.append(node)
            if tree.depths[node] > tree.depths[last]:
                last = node
    path = [last]
    while path[-1]:
        path.append(tree.parents[path[-1]])
    if open_nodes:
        below = set(open_nodes)
        for node in range(open_nodes[0] + 1, len(tree)):
            if len(open_nodes) >= ROWS:
                break
            if tree.parents[node] in below and node not in below:
                below.add(node)
                open_nodes.append(node)
    return path[::-1], open_nodes
