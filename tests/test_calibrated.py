"""The method calibrated: evidence, acceptance table, growth, and where "auto" ends its trees."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.calibration import reliability
from benchmarks.fit_prior import fit
from model.logitspec import (
    CalibratedDrafter,
    DraftTree,
    InputError,
    LlamaKVForCausalLM,
    LogitSpecDrafter,
    VanillaDrafter,
    compiler,
    decode,
    storage,
    successors,
)
from model.logitspec.drafters.calibrated.drafter import PRIOR
from model.logitspec.drafters.calibrated.evidence import (
    AnswerEvidence,
    LastEvidence,
    NgramEvidence,
    RowEvidence,
    Source,
    additive_prior,
)
from model.logitspec.drafters.calibrated.growth import ReadableCore
from model.logitspec.sizing.acceptance_table import AcceptanceTable
from model.logitspec.sizing.budget import Budget
from model.logitspec.sizing.measuring import step_cost
from model.logitspec.sizing.ranks import SizeByRank
from model.logitspec.sizing.step_cost import StepCost, rising

FLAT = StepCost((128, 1024), (1, 128), ((0.01, 0.0101), (0.01, 0.0101)))
MIDDLE = StepCost((128, 1024), (1, 8, 128), ((0.01, 0.012, 0.06),) * 2)
STEEP = StepCost((128, 1024), (1, 128), ((0.01, 1.0), (0.01, 1.0)))


def graded(source: Source, look: tuple[int, dict[int, int]]) -> dict[int | None, str]:
    """The grades by token; None: those of the tokens that the source does not name."""
    base, named = look
    return {None: source.grade(base), **{t: source.grade(base + more) for t, more in named.items()}}


def test_ngrams_tell_the_longest_match_and_the_share() -> None:
    ngrams = NgramEvidence(3, stride=1)
    ngrams.extend([1, 2, 3, 4, 2, 3, 5, 2, 3, 4, 9, 2, 7])
    assert graded(ngrams, ngrams.look((2, 3))) == {
        None: "nothing of what followed 2",
        4: "up to 2/3 of what followed 2",
        5: "up to 1/3 of what followed 2",
    }
    assert graded(ngrams, ngrams.look((8, 8, 3)))[4] == "up to 2/3 of what followed 1"
    assert graded(ngrams, ngrams.look((4, 2, 3))) == {
        None: "nothing of what followed 3",
        5: "all, seen once of what followed 3",
    }
    assert graded(ngrams, ngrams.look((5, 2)))[3] == "all, seen once of what followed 2"
    assert graded(ngrams, ngrams.look((2,)))[3] == "most of what followed 1"
    assert graded(ngrams, ngrams.look((77,))) == {None: "no ngram".replace("ng", "n-g")}


def test_ngrams_seen_twice_alike_are_told_from_those_seen_once() -> None:
    ngrams = NgramEvidence(2, stride=1)
    ngrams.extend([1, 2, 9, 1, 2])
    assert graded(ngrams, ngrams.look((1,)))[2] == "all of what followed 1"


def test_rows_prefer_two_tokens_to_one_to_earlier_prompts_to_the_vocabulary() -> None:
    rows = RowEvidence(2, stride=5, keep=True)
    rows.vocabulary = [[10, 11], [20, 21], [30, 31], [40, 41]]
    rows.learn(7, 3, [50, 51])
    rows.begin(())
    rows.learn(0, 1, [60, 61])
    rows.learn(9, 1, [70, 71])
    assert graded(rows, rows.look((0, 1)))[60] == "rank 0 in the row of two tokens"
    assert graded(rows, rows.look((5, 1)))[71] == "rank 1 in the row of one token"
    assert graded(rows, rows.look((7, 3)))[50] == "rank 0 in the row of an earlier prompt"
    assert graded(rows, rows.look((7, 2))) == {
        None: "not in the row of the vocabulary",
        30: "rank 0 in the row of the vocabulary",
        31: "rank 1 in the row of the vocabulary",
    }
    assert rows.look((4,)) == (0, {})
    rows.forget()
    assert graded(rows, rows.look((7, 3)))[40] == "rank 0 in the row of the vocabulary"


def test_rows_of_a_prompt_end_with_it_unless_kept() -> None:
    rows = RowEvidence(2, stride=1, keep=False)
    rows.learn(7, 3, [50, 51])
    rows.begin(())
    assert rows.look((7, 3)) == (0, {})


def test_the_last_logits_leave_the_root_out_and_keep_its_rank() -> None:
    last = LastEvidence(6, stride=3)
    found = graded(last, last.below_root(8, [8, 4, 5, 6, 7, 9]))
    assert found == {
        None: "none of the ranks",
        4: "rank 1 or more", 5: "rank 2 or more", 6: "rank 3 or more", 7: "rank 3 or more",
        9: "rank 5 or more",
    }  # fmt: skip


def test_wider_sources_take_the_nearest_fitted_grade() -> None:
    assert NgramEvidence(7, 1).fitted[-1] == NgramEvidence(5, 1).grades[-1]
    assert len(NgramEvidence(400, 1).grades) == len(NgramEvidence(8, 1).grades)
    assert len(RowEvidence(400, 1, keep=True).grades) == len(RowEvidence(16, 1, keep=True).grades)
    wide = RowEvidence(12, 1, keep=True)
    assert wide.grades[12] == "rank 11 in the row of two tokens"
    assert wide.fitted[12] == "rank 7 in the row of two tokens"
    fitted = json.loads(PRIOR.read_text())
    for source in CalibratedDrafter(max_ngram_size=9, row_width=20, last_width=60).sources:
        assert set(source.fitted) <= fitted[source.name].keys()


def test_the_prior_adds_log_odds_and_the_table_learns_shares() -> None:
    prior = additive_prior(0.0, [[0.0, 1.0], [0.0, -2.0]])
    assert prior == pytest.approx([0.5, 1 / (1 + np.exp(-1)), 1 / (1 + np.e**2), 1 / (1 + np.e)])
    table = AcceptanceTable(prior, strength=2)
    table.learn(0, True)
    table.learn(0, True)
    table.learn(0, False)
    assert table.probability[0] == pytest.approx((2 + 2 * 0.5) / (3 + 2))
    assert table.probability[1:] == table.prior[1:]
    table.reset()
    assert table.probability == table.prior


def fresh(**options: Any) -> CalibratedDrafter:
    """Without rows of a vocabulary."""
    return CalibratedDrafter(vocabulary_rows=0, **options)


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


def test_the_tree_holds_the_most_probable_paths() -> None:
    """A greedy tree of C nodes is the C best of the tree that has them all."""
    for capacity in (2, 5, 20):
        small = fresh(draft_tree_capacity=capacity)
        large = fresh(draft_tree_capacity=capacity, drafting_core="python")
        tree, _ = grown(small)
        assert len(tree) == capacity
        paths = small.path_probabilities
        assert paths == sorted(paths, reverse=True)
        for node in range(1, capacity):
            edge = small.table.probability[small.cells[node]]
            assert paths[node] == pytest.approx(paths[tree.parents[node]] * edge)
        # and nothing more probable is left out: the candidates below its nodes, not in it
        grown(large)
        taken = {(p, t) for p, t in zip(tree.parents[1:], tree.tokens[1:], strict=True)}
        core = large._core
        assert isinstance(core, ReadableCore)
        assert core.grow(5, [5, *range(40, 39 + large.top_k)], 0.0)[1]
        for node, candidates in enumerate(core._candidates):
            assert candidates is not None
            base, named = candidates
            left = [
                paths[node] * large.table.probability[base + more]
                for token, more in named.items()
                if (node, token) not in taken
            ]
            assert all(p <= paths[-1] + 1e-12 for p in left)


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
        "last_width": data.draw(st.sampled_from([1, 5, 24])),
        "reset_table": data.draw(st.booleans()),
        "reset_rows": data.draw(st.booleans()),
        "reset_ngrams": data.draw(st.booleans()),
    }
    cost = data.draw(st.sampled_from([FLAT, MIDDLE]))
    cores = [fresh(**options, drafting_core=core) for core in ("native", "python")]
    width = options["row_width"]
    vocabulary = [random.Random(token).choices(range(12), k=width) for token in range(9)]
    for core in cores:
        if core.budget is not None:
            core.budget = Budget(cost)
        core._core.set_vocabulary(vocabulary)
    chance = random.Random(seed)
    for prompt in range(3):
        ids = [chance.randrange(12) for _ in range(chance.randrange(1, 40))]
        for core in cores:
            core.reset(ids)
        for _ in range(chance.randrange(1, 12)):
            top = chance.sample(range(12), min(12, options["last_width"]))
            native, python = (core.draft(top[0], top) for core in cores)
            assert native.tokens == python.tokens
            assert native.parents == python.parents
            assert cores[0].path_probabilities == cores[1].path_probabilities
            assert cores[0].cells == cores[1].cells
            path = [chance.randrange(len(native))]
            while path[0]:
                path.insert(0, native.parents[path[0]])
            rows = [
                chance.choices(range(12), k=width) if chance.random() < 0.8 else []
                for _ in native.tokens
            ]
            deepest = chance.choice([len(path) - 1, 99])  # nodes below are not verified
            known = [row if native.depths[n] <= deepest else [] for n, row in enumerate(rows)]
            for core, tree in zip(cores, (native, python), strict=True):
                core.observe(tree, path, known)
        if prompt == 1 and chance.random() < 0.3:
            for core in cores:
                core.forget()
    for name in ("seen", "right", "probability"):
        assert list(getattr(cores[0].table, name)) == getattr(cores[1].table, name)


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
    for rows in ([[1, 2]] * (len(tree) - 1), [*[[1, 2]] * (len(tree) - 1), [1]]):
        with pytest.raises(ValueError, match="rows of 2 best tokens"):
            drafter.observe(tree, [0], rows)
    with pytest.raises(ValueError, match="a prior of 3 cells for"):
        drafter.use_prior([0.1, 0.2, 0.3])


def test_numbers_that_make_no_sense_are_refused() -> None:
    for options in ({"prior_strength": 0}, {"vocabulary_rows": -1}, {"row_width": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
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


def test_answers_are_looked_into_from_the_next_prompt_on() -> None:
    for keep in (True, False):
        earlier = AnswerEvidence(3, stride=1, keep=keep)
        earlier.begin([1, 2, 3])
        earlier.extend([7, 8])
        earlier.extend([9])
        assert earlier.look((7, 8)) == (0, {})
        earlier.begin([5, 8, 4])
        found = graded(earlier, earlier.look((7, 8)))
        wanted = {None: "nothing of what followed 2", 9: "all, seen once of what followed 2"}
        assert found == (wanted if keep else {None: "no n-gram"})
        assert earlier.look((1, 2)) == (0, {})  # prompts are not kept
        earlier.forget()
        assert earlier.look((7,)) == (0, {})


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
    assert "all, seen once of what followed 3" in line and "none of the ranks" in line
    child = next(n for n in range(len(tree)) if tree.parents[n] == node and n)
    assert len(drafter.explain(child).splitlines()) == 2


def test_a_flat_curve_takes_more_nodes_than_a_steep_one() -> None:
    sizes = {}
    for name, cost in (("flat", FLAT), ("steep", STEEP)):
        drafter = fresh(draft_tree_capacity="auto")
        drafter.budget = Budget(cost)
        tree, _ = grown(drafter)
        sizes[name] = len(tree)
        assert len(drafter.path_probabilities) == len(drafter.cells) == len(tree)
    assert sizes["steep"] < 8 < sizes["flat"] <= 128


def test_a_tree_ends_where_its_tokens_per_second_are_most() -> None:
    budget = Budget(StepCost((128, 1024), (1, 2, 4, 8, 128), ((1, 1, 1.2, 2, 60),) * 2))
    paths = [1.0, 0.5, 0.3, 0.2, 0.15, 0.1]
    budget.begin(200)
    rates = [e / budget.curve[n] for n, e in enumerate(accumulate(paths), 1)]
    for path in paths:
        budget.add(path)
    assert budget.best_nodes == 1 + int(np.argmax(rates)) == 4


@given(
    paths=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=40),
    steps=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4),
)
def test_what_follows_a_complete_tree_would_not_have_paid(
    paths: list[float], steps: list[float]
) -> None:
    cost = [1.0 + rise for rise in accumulate(steps)]
    whole = Budget(StepCost((128, 1024), (1, 3, 9, 64), (cost, cost)))
    early = Budget(StepCost((128, 1024), (1, 3, 9, 64), (cost, cost)))
    whole.begin(200)
    early.begin(200)
    open_ = True
    for path in [1.0, *sorted(paths, reverse=True)]:
        whole.add(path)
        open_ = open_ and (path == 1.0 or not early.enough(path))
        if open_:
            early.add(path)
    assert early.best_nodes == whole.best_nodes


def test_the_curve_is_linear_between_and_beyond_and_never_falls() -> None:
    cost = StepCost((100, 200), (1, 2, 4), ((1.0, 3.0, 2.0), (2.0, 4.0, 4.0)))
    assert cost.curve(100) == [1.0, 1.0, 2.5, 2.5, 2.5]
    assert cost.curve(150) == [1.5, 1.5, 3.25, 3.25, 3.25]
    assert cost.curve(300)[1] == 3.0
    assert cost.curve(0)[1] == 1.0  # no faster than the shorter context
    assert rising([3.0, 1.0, 2.0, 5.0, 4.0]) == [2.0, 2.0, 2.0, 4.5, 4.5]


def test_auto_without_a_curve_is_refused() -> None:
    for drafter in (
        fresh(draft_tree_capacity="auto"),
        LogitSpecDrafter(draft_tree_capacity="auto"),
    ):
        drafter.reset([1, 2])
        with pytest.raises(InputError, match=r"prepare\(model\)"):
            drafter.draft(1, [1, 2])


@pytest.mark.parametrize("capacity", [0, -3, "many", 2.5])
def test_other_capacities_are_refused(capacity: Any) -> None:
    for drafter in (CalibratedDrafter, LogitSpecDrafter):
        with pytest.raises(InputError, match=r"draft_tree_capacity"):
            drafter(draft_tree_capacity=capacity)


@pytest.mark.parametrize(
    "drafter",
    [
        CalibratedDrafter(draft_tree_capacity=20),
        CalibratedDrafter(draft_tree_capacity="auto"),
        LogitSpecDrafter(draft_tree_capacity="auto"),
    ],
    ids=["calibrated", "calibrated auto", "logitspec auto"],
)
def test_the_tokens_are_the_targets_own(
    tiny: LlamaKVForCausalLM, drafter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.logitspec.sizing.measuring.step_cost", lambda *_: FLAT)
    prompt = [1, 5, 9, 5, 9, 7]
    wanted = decode(tiny, prompt, VanillaDrafter(), max_new_tokens=90).tokens
    for _ in range(2):  # cold and warm
        found = decode(tiny, prompt, drafter, max_new_tokens=90)
        assert found.tokens == wanted
    assert max(found.accept_lengths) > 1


def test_logitspecs_ranks_learn_what_was_right() -> None:
    drafter = LogitSpecDrafter(draft_tree_capacity="auto", num_pred_tokens=4)
    assert isinstance(drafter.size, SizeByRank)
    drafter.size.budget = Budget(FLAT)
    drafter.reset([1, 2, 3])
    tree = drafter.draft(9, [9, 7, 8])
    assert tree.tokens == [9, 7, 8]
    drafter.observe(tree, [0])
    drafter.draft(8, [8, 1, 2])  # the guess at rank 2 was right, that at rank 1 wrong
    table = drafter.size.table
    assert (table.seen[1], table.right[1]) == (1, 0)
    assert (table.seen[2], table.right[2]) == (1, 1)


def test_successors_are_the_targets_best_tokens_out_of_context(tiny: LlamaKVForCausalLM) -> None:
    rows = successors.successors(tiny, 500, 3)
    assert len(rows) == tiny.config.vocab_size
    for token in (0, 40, 96):
        result = decode(tiny, [tiny.config.bos_token_id, token], VanillaDrafter(), max_new_tokens=1)
        assert rows[token][0] == result.tokens[0]


def test_what_was_found_is_remembered_and_a_torn_file_is_not(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "cache_folder", lambda: tmp_path)
    found: list[int] = []

    def find() -> list[int]:
        found.append(1)
        return [3, 4]

    for _ in range(2):
        assert storage.remembered("kind", {"a": 1}, find) == [3, 4]
    assert len(found) == 1
    (file,) = tmp_path.glob("kind-*.json")
    file.write_text(file.read_text()[:-5])
    assert storage.remembered("kind", {"a": 1}, find) == [3, 4]
    assert len(found) == 2
    assert storage.remembered("kind", {"a": 2}, find) == [3, 4]
    assert len(found) == 3


def test_what_cannot_be_stored_is_found_all_the_same(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(storage, "cache_folder", lambda: tmp_path / "file" / "folder")
    with pytest.warns(UserWarning, match="cannot be stored"):
        assert storage.remembered("kind", 1, lambda: 7) == 7


def test_the_step_cost_is_measured_once(
    tiny: LlamaKVForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = step_cost(tiny, 4, 2)
    assert cost.nodes[0] == 1 and len(cost.seconds[0]) == len(cost.nodes)
    assert all(seconds > 0 for row in cost.seconds for seconds in row)
    monkeypatch.setattr("model.logitspec.sizing.measuring.measure", None)
    assert step_cost(tiny, 4, 2).seconds == [list(row) for row in cost.seconds]


def test_the_fit_finds_the_weights_that_made_the_counts() -> None:
    chance = np.random.default_rng(0)
    sources: Sequence[Source] = (NgramEvidence(1, 1), LastEvidence(3, 7))
    weights = [chance.normal(size=len(source.grades)) for source in sources]
    prior = np.array(additive_prior(-1.0, weights))
    seen = np.full(len(prior), 4000.0)
    fitted = fit(sources, seen, seen * prior)
    again = additive_prior(fitted["bias"], [list(fitted[s.name].values()) for s in sources])
    assert again == pytest.approx(prior.tolist(), abs=0.01)


def test_reliability_by_hand() -> None:
    predicted = np.array([0.05, 0.05, 0.95, 0.95])
    rows, error = reliability(predicted, np.array([0.0, 1.0, 1.0, 1.0]))
    assert [(row["drafts"], row["accepted"]) for row in rows] == [(2, 0.5), (2, 1.0)]
    assert error == pytest.approx((2 * 0.45 + 2 * 0.05) / 4)


def test_the_first_nodes_of_a_tree() -> None:
    tree = DraftTree(1, 5)
    tree.add_branch([2, 3])
    tree.add_branch([4])
    assert tree.first(5) is tree
    assert (tree.first(3).tokens, tree.first(3).parents) == ([1, 2, 3], [0, 0, 1])
    assert torch.tensor(tree.first(1).tokens).tolist() == [1]
