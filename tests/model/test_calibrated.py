"""The method calibrated: evidence, acceptance table, growth, and where "auto" ends its trees."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.logitspec import (
    CalibratedDrafter,
    DraftTree,
    InputError,
    compiler,
)
from model.logitspec.drafters.calibrated.growth import PATIENCE, ReadableCore
from model.logitspec.sampling import Foresight
from model.logitspec.sizing.budget import Budget
from model.logitspec.sizing.step_cost import StepCost

FLAT = StepCost((128, 1024), (1, 128), ((0.01, 0.0101), (0.01, 0.0101)))
MIDDLE = StepCost((128, 1024), (1, 8, 128), ((0.01, 0.012, 0.06),) * 2)
STEEP = StepCost((128, 1024), (1, 128), ((0.01, 1.0), (0.01, 1.0)))


def fresh(**options: Any) -> CalibratedDrafter:
    """Without rows of a vocabulary."""
    return CalibratedDrafter(**options)


def grown(drafter: CalibratedDrafter, seed: int = 0) -> tuple[DraftTree, list[int]]:
    """A tree over a random context after a few steps, and the last logits it was given."""
    chance = random.Random(seed)
    drafter.reset([chance.randrange(30) for _ in range(60)])
    for _ in range(6):
        root = chance.randrange(30)
        top = [root, *chance.sample(range(30, 60), drafter.top_k - 1)]
        tree = drafter.draft(root, top)
        path = [n for n in range(len(tree)) if tree.ancestor_mask()[chance.randrange(len(tree)), n]]
        path = path if path[0] == 0 else [0]
        drafter.observe(
            tree, path[:1], [chance.sample(range(30), drafter.node_top_k) for _ in tree.tokens]
        )
    return drafter.draft(5, [5, *range(40, 39 + drafter.top_k)]), top


def test_the_tree_holds_the_nodes_that_are_worth_most() -> None:
    """A greedy tree of C nodes is the C best of the tree that has them all."""
    for capacity in (2, 5, 20):
        small = fresh(draft_tree_capacity=capacity)
        large = fresh(draft_tree_capacity=capacity, drafting_core="python")
        tree, _ = grown(small)
        assert len(tree) == capacity
        paths = small.path_probabilities
        worths = [path * PATIENCE**depth for path, depth in zip(paths, tree.depths, strict=True)]
        assert worths == sorted(worths, reverse=True)
        # and nothing worth more is left out: the candidates below its nodes, not in it
        grown(large)
        taken = {(p, t) for p, t in zip(tree.parents[1:], tree.tokens[1:], strict=True)}
        core = large._core
        assert isinstance(core, ReadableCore)
        assert core.grow(5, [5, *range(40, 39 + large.top_k)], 0.0)[1]
        for node, weighed in enumerate(core._candidates):
            assert weighed is not None
            assert 0 <= sum(weighed.probabilities) < 1
            for token, probability in zip(weighed.tokens, weighed.probabilities, strict=True):
                if (node, token) in taken:
                    edges = list(zip(tree.parents, tree.tokens, strict=True))
                    child = edges.index((node, token), 1)
                    assert paths[child] == pytest.approx(paths[node] * probability)
                else:
                    assert worths[node] * PATIENCE * probability <= worths[-1] + 1e-12


@pytest.mark.parametrize("core", ["native", "python"])
def test_trees_that_size_themselves_take_the_most_probable_nodes(core: str) -> None:
    """They have no patience: a node costs time, wherever it is."""
    orders = []
    for capacity in ("auto", 40):
        drafter = fresh(draft_tree_capacity=capacity, drafting_core=core)
        if drafter.budget is not None:
            drafter.budget = Budget(FLAT)
        tree, _ = grown(drafter)
        paths = drafter.path_probabilities[:40]
        assert len(tree) >= 40 and max(tree.depths) > 2
        orders.append(paths == sorted(paths, reverse=True))
    assert orders == [True, False]


def test_a_sure_grade_is_no_error() -> None:
    drafter = fresh(draft_tree_capacity=9, prior_strength=1e-17, drafting_core="python")
    twin = fresh(draft_tree_capacity=9, prior_strength=1e-17, drafting_core="native")
    assert grown(drafter)[0].tokens == grown(twin)[0].tokens


def test_pruning_changes_no_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    pruned, _ = grown(fresh(draft_tree_capacity=12))
    monkeypatch.setattr("model.logitspec.drafters.calibrated.growth.PRUNING", 0.0)
    whole, _ = grown(fresh(draft_tree_capacity=12))
    assert (pruned.tokens, pruned.parents) == (whole.tokens, whole.parents)


@given(seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=60, deadline=None)
def test_both_cores_grow_the_same_trees(seed: int, data: st.DataObject) -> None:
    """Whatever is drafted, accepted and kept: the C++ does what the Python says."""
    options: dict[str, Any] = {
        "draft_tree_capacity": data.draw(st.sampled_from([2, 7, 24, "auto"])),
        "max_ngram_size": data.draw(st.sampled_from([1, 2, 3, 5, 11])),
        "row_width": data.draw(st.sampled_from([1, 4, 8, 20])),
        "last_width": data.draw(st.sampled_from([1, 5, 24, 40])),
        "prior_strength": data.draw(st.sampled_from([1e-17, 20.0, 1e17])),
        "reset_table": data.draw(st.booleans()),
        "reset_rows": data.draw(st.booleans()),
        "reset_ngrams": data.draw(st.booleans()),
    }
    sampled = data.draw(st.booleans())
    options["sampled_row_width"] = data.draw(st.sampled_from([3, 12, 40]))
    cost = data.draw(st.sampled_from([FLAT, MIDDLE]))
    learns = data.draw(st.booleans())
    cores = [fresh(**options, drafting_core=core) for core in ("native", "python")]
    for core in cores:
        if core.budget is not None:
            core.budget = Budget(cost, learns=learns)
    chance = random.Random(seed)
    ids: list[int] = []
    for prompt in range(4):
        if not ids or chance.random() < 0.6:  # else another answer to the same one
            ids = [chance.randrange(12) for _ in range(chance.randrange(1, 40))]
        told = Foresight(chance.getrandbits(64)) if sampled and chance.random() < 0.8 else None
        for core in cores:
            core.foresee(told)
            core.reset(ids)
        width = cores[0].node_top_k
        for _ in range(chance.randrange(1, 12)):
            top = chance.choices(range(12), k=options["last_width"])
            native, python = (core.draft(top[0], top) for core in cores)
            assert native.tokens == python.tokens
            assert native.parents == python.parents
            assert cores[0].path_probabilities == cores[1].path_probabilities
            assert [*map(tuple, cores[0].drafted.grades)] == [*map(tuple, cores[1].drafted.grades)]
            path = [chance.randrange(len(native))]
            while path[0]:
                path.insert(0, native.parents[path[0]])
            rows = [
                chance.choices(range(max(12, width)), k=width) if chance.random() < 0.8 else []
                for _ in native.tokens
            ]
            logs = [random_log_probabilities(chance, len(row)) for row in rows]
            deepest = chance.choice([len(path) - 1, 99])  # nodes below are not verified
            known = [row if native.depths[n] <= deepest else [] for n, row in enumerate(rows)]
            for core, tree in zip(cores, (native, python), strict=True):
                core.observe(tree, path, known, *([logs] if told else []))
        if prompt == 1 and chance.random() < 0.3:
            for core in cores:
                core.forget()
    for name in ("seen", "right", "probability"):
        assert list(getattr(cores[0].table, name)) == getattr(cores[1].table, name)
    for name in ("weights", "squares", "any_right", "nodes"):
        native_numbers, numbers = (getattr(core.corrections, name) for core in cores)
        assert list(native_numbers) == list(numbers)
    if told is not None:
        native_table, table = (core.foresight_table for core in cores)
        for name in ("seen", "right", "share", "count"):
            assert getattr(native_table, name).tolist() == getattr(table, name).tolist()


def random_log_probabilities(chance: random.Random, count: int) -> list[float]:
    """Of the best tokens of a row, best first; the last may be filtered out."""
    weights = sorted((chance.expovariate(1.0) ** 3 for _ in range(count + 3)), reverse=True)
    kept = chance.choice([count, count, count // 2 + 1])
    logs = [math.log(weight / sum(weights)) for weight in weights[:count]]
    return [*logs[:kept], *[-math.inf] * (count - kept)][:count]


@pytest.mark.parametrize("core", ["native", "python"])
def test_a_rest_drafts_nothing_and_misses_no_token(core: str) -> None:
    drafter = fresh(draft_tree_capacity="auto", drafting_core=core)
    drafter.budget = Budget(FLAT)
    drafter.reset([1, 2, 3])
    assert drafter.wants_best
    drafter.observe(drafter.draft(4, [4, 9]), [0], [[5, 6]] * len(drafter.path_probabilities))
    drafter.budget.rest = 2
    assert not drafter.wants_best
    for token in (30, 31):
        tree = drafter.draft(token, [])
        assert tree.tokens == [token] and drafter.origins(tree) == ["next token"]
        drafter.observe(tree, [0], [])
    assert drafter.wants_best
    drafter.observe(drafter.draft(32, [32, 9]), [0], [[5, 6]] * len(drafter.path_probabilities))
    assert 31 in drafter.draft(30, [30, 9]).tokens  # 30 31 was answered in the rest


@pytest.mark.parametrize("core", ["native", "python"])
def test_answers_to_one_prompt_share_what_is_known_of_it(core: str) -> None:
    drafter = fresh(draft_tree_capacity=9, drafting_core=core, row_width=2)

    def grades(token: int) -> list[str]:
        """What n-grams, rows and earlier answers say of a token below an 8."""
        node = drafter.draft(8, [8, 9]).tokens.index(token)
        graded = zip(drafter.sources, drafter.drafted.grades[node], strict=True)
        ngrams, rows, earlier, _ = (source.grade(place) for source, place in graded)
        return [ngrams, rows, earlier]

    drafter.reset([1, 2, 7])
    for root in (8, 50):
        tree = drafter.draft(root, [root, 9])
        drafter.observe(tree, [0], [[60, 61], *([[]] * (len(tree) - 1))])
    drafter.reset([1, 2, 7])
    row = "in the row of"
    here = "all, seen once of what followed 4"
    assert grades(50) == [here, f"not {row} two tokens", "no n-gram"]
    assert grades(60)[1] == f"rank 0 {row} two tokens"
    drafter.reset([4, 7])
    there = "all, seen once of what followed 1"
    assert grades(50) == ["no n-gram", f"not {row} an earlier prompt", there]


@pytest.mark.parametrize("core", ["native", "python"])
@pytest.mark.parametrize("reset", [True, False])
def test_an_earlier_prompt_is_evidence_unless_it_is_reset(core: str, reset: bool) -> None:
    options: dict[str, Any] = {"reset_rows": reset, "reset_ngrams": reset, "row_width": 2}
    drafter = fresh(draft_tree_capacity=9, drafting_core=core, **options)
    drafter.reset([1, 2])
    for root, row in ((3, [50, 51]), (7, [60, 61]), (8, [62, 63])):
        tree = drafter.draft(root, [root, 9])
        drafter.observe(tree, [0], [row, *([[]] * (len(tree) - 1))])
    drafter.reset([4])
    assert (50 in drafter.draft(3, [3, 9]).tokens) is not reset  # the row of a 3
    assert (8 in drafter.draft(7, [7, 9]).tokens) is not reset  # 7 8 was answered


def test_what_the_native_core_cannot_take_is_refused() -> None:
    drafter = fresh(draft_tree_capacity=4, drafting_core="native")
    for ids in ([-1], [3, 2**24], [2**40]):
        with pytest.raises(ValueError, match="no vocabulary is so large"):
            drafter.reset(ids)
    drafter.reset([1, 2])
    with pytest.raises(ValueError, match="token id is negative"):
        drafter.draft(-5, [1])
    tree = drafter.draft(3, [3, 4, 5, 6])
    with pytest.raises(ValueError, match=f"3 rows of best tokens for {len(tree)} nodes"):
        drafter.observe(tree, [0], [[1, 2]] * 3)
    with pytest.raises(ValueError, match="a prior of 3 grades for"):
        drafter.use_prior([0.1, 0.2, 0.3])


def test_numbers_that_make_no_sense_are_refused() -> None:
    for name, number in (("prior_strength", 0), ("prior_strength", math.inf), ("row_width", 0)):
        options: dict[str, Any] = {name: number}
        with pytest.raises(InputError, match=name):
            CalibratedDrafter(**options)
    drafter = fresh(draft_tree_capacity="auto")
    drafter.budget = Budget(StepCost((128, 1024), (1, 64), ((1, 2), (1, 2))))
    drafter.reset([1, 2])
    with pytest.raises(InputError, match="the step costs end at 64 nodes"):
        drafter.draft(3, [3, 4])


def test_without_a_compiler_drafting_is_in_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiler.build.cache_clear()
    try:
        with pytest.warns(UserWarning, match="drafts in Python, which is slower: there is no C"):
            assert len(grown(fresh(draft_tree_capacity=9))[0]) == 9
        with pytest.raises(InputError, match=r"no C\+\+ compiler 'no-such-compiler'"):
            fresh(drafting_core="native")
    finally:
        compiler.build.cache_clear()
    with pytest.raises(InputError, match="'fast'; give auto, native, python"):
        fresh(drafting_core="fast")


def test_every_candidate_below_an_accepted_node_is_learnt_once() -> None:
    drafter = fresh(draft_tree_capacity=8, last_width=3)
    drafter.reset([1, 2, 3, 1, 2])
    tree = drafter.draft(3, [3, 8, 9])
    assert tree.tokens[1] == 1  # what followed 1 2 3
    drafter.observe(tree, [0, 1], [[0] * 8] * len(tree))
    assert sum(drafter.table.seen) == 3  # below the root: 1, 8, 9
    assert sum(drafter.table.right) == 1
    drafter.draft(2, [2, 8, 9])  # which shows what was right below the last accepted node
    assert sum(drafter.table.seen) == 4
    assert sum(drafter.table.right) == 2


@pytest.mark.parametrize("core", ["native", "python"])
def test_a_candidate_is_learnt_in_every_source_that_names_it(core: str) -> None:
    drafter = fresh(draft_tree_capacity=8, last_width=3, drafting_core=core)
    drafter.reset([1, 2, 3, 1, 2])
    tree = drafter.draft(3, [3, 1, 9])  # 1 is what followed 1 2 3, too
    drafter.observe(tree, [0, tree.tokens.index(1)], [[0] * 8] * len(tree))
    assert (sum(drafter.table.seen), sum(drafter.table.right)) == (3, 2)
    ngrams, last = drafter.evidence.ngrams, drafter.evidence.last
    assert sum(drafter.table.right[: len(ngrams.grades)]) == 1
    assert sum(drafter.table.right[last.first :]) == 1


def test_what_is_kept_from_prompt_to_prompt() -> None:
    resets = {"reset_table": True, "reset_rows": True, "reset_ngrams": True}
    for options, kept in (({}, True), (resets, False)):
        drafter = fresh(draft_tree_capacity=8, last_width=3, **options)
        drafter.reset([1, 2, 3])
        drafter.observe(drafter.draft(7, [7, 8, 9]), [0], [[4, 5, 6, 1, 2, 3, 8, 9]] * 3)
        drafter.draft(8, [8, 7, 9])
        drafter.reset([50, 51])
        assert bool(sum(drafter.table.seen)) is kept
        assert (4 in drafter.draft(7, [7, 60, 61]).tokens) is kept


def test_an_explanation_names_every_source() -> None:
    drafter = fresh(draft_tree_capacity=8, last_width=3)
    drafter.reset([1, 2, 3, 1, 2])
    tree = drafter.draft(3, [3, 8, 9])
    node = tree.tokens.index(1)
    (line,) = drafter.explain(node).splitlines()
    grade = "all, seen once of what followed 3"
    prior = f"{drafter.table.prior[drafter.sources[0].grades.index(grade)]:.3f}"
    told = f"{grade}, right 0 of 0 times, prior {prior}, now {prior};"
    assert told in line and "none of the ranks)" in line
    assert all(f"{source.name}: " in line for source in drafter.sources)
    child = next(n for n in range(len(tree)) if tree.parents[n] == node and n)
    assert len(drafter.explain(child).splitlines()) == 2
