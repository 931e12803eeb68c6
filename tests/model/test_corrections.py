"""What corrects the acceptance table, on made-up candidates."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest

from model.logitspec.drafters.calibrated.corrections import DOUBT, STRENGTH, Corrections
from model.logitspec.drafters.calibrated.evidence import Evidence

EVIDENCE = Evidence(5, 8, 24, keep_rows=True, keep_ngrams=True)
NOTHING = [source.first for source in EVIDENCE.sources]


def graded(*, row: int = 0, last: int = 0, earlier: int = 0) -> list[int]:
    """The grades of a token by all sources."""
    return [begin + grade for begin, grade in zip(NOTHING, (0, row, earlier, last), strict=True)]


RANKS = [graded(row=1 + rank) for rank in range(4)]  # of tokens in a row alone


def ranks(*known: float) -> dict[int, float]:
    """A table's probabilities of these ranks in a row."""
    return {grades[1]: own for grades, own in zip(RANKS, known, strict=False)}


def test_nothing_learnt_changes_little() -> None:
    """Few candidates keep their probability; many, or sure ones, share what there is."""
    corrections = Corrections(EVIDENCE.sources)
    known = ranks(0.3, 0.1, 0.9, 0.8)
    (own,) = corrections.weigh({7: RANKS[0]}, known).probabilities
    assert own == pytest.approx(0.3, abs=0.01)
    more, less = corrections.weigh({7: RANKS[2], 8: RANKS[3]}, known).probabilities
    assert less < more < 0.9 and more + less < 1
    assert more / less == pytest.approx(9 / 4)  # their odds
    nothing = corrections.weigh({}, known)
    corrections.learn(nothing, 7)
    assert not nothing.probabilities and not any(corrections.nodes)


def test_how_often_any_candidate_is_right_is_learnt_by_their_sum() -> None:
    corrections = Corrections(EVIDENCE.sources)
    known = ranks(0.5, 0.45)
    chance = random.Random(0)
    for _ in range(1000):  # one of them is right in three quarters, the first twice as often
        weighed = corrections.weigh({1: RANKS[0], 2: RANKS[1]}, known)
        corrections.learn(weighed, chance.choice([1, 1, 2, 3]))
    assert sum(corrections.nodes) == 1000
    assert sum(corrections.any_right) == pytest.approx(750, abs=50)
    first, second = corrections.weigh({1: RANKS[0], 2: RANKS[1]}, known).probabilities
    assert first == pytest.approx(0.5, abs=0.06) and second == pytest.approx(0.25, abs=0.06)


def test_what_is_all_but_certain_is_told_from_what_is_likely() -> None:
    corrections = Corrections(EVIDENCE.sources)
    known = ranks(0.998, 0.92)
    sure, likely = ({1: RANKS[rank]} for rank in (0, 1))
    for step in range(400):
        corrections.learn(corrections.weigh(sure, known), 1)
        corrections.learn(corrections.weigh(likely, known), 1 if step % 13 else 2)
    assert corrections.weigh(sure, known).probabilities[0] > 0.99
    assert corrections.weigh(likely, known).probabilities[0] == pytest.approx(0.92, abs=0.03)


def test_a_token_is_wrong_only_if_it_is_so_by_all_that_name_it() -> None:
    corrections = Corrections(EVIDENCE.sources)
    last, both = graded(last=2), graded(row=1, last=2)
    nobody = graded(earlier=1)  # of tokens that did not follow an n-gram
    known = {**ranks(0.4), last[3]: 0.3, nobody[2]: 0.9}
    for grades, right in ((RANKS[0], 0.4), (last, 0.3), (both, 1 - 0.6 * 0.7), (nobody, 0.0)):
        assert corrections.wrong(grades, known) == pytest.approx(1 - right)
        (own,) = corrections.weigh({5: grades}, known).probabilities
        assert own == pytest.approx(right, abs=0.03)


def test_which_sources_name_a_token_is_learnt() -> None:
    """Two that agree are right as often as one is."""
    corrections = Corrections(EVIDENCE.sources)
    ways = [*RANKS[:2], graded(last=2), graded(row=1, last=2), graded(row=2, last=2)]
    chance = random.Random(2)
    for _ in range(6000):
        weighed = corrections.weigh({5: chance.choice(ways)}, defaultdict(lambda: 0.5))
        corrections.learn(weighed, 5 if chance.random() < 0.5 else 6)
    rows_alone, last_alone, both = (corrections.grades + who for who in (0b10, 0b1000, 0b1010))
    assert corrections.weights[both] < -0.1
    assert min(corrections.weights[rows_alone], corrections.weights[last_alone]) > 0


def test_grades_that_the_table_does_not_know_are_learnt() -> None:
    """Whether a candidate is right depends on the grades of two sources; the table says a half of
    all."""
    corrections = Corrections(EVIDENCE.sources)
    chance = random.Random(1)
    truth = {(a, b): 0.9 - 0.3 * a - 0.4 * b for a in (0, 1) for b in (0, 1)}
    errors = []
    for step in range(6000):
        row, answer = chance.choice([*truth])
        grades = graded(row=1 + row, earlier=answer)
        weighed = corrections.weigh({5: grades}, defaultdict(lambda: 0.5))
        corrections.learn(weighed, 5 if chance.random() < truth[row, answer] else 6)
        if step > 3000:
            errors.append(weighed.probabilities[0] - truth[row, answer])
    assert abs(np.mean(errors)) < 0.02 and np.abs(errors).mean() < 0.06
    corrections.reset()
    assert not any(corrections.weights) and not any(corrections.nodes)


def test_what_is_believed_is_begun_with_and_soon_outweighed() -> None:
    known = ranks(0.5)
    corrections = Corrections(EVIDENCE.sources)
    for _ in range(500):
        corrections.learn(corrections.weigh({1: RANKS[0]}, known), 1)
    (sure,) = corrections.weigh({1: RANKS[0]}, known).probabilities
    corrections.believe()
    assert set(corrections.squares) == {DOUBT}
    (still,) = corrections.weigh({1: RANKS[0]}, known).probabilities
    assert still == pytest.approx(sure, abs=0.1) and still > 0.9
    assert max(corrections.nodes) == STRENGTH
    for _ in range(60):
        corrections.learn(corrections.weigh({1: RANKS[0]}, known), 2)
    assert corrections.weigh({1: RANKS[0]}, known).probabilities[0] < 0.4
    corrections.reset()
    assert corrections.weigh({1: RANKS[0]}, known).probabilities[0] == still
