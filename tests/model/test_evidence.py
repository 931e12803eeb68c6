"""The evidence of the method calibrated, graded, and what the table makes of it."""

from __future__ import annotations

import json

import pytest

from model.logitspec import (
    CalibratedDrafter,
)
from model.logitspec.drafters.calibrated.evidence import (
    AnswerEvidence,
    Evidence,
    LastEvidence,
    NgramEvidence,
    RowEvidence,
)
from model.logitspec.drafters.calibrated.prior import PRIOR, SAMPLED_PRIOR, prior_of
from model.logitspec.drafters.calibrated.source import Source
from model.logitspec.sizing.acceptance_table import AcceptanceTable


def graded(source: Source, look: tuple[int, dict[int, int]]) -> dict[int | None, str]:
    """The grades by token; None: those of the tokens that the source does not name."""
    unnamed, named = look
    return {None: source.grade(unnamed), **{t: source.grade(its) for t, its in named.items()}}


def test_ngrams_tell_the_longest_match_and_the_share() -> None:
    ngrams = NgramEvidence(3)
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
    ngrams = NgramEvidence(2)
    ngrams.extend([1, 2, 9, 1, 2])
    assert graded(ngrams, ngrams.look((1,)))[2] == "all of what followed 1"


def test_rows_prefer_two_tokens_to_one_to_earlier_prompts() -> None:
    rows = RowEvidence(2, keep=True)
    rows.learn(7, 3, [50, 51])
    rows.begin(())
    rows.learn(0, 1, [60, 61])
    rows.learn(9, 1, [70, 71])
    assert graded(rows, rows.look((0, 1)))[60] == "rank 0 in the row of two tokens"
    assert graded(rows, rows.look((5, 1)))[71] == "rank 1 in the row of one token"
    assert graded(rows, rows.look((7, 3)))[50] == "rank 0 in the row of an earlier prompt"
    assert rows.look((7, 4)) == (0, {})
    rows.forget()
    assert rows.look((7, 3)) == (0, {})


def test_rows_of_a_prompt_end_with_it_unless_kept() -> None:
    rows = RowEvidence(2, keep=False)
    rows.learn(7, 3, [50, 51])
    rows.begin(())
    assert rows.look((7, 3)) == (0, {})


def test_the_last_logits_leave_the_root_out_and_keep_its_rank() -> None:
    last = LastEvidence(6)
    found = graded(last, last.below_root(8, [8, 4, 5, 6, 7, 9]))
    assert found == {
        None: "none of the ranks",
        4: "rank 1 or more", 5: "rank 2 or more", 6: "rank 3 or more", 7: "rank 3 or more",
        9: "rank 5 or more",
    }  # fmt: skip


def test_wider_sources_take_the_nearest_fitted_grade() -> None:
    assert NgramEvidence(7).fitted[-1] == NgramEvidence(5).grades[-1]
    assert len(NgramEvidence(400).grades) == len(NgramEvidence(8).grades)
    assert len(RowEvidence(400, keep=True).grades) == len(RowEvidence(16, keep=True).grades)
    wide = RowEvidence(12, keep=True)
    assert wide.grades[12] == "rank 11 in the row of two tokens"
    assert wide.fitted[12] == "rank 7 in the row of two tokens"
    files = [json.loads(path.read_text()) for path in (PRIOR, SAMPLED_PRIOR)]
    for source in CalibratedDrafter(max_ngram_size=9, row_width=20, last_width=60).sources:
        for own, grade in zip(source.grades, source.fitted, strict=True):
            for fitted in files:
                assert (grade in fitted[source.name]) is not own.startswith("no")


def test_the_prior_is_by_grade_and_the_table_learns_shares() -> None:
    evidence = Evidence(5, 8, 24, keep_rows=True, keep_ngrams=True)
    fitted = json.loads(PRIOR.read_text())
    prior = prior_of(fitted, evidence.sources)
    assert len(prior) == sum(len(source.grades) for source in evidence.sources)
    place = evidence.rows.first + 3
    assert evidence.rows.grade(place) == "rank 2 in the row of two tokens"
    assert prior[place] == fitted["rows"]["rank 2 in the row of two tokens"]
    nothing = evidence.earlier.first + 7
    assert evidence.earlier.grade(nothing) == "nothing of what followed 2"
    assert not evidence.earlier.names(nothing) and prior[nothing] == 0
    prior = [0.5, 0.25, 0.1]
    table = AcceptanceTable(prior, strength=2)
    table.learn(0, True)
    table.learn(0, True)
    table.learn(0, False)
    assert table.probability[0] == pytest.approx((2 + 2 * 0.5) / (3 + 2))
    assert table.probability[1:] == table.prior[1:]
    table.reset()
    assert table.probability == table.prior


def test_answers_are_looked_into_from_the_next_prompt_on() -> None:
    for keep in (True, False):
        earlier = AnswerEvidence(3, keep=keep)
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
