"""What corrects the acceptance table, on made-up candidates."""

from __future__ import annotations

import random

import numpy as np
import pytest

from model.logitspec.drafters.calibrated.corrections import RUNS, STRENGTH, Corrections
from model.logitspec.drafters.calibrated.evidence import Evidence

EVIDENCE = Evidence(5, 8, 24, keep_rows=True, keep_ngrams=True)


def test_nothing_learnt_changes_little() -> None:
    """Few candidates keep their probability; many, or sure ones, share what there is."""
    corrections = Corrections(EVIDENCE.sources)
    known = {0: 0.3, 1: 0.1, 2: 0.9, 3: 0.8}
    (own,) = corrections.weigh([7], [0], known, 0).probabilities
    assert own == pytest.approx(0.3, abs=0.01)
    more, less = corrections.weigh([7, 8], [2, 3], known, 0).probabilities
    assert less < more < 0.9 and more + less < 1
    assert more / less == pytest.approx(9 / 4)  # their odds
    nothing = corrections.weigh([], [], known, 0)
    corrections.learn(nothing, 7)
    assert not nothing.probabilities and not any(corrections.nodes)


def test_how_often_any_candidate_is_right_is_learnt_by_their_sum() -> None:
    corrections = Corrections(EVIDENCE.sources)
    known = {0: 0.5, 1: 0.45}
    chance = random.Random(0)
    for _ in range(1000):  # one of them is right in three quarters, the first twice as often
        weighed = corrections.weigh([1, 2], [0, 1], known, 0)
        corrections.learn(weighed, chance.choice([1, 1, 2, 3]))
    assert sum(corrections.nodes) == 1000
    assert sum(corrections.named) == pytest.approx(750, abs=50)
    first, second = corrections.weigh([1, 2], [0, 1], known, 0).probabilities
    assert first == pytest.approx(0.5, abs=0.06) and second == pytest.approx(0.25, abs=0.06)


def test_grades_and_runs_that_the_table_does_not_know_are_learnt() -> None:
    """Whether a candidate is right depends on the run and on one source's grade; the table says a
    half of all."""
    corrections = Corrections(EVIDENCE.sources)
    rows = EVIDENCE.rows
    chance = random.Random(1)
    truth = {
        (run, grade): (0.9 if run else 0.6) - 0.3 * grade for run in (0, 20) for grade in (0, 1)
    }
    errors = []
    for step in range(6000):
        run, grade = chance.choice([*truth])
        weighed = corrections.weigh([5], [rows.stride * (1 + grade)], np.full(10**6, 0.5), run)
        corrections.learn(weighed, 5 if chance.random() < truth[run, grade] else 6)
        if step > 3000:
            errors.append(weighed.probabilities[0] - truth[run, grade])
    assert abs(np.mean(errors)) < 0.02 and np.abs(errors).mean() < 0.06
    corrections.reset()
    assert not any(corrections.weights) and not any(corrections.nodes)


def test_what_is_believed_is_begun_with_and_soon_outweighed() -> None:
    known = [0.5]
    corrections = Corrections(EVIDENCE.sources)
    for _ in range(500):
        corrections.learn(corrections.weigh([1], [0], known, 0), 1)
    (sure,) = corrections.weigh([1], [0], known, 0).probabilities
    corrections.believe()
    (still,) = corrections.weigh([1], [0], known, 0).probabilities
    assert still == pytest.approx(sure, abs=0.1) and still > 0.9
    assert max(corrections.nodes) == STRENGTH
    for _ in range(60):
        corrections.learn(corrections.weigh([1], [0], known, 0), 2)
    assert corrections.weigh([1], [0], known, 0).probabilities[0] < 0.4
    corrections.reset()
    assert corrections.weigh([1], [0], known, 0).probabilities[0] == still


def test_a_run_has_a_kind_of_its_own_from_each_length_on() -> None:
    corrections = Corrections(EVIDENCE.sources)
    kinds = {run: corrections.weigh([1], [0], [0.5], run).weights[0] for run in range(40)}
    assert len(set(kinds.values())) == len(RUNS) + 1
    assert all(kinds[run] != kinds[run - 1] for run in RUNS)
