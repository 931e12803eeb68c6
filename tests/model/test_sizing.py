"""Where trees that size themselves end, and what is measured and remembered for that."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.calibration import reliability
from benchmarks.fit_prior import FLAT as FLAT_PRIOR
from benchmarks.fit_prior import fit, flat_prior
from model.logitspec import (
    CalibratedDrafter,
    DraftTree,
    InputError,
    LlamaKVForCausalLM,
    LogitSpecDrafter,
    VanillaDrafter,
    decode,
    storage,
)
from model.logitspec.drafters.calibrated.evidence import Evidence
from model.logitspec.drafters.calibrated.prior import prior_of
from model.logitspec.sizing.acceptance_table import AcceptanceTable
from model.logitspec.sizing.budget import Budget
from model.logitspec.sizing.ranks import SizeByRank
from model.logitspec.sizing.step_cost import StepCost, rising

from .test_calibrated import FLAT, STEEP, fresh, grown


def test_a_flat_curve_takes_more_nodes_than_a_steep_one() -> None:
    sizes = {}
    for name, cost in (("flat", FLAT), ("steep", STEEP)):
        drafter = fresh(draft_tree_capacity="auto")
        drafter.budget = Budget(cost)
        tree, _ = grown(drafter)
        sizes[name] = len(tree)
        assert len(drafter.path_probabilities) == len(drafter.drafted.grades) == len(tree)
    assert sizes["steep"] < 8 < sizes["flat"] <= 128


def test_a_tree_ends_where_its_tokens_per_second_are_most() -> None:
    budget = Budget(StepCost((128, 1024), (1, 2, 4, 8, 128), ((1, 1, 1.2, 2, 60),) * 2))
    paths = [1.0, 0.5, 0.3, 0.2, 0.15, 0.1]
    for _ in range(1000):  # an answer's first drafts count less
        budget.begin(200)
    rates = [e / budget.curve[n] for n, e in enumerate(accumulate(paths), 1)]
    for path in paths:
        budget.add(path)
    assert budget.best_nodes == 1 + int(np.argmax(rates)) == 4


def test_nodes_to_learn_from_are_taken_where_they_cost_next_to_nothing() -> None:
    """And fewer, the more is learnt."""

    def taken(rise: float, *, learns: bool) -> int:
        cost = (1.0, 1.5, 1.5 + 126 * rise)
        budget = Budget(StepCost((128, 1024), (1, 2, 128), (cost, cost)), learns=learns)
        for _ in range(1000):
            budget.begin(200)
        for path in [1.0, *(0.6**n for n in range(1, 128))]:
            budget.add(path)
        return budget.best_nodes

    assert taken(0.001, learns=False) < 16 < taken(0.001, learns=True) == 128
    assert taken(0.1, learns=False) == taken(0.1, learns=True) < 8
    assert 16 < taken(0.004, learns=True) < 64  # where a tenth of the tokens a second is given up
    late = Budget(StepCost((128, 1024), (1, 2, 128), ((1.0, 1.5, 2.0),) * 2), learns=True)
    lessons = []
    for _ in range(1000):
        late.begin(200)
        lessons.append(late.lesson)
        late.learn(1.0, 1, 64)
    assert lessons == sorted(lessons, reverse=True) and lessons[-1] < lessons[0] / 3
    late.forget()
    late.begin(200)
    assert late.lesson == lessons[0]


def test_drafts_that_are_never_right_end_and_are_tried_again() -> None:
    budget = Budget(StepCost((128, 1024), (1, 8), ((1.0, 2.4),) * 2))
    sizes = []
    for step in range(600):
        budget.begin(200)
        for path in (1.0, 0.6, 0.5):
            budget.add(path)
        sizes.append(budget.best_nodes)
        right = 2 if step > 300 else 0
        budget.learn([0.0, 0.6, 1.1][sizes[-1] - 1], min(right, sizes[-1] - 1), sizes[-1])
    assert sizes[0] == 1  # a loss weighs most in a short answer
    assert sizes[3] == 3
    assert 0 < sum(size > 1 for size in sizes[50:300]) < 125  # now and then
    assert sizes[-1] == 3 and budget.trust > 1
    budget.forget()
    assert budget.trust == 1


def steps_of(budget: Budget, right: Callable[[int], int]) -> list[bool]:
    """Whether each of 400 steps rested, of a drafter whose trees have two nodes."""
    rested = []
    for step in range(400):
        rested.append(budget.rest > 0)
        if budget.rest:
            budget.rest -= 1
            continue
        budget.begin(200)
        budget.learn(0.5, right(step), 2)
    return rested


def test_drafting_that_loses_time_rests_and_looks_again() -> None:
    dear = StepCost((128, 1024), (1, 2, 128), ((0.004, 0.005, 0.4),) * 2)
    budget = Budget(dear)
    rested = steps_of(budget, lambda step: 0)
    looks = [len(list(group)) for rests, group in groupby(rested) if not rests]
    assert looks[0] == 2  # each step loses 0.29 of one
    assert sum(rested) > 380
    rests = [len(list(group)) for rests, group in groupby(rested) if rests]
    assert rests[:4] == [16, 32, 64, 128]
    budget.begin_generation()
    assert budget.rest == 0
    assert not any(steps_of(budget, lambda step: 1)[10:])
    budget.forget()
    late = steps_of(budget, lambda step: int(step > 100))
    assert sum(late[:100]) > 80
    assert not any(late[250:])  # the look after the next rest found that it pays


def test_nodes_taken_to_learn_from_do_not_end_drafts_that_pay() -> None:
    cost = StepCost((128, 1024), (1, 2, 128), ((0.004, 0.005, 0.0056),) * 2)
    budget = Budget(cost, learns=True)
    sizes = []
    for step in range(400):
        assert not budget.rest
        budget.begin(200)
        for path in (1.0, 0.5, *[0.001] * 126):
            budget.add(path)
        sizes.append((budget.plain_nodes, budget.best_nodes))
        budget.learn(0.5, int(step % 5 in (0, 2)), budget.best_nodes)
    assert sizes[-1][0] == 2 < 64 < sizes[-1][1]


def test_rows_that_it_begins_with_count_as_learnt() -> None:
    taught, new = (CalibratedDrafter("auto") for _ in range(2))
    taught.warm({"greedy.rows": np.array([n for token in range(20000) for n in (token, 1, 5)])})
    lessons = []
    for drafter in (taught, new):
        drafter.budget = budget = drafter.budget or Budget()
        budget._cost = FLAT
        budget.begin(200)
        lessons.append(budget.lesson)
    assert 0 < lessons[0] < 0.8 * lessons[1]
    taught.forget()  # what it was taught stays
    assert taught.budget is not None
    taught.budget.begin(200)
    assert taught.budget.lesson == lessons[0]


def test_what_costs_little_never_rests() -> None:
    assert not any(steps_of(Budget(FLAT), lambda step: int(step % 20 == 0)))


@given(
    paths=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=40),
    steps=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4),
    learns=st.booleans(),
)
def test_what_follows_a_complete_tree_would_not_have_paid(
    paths: list[float], steps: list[float], learns: bool
) -> None:
    cost = [1.0 + rise for rise in accumulate(steps)]
    whole = Budget(StepCost((128, 1024), (1, 3, 9, 64), (cost, cost)), learns=learns)
    early = Budget(StepCost((128, 1024), (1, 3, 9, 64), (cost, cost)), learns=learns)
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
        with pytest.raises(InputError, match=r"prepare\(MeasuredModel\(model\)\)"):
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
    monkeypatch.setattr("model.logitspec.sizing.measuring.live_cost", lambda *_: FLAT)
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


def test_what_was_stored_is_recalled_and_a_torn_file_is_not(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "cache_folder", lambda: tmp_path)
    assert storage.recall("kind", {"a": 1}) is None
    storage.remember("kind", {"a": 1}, [3, 4])
    storage.remember("kind", {"a": 2}, [5])
    assert storage.recall("kind", {"a": 1}) == [3, 4]
    assert storage.recall("other", {"a": 1}) is None
    for file in tmp_path.glob("kind-*.json"):
        file.write_text(file.read_text()[:-5])
    assert storage.recall("kind", {"a": 1}) is None


def test_what_cannot_be_stored_is_said(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(storage, "cache_folder", lambda: tmp_path / "file" / "folder")
    with pytest.warns(UserWarning, match="cannot be stored"):
        storage.remember("kind", 1, 7)
    assert storage.recall("kind", 1) is None


def test_logitspecs_ranks_learn_from_guesses_that_were_cut_off() -> None:
    drafter = LogitSpecDrafter(draft_tree_capacity="auto", num_pred_tokens=4)
    assert isinstance(drafter.size, SizeByRank)
    dear = [1.0, *[50.0 * n for n in (2, 128)]]
    drafter.size.budget = Budget(StepCost((128, 1024), (1, 2, 128), (dear, dear)))
    drafter.reset([1, 2, 3])
    tree = drafter.draft(9, [9, 7, 8])
    assert tree.tokens == [9]  # nothing pays
    drafter.observe(tree, [0])
    drafter.draft(7, [7, 1, 2])
    table = drafter.size.table
    assert (table.seen[1], table.right[1], table.seen[2], table.right[2]) == (1, 1, 1, 0)


def test_the_fit_is_how_often_each_grade_was_right() -> None:
    evidence = Evidence(5, 8, 24, keep_rows=True, keep_ngrams=True)
    table = AcceptanceTable(flat_prior(evidence.sources), 20.0)
    place = evidence.last.first + 2  # of the second best of the last logits
    for right in [True] * 30 + [False] * 70:
        table.learn(place, right)
    fitted = fit(evidence.sources, table)
    prior = prior_of(fitted, evidence.sources)
    assert prior[place] == pytest.approx(0.3, abs=0.01)
    assert fitted["last logits"]["rank 1 or more"] == prior[place]
    assert {*prior[:place], *prior[place + 1 :]} == {0.0, FLAT_PRIOR}


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
