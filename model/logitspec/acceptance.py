"""Which drafts the target agrees with: logits and tree in, committed path and next root out.

Everything happens on the logits' device and comes down in one transfer. Used by decoding.py.
"""

from __future__ import annotations

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


def accept_greedy(
    logits: torch.Tensor, tree: TreeTensors, top_k: int, node_top_k: int = 0
) -> Verdict:
    """The longest path on which every node is its parent's argmax (docs/method.md, 4).

    Among paths of that length the one whose last node was drafted first wins.

    Args:
        logits: [n, vocab], the target's after each node.
        tree: the n nodes.
        top_k: how many of the best next token ids to report, at most the vocabulary's size.
        node_top_k: the same for every node, accepted or not.
    """
    n, vocab = logits.shape
    # max, not argmax: the same first maximum, and twice as fast on a CPU in bfloat16
    chosen = logits.max(dim=-1).indices  # [n]
    agreed = chosen[tree.parents] == tree.tokens  # [n]
    agreed[0] = True
    reached = (agreed | ~tree.ancestors).all(dim=-1)  # [n]: every ancestor agreed
    order = torch.arange(n, 0, -1, device=logits.device)
    # [1]-shaped and index_select: indexing by a 0-dimensional tensor would wait for the device
    last = torch.where(reached, tree.depths * n + order, 0).argmax().view(1)
    best = logits.index_select(0, last)[0].topk(min(top_k, vocab)).indices
    width = min(node_top_k, vocab)
    after_nodes = logits.topk(width, dim=-1).indices.flatten() if width else best[:0]
    path = tree.ancestors.index_select(0, last)[0].long()
    answer = torch.cat((path, chosen.index_select(0, last), best, after_nodes)).tolist()
    end = n + 1 + len(best)
    return Verdict(
        path=[node for node in range(n) if answer[node]],
        next_root=answer[n],
        top_ids=answer[n + 1 : end],
        node_top_ids=[answer[i : i + width] for i in range(end, len(answer), width or 1)],
    )
