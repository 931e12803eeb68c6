"""Acceptance: the longest path on which the target agrees with a draft tree. For verification.py.

The rule (docs/method.md, 4): a node is accepted if its parent is accepted and the target chooses
the node's token after the parent; a probe never is. The deepest accepted node ends the path. Among
equally deep nodes the one that was drafted first does. The rule is written twice. `longest_path`
runs on the host and asks for the target's choices level by level. `find_answer` does the same with
tensors, so that everything comes down from a GPU in one transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from .draft_tree import DraftTree
from .sampling import Chooser


@dataclass(frozen=True)
class Verdict:
    """What verification decided."""

    path: list[int]  # accepted nodes, ascending, the root's index 0 first
    next_root: int  # the target's own token after the path
    top_ids: list[int]  # the best token ids of the logits that chose next_root, best first
    node_top_ids: list[list[int]]  # the best token ids after each node, in the tree's order
    # their log-probabilities after the filters, where samples are drawn and they are asked for
    node_top_logprobs: list[list[float]] = field(default_factory=list)


def accept(
    logits: torch.Tensor,
    tree: DraftTree,
    chooser: Chooser,
    top_k: int,
    node_top_k: int = 0,
    tensors: TreeTensors | None = None,
    *,
    logprobs: bool = False,
) -> Verdict:
    """The longest path that the target agrees with, from the logits of all nodes.

    Args:
        logits: [n, vocab], the target's after each node.
        tree: the n nodes.
        chooser: of the target's tokens.
        top_k: how many best token ids to report of the logits that choose the next root; at most
            the vocabulary's size is reported.
        node_top_k: the same of every node, accepted or not.
        tensors: the tree on the logits' device; None: it is uploaded.
        logprobs: report node_top_logprobs, if the chooser has foresight.
    """
    n, vocab = logits.shape
    widths = min(top_k, vocab), min(node_top_k, vocab)
    if chooser.rowwise:
        tensors = tensors or TreeTensors.upload(tree, logits.device)
        answer = find_answer(logits, tensors, *widths, chooser.choose(logits, tree))
        verdict = read_answer(answer.tolist(), n, n, *widths)
        if logprobs and node_top_k and (foresight := chooser.foresight):
            best = logits.float().topk(widths[1]).values
            logs = foresight.log_probabilities(best, logits).tolist()
            verdict = replace(verdict, node_top_logprobs=logs)
        return verdict

    def choose(nodes: Sequence[int]) -> list[int]:
        rows = torch.stack([logits[node] for node in nodes])
        return chooser.choose(rows, tree, nodes).tolist()

    path, next_root = longest_path(tree, choose)
    return Verdict(
        path,
        next_root,
        logits[path[-1]].topk(widths[0]).indices.tolist() if top_k else [],
        logits.topk(widths[1]).indices.tolist() if node_top_k else [],
    )


def longest_path(
    tree: DraftTree, choose: Callable[[Sequence[int]], Iterable[int]]
) -> tuple[list[int], int]:
    """The longest path that the target agrees with, and the target's token after it.

    Args:
        tree: what is verified.
        choose: the target's tokens after some nodes; called once for every level that is reached,
            the root's first.
    """
    children: dict[int, list[int]] = {}
    for node in range(1, len(tree)):
        if node not in tree.probes:
            children.setdefault(tree.parents[node], []).append(node)
    reached = [0]
    while True:
        chosen = dict(zip(reached, choose(reached), strict=True))
        below = [
            child
            for node, token in chosen.items()
            for child in children.get(node, ())
            if tree.tokens[child] == token
        ]
        if not below:
            break
        reached = sorted(below)
    last = node = reached[0]
    path = [last]
    while node:
        node = tree.parents[node]
        path.append(node)
    return path[::-1], chosen[last]


@dataclass(frozen=True)
class TreeTensors:
    """A draft tree on the device, uploaded in one buffer. n is the number of nodes."""

    tokens: torch.Tensor  # [n] int64
    wanted: torch.Tensor  # [n] int64, see DraftTree.wanted
    parents: torch.Tensor  # [n] int64, the root's is 0
    depths: torch.Tensor  # [n] int64
    ancestors: torch.Tensor  # [n, n] bool, see DraftTree.ancestor_mask

    @classmethod
    def upload(cls, tree: DraftTree, device: torch.device) -> TreeTensors:
        n = len(tree)
        buffer = np.empty((n + 4, n), dtype=np.int64)
        buffer[:4] = tree.tokens, tree.wanted, tree.parents, tree.depths
        buffer[4:] = tree.ancestor_mask()
        rows = torch.from_numpy(buffer).to(device, non_blocking=True)
        return cls(rows[0], rows[1], rows[2], rows[3], rows[4:].bool())


def find_answer(
    logits: torch.Tensor, tree: TreeTensors, top_k: int, node_top_k: int, chosen: torch.Tensor
) -> torch.Tensor:
    """What accept() decides, still on the device: [n + 1 + top_k + n * node_top_k] int64.

    The parts: for each node whether it is accepted, the next root, the best ids of its logits,
    every node's best ids.

    Args:
        logits: [n, vocab] after each node; the widths are at most vocab.
        chosen: [n], the target's token after each node.
    """
    n = len(logits)
    agreed = chosen[tree.parents] == tree.wanted  # [n]
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
