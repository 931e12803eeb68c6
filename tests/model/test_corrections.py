"""What corrects the acceptance table, on made-up candidates."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest

from model.logitspec.drafters.calibrated.corrections import DOUBT, STRENGTH, Corrections
from model.logitspec.drafters.calibrated.evidence import Evidence

EVIDENCE = Evidence(5, 8, 24, keep_rows=True, keep_ngrams=True)


def test_nothing_learnt_changes_little() -> None:
    """Few candidates keep their probability; many, or sure ones, share what there is."""
    corrections = Corrections(EVIDENCE.sources)
    known = {0: 0.3, 1: 0.1, 2: 0.9, 3: 0.8}
    (own,) = corrections.weigh([7], [0], known).probabilities
    assert own == pytest.approx(0.3, abs=0.01)
    more, less = corrections.weigh([7, 8], [2, 3], known).probabilities
    assert less < more < 0.9 and more + less < 1
    assert more / less == pytest.approx(9 / 4)  # their odds
    nothing = corrections.weigh([], [], known)
    corrections.learn(nothing, 7)
    assert not nothing.probabilities and not any(corrections.nodes)


def test_how_often_any_candidate_is_right_is_learnt_by_their_sum() -> None:
    corrections = Corrections(EVIDENCE.sources)
    known = {0: 0.5, 1: 0.45}
    chance = random.Random(0)
    for _ in range(1000):  # one of them is right in three quarters, the first twice as often
        weighed = corrections.weigh([1, 2], [0, 1], known)
        corrections.learn(weighed, chance.choice([1, 1, 2, 3]))
    assert sum(corrections.nodes) == 1000
    assert sum(corrections.any_right) == pytest.approx(750, abs=50)
    first, second = corrections.weigh([1, 2], [0, 1], known).probabilities
    assert first == pytest.approx(0.5, abs=0.06) and second == pytest.approx(0.25, abs=0.06)


def test_grades_that_the_table_does_not_know_are_learnt() -> None:
    """Whether a candidate is right depends on the grades of two sources; the table says a half of
    all."""
    corrections = Corrections(EVIDENCE.sources)
    rows, earlier = EVIDENCE.rows, EVIDENCE.earlier
    chance = random.Random(1)
    truth = {(a, b): 0.9 - 0.3 * a - 0.4 * b for a in (0, 1) for b in (0, 1)}
    errors = []
    for step in range(6000):
        row, answer = chance.choice([*truth])
        cell = rows.stride * (1 + row) + earlier.stride * answer
        weighed = corrections.weigh([5], [cell], defaultdict(lambda: 0.5))
        corrections.learn(weighed, 5 if chance.random() < truth[row, answer] else 6)
        if step > 3000:
            errors.append(weighed.probabilities[0] - truth[row, answer])
    assert abs(np.mean(errors)) < 0.02 and np.abs(errors).mean() < 0.06
    corrections.reset()
    assert not any(corrections.weights) and not any(corrections.nodes)


def test_what_is_believed_is_begun_with_and_soon_outweighed() -> None:
    known = [0.5]
    corrections = Corrections(EVIDENCE.sources)
    for _ in range(500):
        corrections.learn(corrections.weigh([1], [0], known), 1)
    (sure,) = corrections.weigh([1], [0], known).probabilities
    corrections.believe()
    assert set(corrections.squares) == {DOUBT}
    (still,) = corrections.weigh([1], [0], known).probabilities
    assert still == pytest.approx(sure, abs=0.1) and still > 0.9
    assert max(corrections.nodes) == STRENGTH
    for _ in range(60):
        corrections.learn(corrections.weigh([1], [0], known), 2)
    assert corrections.weigh([1], [0], known).probabilities[0] < 0.4
    corrections.reset()
    assert corrections.weigh([1], [0], known).probabilities[0] == still
