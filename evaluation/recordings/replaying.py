"""Drafters over recorded turns: accept lengths and predicted speed without the model.

Greedy output does not depend on the drafter. So a drafter drafts its trees over a recording, the
recorded answer says which nodes the target would accept, and a step-cost curve says how long each
step would have taken. evaluation.replay is the command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.logitspec import Drafter, DraftTree
from model.logitspec.acceptance import longest_path
from model.logitspec.decoding import check_capacity, rows_of_all
from model.logitspec.errors import InputError
from model.logitspec.sizing.step_cost import StepCost

from ..asking.methods import CAPACITY, check_tokenizer, drafter_method
from ..traces.reading import task_of
from .costs import closest_curve
from .format import RecordedTurn, Recording


@dataclass
class Replayed:
    """What a drafter did over one turn."""

    accept_lengths: list[int] = field(default_factory=list)  # tokens committed per step, as live
    tree_sizes: list[int] = field(default_factory=list)  # nodes per step
    committed: list[int] = field(default_factory=list)  # tokens in the cache before each step
    draft_seconds: float = 0.0  # of drafting and observing, over all steps and the prompt


class RecordedRows:
    """The best tokens after nodes of draft trees, as far as a recorded turn holds them."""

    def __init__(self, turn: RecordedTurn, width: int) -> None:
        self._ids: list[int] = [*turn.prompt.tolist(), *turn.output.tolist()]
        self._rows: list[list[int]] = turn.top_ids[:, :width].tolist()
        self._nodes: dict[tuple[int, int], list[tuple[int, list[int]]]] = {}
        if turn.node_ids.shape[1] >= width:
            nodes = turn.node_ids[:, :width].tolist()
            for (at, before, token), row in zip(turn.node_at.tolist(), nodes, strict=True):
                self._nodes.setdefault((before, token), []).append((at, row))

    def of(self, tree: DraftTree, committed: int) -> list[list[int]]:
        """A row per node. A node off the answer gets the row of the nearest recorded node with the
        same token after the same token, or an empty one."""
        rows: list[list[int]] = []
        right: list[bool] = []
        for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            at = committed + tree.depths[node]
            right.append(
                at < len(self._ids) and token == self._ids[at] and (not node or right[parent])
            )
            if right[-1]:
                rows.append(self._rows[at])
            else:
                known = self._nodes.get((tree.tokens[parent], token))
                rows.append(min(known, key=lambda k: abs(k[0] - at))[1] if known else [])
        return rows


Watch = Callable[[DraftTree, Sequence[int]], None]  # a tree as drafted, and what follows its root


def replay_turn(
    turn: RecordedTurn, drafter: Drafter, rows: RecordedRows | None, watch: Watch | None = None
) -> Replayed:
    """Run a prepared drafter over a recorded turn, as decoding.decode() would.

    It learns from the nodes' `rows`, unless they are None. `watch` is shown every tree before the
    drafter observes it.
    """
    done = Replayed()
    prompt, output = turn.prompt.tolist(), turn.output.tolist()
    first = len(prompt)
    top_ids = turn.top_ids[first - 1 :, : drafter.top_k].tolist()
    width = drafter.prompt_top_k
    clock = time.thread_time  # of this thread alone: replays run side by side
    start = clock()
    drafter.reset(prompt, turn.top_ids[:first, :width].tolist() if width else ())
    done.draft_seconds = clock() - start
    at = 0  # answered so far
    while at < len(output):
        start = clock()
        whole = check_capacity(drafter.draft(output[at], top_ids[at]), drafter)
        nodes = whole.nodes_down_to(turn.max_new_tokens - at - 1)
        tree = whole.only(nodes)
        done.draft_seconds += clock() - start
        if watch is not None:
            watch(whole, output[at + 1 :])
        rest = [*output[at + 1 :], -1]  # nothing agrees with what comes after the answer
        path, _ = longest_path(tree, lambda reached: [rest[tree.depths[n]] for n in reached])  # noqa: B023
        learnt = rows.of(tree, first + at) if rows is not None else []
        start = clock()
        drafter.observe(whole, [nodes[n] for n in path], rows_of_all(learnt, nodes, len(whole)))
        done.draft_seconds += clock() - start
        done.accept_lengths.append(len(path))
        done.tree_sizes.append(len(tree))
        done.committed.append(first + at)
        at += len(path)
    return done


@dataclass(frozen=True)
class Configuration:
    """A method with its options, and those that a grid varies."""

    name: str  # as asked for
    options: tuple[tuple[str, Any], ...]  # all of them
    varied: tuple[tuple[str, Any], ...]

    @property
    def title(self) -> str:
        name = self.name.rpartition(":")[2]  # the class of FILE.py:CLASS
        return " ".join([name, *(f"{key}={value}" for key, value in self.varied)])

    def drafter(self) -> Drafter:
        return drafter_method(self.name).drafter(**dict(self.options))


@dataclass
class Summary:
    """The result of a configuration.

    It is `estimated` if the method learns from nodes, which the recording holds in part, or sizes
    its trees by step costs, which a live run measures itself.
    """

    configuration: Configuration
    mats: dict[str, float]  # by task, and `overall`
    speeds: list[float]  # predicted tokens/s of every question
    steps: int
    mean_nodes: float
    draft_ms: float  # of drafting and observing, per step
    estimated: bool

    def speedup_over(self, base: Summary) -> float:
        """The ratio of mean predicted tokens/s."""
        return float(np.mean(self.speeds) / np.mean(base.speeds))


VANILLA = Configuration("vanilla", (), ())


def check_drafter(recording: Recording, drafter: Drafter, title: str) -> None:
    """Raise InputError if a drafter cannot be replayed, is of another tokenizer, reads more best
    tokens than are recorded, or its trees are larger than the step costs cover."""
    check_tokenizer(drafter, recording.settings.get("tokenizer_fingerprint"))
    if drafter.live_only:
        raise InputError(
            f"{title} drafts what the target says after tokens off the answer, which no recording "
            "holds; leave it out, and run it live (evaluation.run)"
        )
    for what, width in (
        ("the last logits", drafter.top_k),
        ("a node's logits", drafter.node_top_k),
        ("the prompt's logits", drafter.prompt_top_k),
    ):
        if recording.top_k < min(width, recording.settings["vocab_size"]):
            raise InputError(
                f"{title} wants the {width} best tokens of {what}, {recording.path} holds "
                f"{recording.top_k}; record with --top-k {width}, or lower its widths"
            )
    if 0 < recording.node_width < drafter.node_top_k:
        raise InputError(
            f"{title} wants the {drafter.node_top_k} best tokens of a node's logits, "
            f"{recording.path} holds {recording.node_width} of nodes off the answer; "
            "lower its widths"
        )
    costs_end = min(
        closest_curve(recording.step_costs, drafter.node_top_k, rejected=rejected).nodes[-1]
        for rejected in (False, True)
    )
    if drafter.capacity > costs_end:
        raise InputError(
            f"{title} drafts trees of up to {drafter.capacity} nodes, and the step costs end at "
            f"{costs_end}; lower its capacity, or give a file of --step-cost that goes further"
        )


def replay(recording: Recording, configuration: Configuration) -> Summary:
    """Run a configuration over a whole recording."""
    return replay_drafter(recording, configuration, configuration.drafter())


def replay_drafter(recording: Recording, configuration: Configuration, drafter: Drafter) -> Summary:
    """Run a given drafter over a whole recording; `configuration` only names it."""
    check_drafter(recording, drafter, configuration.title)
    costs = [
        closest_curve(recording.step_costs, drafter.node_top_k, rejected=r) for r in (False, True)
    ]
    drafter.prepare(recording)
    width = drafter.node_top_k
    estimated = width > 0 or dict(configuration.options).get(CAPACITY) == "auto"
    lengths: dict[str, list[int]] = {"overall": []}
    done: list[Replayed] = []
    speeds: list[float] = []
    for question in recording.questions:
        of_task = lengths.setdefault(task_of(question.category), [])
        seconds = 0.0
        for turn in question.turns:
            answer = replay_turn(turn, drafter, RecordedRows(turn, width) if width else None)
            done.append(answer)
            of_task += answer.accept_lengths
            lengths["overall"] += answer.accept_lengths
            drafting = turn.prefill_seconds + answer.draft_seconds
            seconds += drafting + sum(step_seconds(answer, *costs))
        speeds.append(sum(len(turn.output) for turn in question.turns) / seconds)
    steps = len(lengths["overall"])
    return Summary(
        configuration,
        mats={task: float(np.mean(of_task)) for task, of_task in lengths.items()},
        speeds=speeds,
        steps=steps,
        mean_nodes=sum(sum(turn.tree_sizes) for turn in done) / steps,
        draft_ms=1e3 * sum(turn.draft_seconds for turn in done) / steps,
        estimated=estimated,
    )


CONTEXT_STEP = 64  # tokens of context after which the curve is looked up again


def step_seconds(done: Replayed, accepting: StepCost, rejecting: StepCost) -> Iterator[float]:
    """Predicted seconds of each step without drafting, by whether it accepts a draft or none."""
    curves: tuple[list[float], list[float]] = [], []
    taken = -1
    for nodes, length, committed in zip(
        done.tree_sizes, done.accept_lengths, done.committed, strict=True
    ):
        if committed // CONTEXT_STEP != taken:
            taken = committed // CONTEXT_STEP
            curves = accepting.curve(committed), rejecting.curve(committed)
        yield curves[length == 1][nodes]
