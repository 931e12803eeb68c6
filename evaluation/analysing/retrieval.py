"""How often retrieval finds nothing, is wrong or is right, and how far a method's candidates reach:
the paper's motivation, from a recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from model.logitspec import Drafter, DraftTree, LogitSpecDrafter, PromptLookupDrafter, origins
from model.logitspec.errors import InputError

from ..asking.methods import CAPACITY, METHODS, DrafterMethod, drafter_method, find_methods
from ..pictures.style import looks, new_figure
from ..recordings.format import Recording
from ..recordings.replaying import check_drafter
from .sections import Section
from .watching import right_nodes, watch

OUTCOMES = ("nothing", "wrong", "right")
RETRIEVED = (origins.RETRIEVED, origins.CONTINUED)


class NextTokenOnly(LogitSpecDrafter):
    """LogitSpec without guesses: what is retrieved after the next token."""

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        return super().draft(root, ())


RETRIEVERS: Mapping[str, type[Drafter]] = {
    "PLD": PromptLookupDrafter,
    "LogitSpec, after the next token only": NextTokenOnly,
    "LogitSpec, after guesses too": LogitSpecDrafter,
}


def outcomes(recording: Recording, drafter: Drafter) -> Counter[tuple[str, str]]:
    """(task, one of OUTCOMES) of every step."""
    found: Counter[tuple[str, str]] = Counter()

    def look(task: str, tree: DraftTree, after: Sequence[int]) -> None:
        known = drafter.origins(tree)
        retrieved = {node for node in range(1, len(tree)) if known[node] in RETRIEVED}
        right = retrieved & right_nodes(tree, after)
        found[task, "right" if right else "wrong" if retrieved else "nothing"] += 1

    watch(recording, drafter, look)
    return found


def retrieval_section(recording: Recording, tasks: Sequence[str]) -> Section:
    rows: list[Sequence[object]] = []
    for name, drafter in RETRIEVERS.items():
        found = outcomes(recording, drafter())
        for outcome in OUTCOMES:
            shares = [
                found[task, outcome] / max(1, sum(found[task, other] for other in OUTCOMES))
                for task in tasks
            ]
            whole = sum(found[task, outcome] for task in tasks) / max(1, found.total())
            rows.append((name, outcome, *(f"{share:.2f}" for share in [*shares, whole])))
    return Section(
        "retrieval",
        "How often does retrieval find something, and is it right?",
        "Share of the steps. Nothing: no token was retrieved. Wrong: some were, none was accepted. "
        "Right: at least one was accepted; with guesses, its guess too. Guesses alone do not "
        "count here. Each row is of the steps of its own replay: what is right is skipped by the "
        "next step.",
        ["retrieval", "finds", *tasks, "all"],
        rows,
    )


WIDE = 4096  # nodes of a tree that is to hold all that a method could name after the root
PLACES = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Coverage:
    """Where the true token stands among the drafts after the root."""

    places: Counter[int] = field(default_factory=Counter)  # from 1
    steps: int = 0

    def look(self, _: str, tree: DraftTree, after: Sequence[int]) -> None:
        nodes = [node for node in range(1, len(tree)) if tree.depths[node] == 1]
        drafts = list(dict.fromkeys(tree.tokens[node] for node in nodes))
        self.steps += 1
        if after[0] in drafts:
            self.places[drafts.index(after[0]) + 1] += 1

    def share(self, place: int | None = None) -> float:
        """Of the steps whose true token stands at a place or before it; None: anywhere."""
        known = (count for at, count in self.places.items() if place is None or at <= place)
        return sum(known) / max(1, self.steps)


def coverage(recording: Recording, drafter: Drafter) -> Coverage:
    found = Coverage()
    watch(recording, drafter, found.look)
    return found


def coverage_section(recording: Recording, methods: str | None) -> Section:
    """`methods`: a list like evaluation.run's; None: all that this recording can replay."""
    known = [name for name, m in METHODS.items() if isinstance(m, DrafterMethod)]
    found: dict[str, tuple[Coverage, Coverage]] = {}
    left_out = []
    for name in find_methods(methods or ",".join(known)):
        try:
            found[name] = both_coverages(recording, name)
        except InputError as error:
            if methods is not None:
                raise
            left_out.append(f"{name} ({error})")
    found = {name: both for name, both in found.items() if both[1].places}  # not vanilla
    order = sorted(found, key=lambda name: -found[name][1].share())
    rows: list[Sequence[object]] = []
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    look = looks({name: name for name in order})
    for name in order:
        own, wide = found[name]
        shares = [own.share(), wide.share(), *(wide.share(place) for place in PLACES)]
        rows.append((name, *(f"{share:.2f}" for share in shares)))
        last = max(wide.places)
        curve = [wide.share(place) for place in range(1, last + 1)]
        axes.plot(range(1, last + 1), curve, label=name, **look[name].line() | {"markevery": [-1]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(PLACES, map(str, PLACES))
    axes.set_xlabel("place among the drafts after the root")
    axes.set_ylabel("share of steps: the true token up to there")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8)
    text = (
        "Share of the steps in which the token after the root is drafted below the root. Tree: in "
        f"the method's own tree. Any: in a tree of up to {WIDE} nodes, which holds all that the "
        f"method could name there (of the last logits {recording.top_k} are recorded). The other "
        "columns: among the first so many of these candidates, in the method's order. A row is of "
        "the steps of its own replays: what is right is accepted and skipped. Where a larger tree "
        "accepts more, the steps that are left are harder, and `any` can be below `tree`."
    )
    if left_out:
        text += f" Left out: {'; '.join(left_out)}."
    return Section(
        "coverage",
        "Is the true token among the candidates, and at which place?",
        text,
        ["method", "tree", "any", *(f"≤ {place}" for place in PLACES)],
        rows,
        figure,
    )


def both_coverages(recording: Recording, name: str) -> tuple[Coverage, Coverage]:
    """Of a method's own trees, and of trees without a narrow limit.

    InputError if the recording cannot replay the method with its defaults.
    """
    method = drafter_method(name)
    usual = method.drafter(**method.settings({}))
    check_drafter(recording, usual, name)
    wider = {CAPACITY: WIDE} if any(o.name == CAPACITY for o in method.options) else {}
    wide = method.drafter(**method.settings({}) | wider)
    wide.top_k = min(wide.top_k, recording.top_k)
    return coverage(recording, usual), coverage(recording, wide)
