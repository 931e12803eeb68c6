"""Replays of which every step is looked at: the tree as drafted, and the tokens that followed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from model.logitspec import Drafter, DraftTree

from ..recordings.format import Recording
from ..recordings.replaying import RecordedRows, replay_turn
from ..traces.reading import task_of

Steps = npt.NDArray[np.float64]  # [questions]
Look = Callable[[str, DraftTree, Sequence[int]], None]  # task, tree, tokens after the root


def watch(recording: Recording, drafter: Drafter, look: Look | None = None) -> Steps:
    """Replay a drafter, and show `look` each of its trees whose root the answer goes on after.

    Returns:
        The steps of every question.
    """
    drafter.prepare(recording)
    width = drafter.node_top_k
    steps = []
    for question in recording.questions:
        task = task_of(question.category)

        def seen(tree: DraftTree, after: Sequence[int], task: str = task) -> None:
            if look is not None and after:
                look(task, tree, after)

        done = [
            replay_turn(turn, drafter, RecordedRows(turn, width) if width else None, seen)
            for turn in question.turns
        ]
        steps.append(sum(len(turn.accept_lengths) for turn in done))
    return np.array(steps, dtype=np.float64)


def right_nodes(tree: DraftTree, after: Sequence[int]) -> set[int]:
    """The nodes whose path agrees with the tokens after the root, the root among them."""
    right = {0}
    for node in range(1, len(tree)):
        depth = tree.depths[node]
        agrees = depth <= len(after) and tree.tokens[node] == after[depth - 1]
        if agrees and tree.parents[node] in right:
            right.add(node)
    return right
