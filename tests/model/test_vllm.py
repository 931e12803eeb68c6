"""The proposers for vLLM, with the arrays that vLLM passes; vLLM itself is not needed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import proposing
from model.logitspec.drafters.calibrated.chains import Chains
from model.logitspec.errors import InputError
from model.logitspec.vllm import CalibratedProposer, LogitSpecProposer, logits

from .fake_vllm import VOCABULARY, Engine, Runner, answer, config

PROPOSERS = (CalibratedProposer, LogitSpecProposer)


def not_needed() -> None:
    """What a proposer is given for logits.watch: the hook is put on the fake runner."""


def shown() -> type[Runner]:
    """A class of runners that show their logits."""

    class Shown(Runner):
        def _sample(self, logits: Any, spec_decode_metadata: Any) -> Any:
            return super()._sample(logits, spec_decode_metadata)

    assert logits.wrap(Shown) is None
    return Shown


def engine(kind: type = CalibratedProposer, *, shows: bool = True, **options: Any) -> Engine:
    proposer = kind(config(**options), rank=0, watch=not_needed)
    proposer.budget.note = lambda *_, **__: None  # costs are not known, so all drafts are verified
    return Engine(proposer, (shown() if shows else Runner)(proposer))


def prompt(seed: int, length: int = 24) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(VOCABULARY) for _ in range(length)]


@pytest.mark.parametrize("kind", PROPOSERS)
@pytest.mark.parametrize("shows", [True, False])
def test_requests_that_come_and_go_get_their_own_answers_in_fewer_steps(
    kind: type, shows: bool
) -> None:
    run = engine(kind, shows=shows)
    chance = random.Random(0)
    requests, lengths = [], []
    for at in range(40):
        lengths.append(chance.randrange(20, 120))
        requests.append(run.add(f"r{at}", prompt(at % 30, chance.randrange(2, 50)), lengths[-1]))
        for _ in range(chance.randrange(12)):
            run.step()
        if chance.random() < 0.2 and run.rows:
            run.preempt(chance.choice(run.rows))
        if chance.random() < 0.3:
            run.resume()
    run.resume()
    run.run()
    for request, length in zip(requests, lengths, strict=True):
        assert request.answer == answer(request.prompt, length)
    assert run.accepted > 0.2 * sum(lengths)


def test_drafts_are_those_of_the_request_wherever_its_row_is() -> None:
    """The paper's drafts depend on the request alone, so they are the same among others."""
    alone, among = engine(LogitSpecProposer), engine(LogitSpecProposer)
    alone.add("a", prompt(1), 60)
    for at in range(5):  # these end, so "a" moves to another row
        among.add(f"short{at}", [1, 2, 3], 2 + at)
    among.add("a", prompt(1), 60)
    for run in (alone, among):
        run.run()
    drafts = [[step["a"] for step in run.proposed if "a" in step] for run in (alone, among)]
    assert drafts[0] == drafts[1]
    assert sum(map(len, drafts[0])) > 50


def test_padding_of_vllms_own_is_not_taken_for_drafts() -> None:
    run = engine()
    request = run.add("a", prompt(7), 100)
    learnt: list[tuple[int, int]] = []
    run.proposer.budget.learn = lambda hoped, right, verified: learnt.append((right, verified))
    for _ in range(60):
        run.step()
    assert sum(verified for _, verified in learnt) == run.verified > 20
    request.length = 150
    count, before = len(learnt), run.verified
    for _ in range(4):
        if request.drafts:
            request.drafts = [-1] * len(request.drafts)
        run.step()
    assert run.verified > before
    assert len(learnt) == count
    run.run()
    assert request.answer == answer(prompt(7), 150)


def test_tokens_that_a_grammar_forbids_are_not_shown() -> None:
    runner = Runner(None)
    runner.input_batch.req_ids = ["a", "b"]
    values = torch.full((2, VOCABULARY), -torch.inf)
    values[0, [3, 5]] = torch.tensor([1.0, 2.0])
    values[1] = torch.arange(VOCABULARY).flip(0)
    shown = logits.look(runner, values, None, 4)
    assert shown is not None and shown.best is not None
    assert shown.best.tolist() == [[5, 3, -1, -1], [0, 1, 2, 3]]


@pytest.mark.parametrize("core", ["python", "native"])
def test_rows_of_a_step_may_be_of_several_lengths(core: str) -> None:
    chains = Chains(4, drafting_core=core)
    chain = chains.begin([1, 2, 3, 4, 1, 2, 3, 4, 1])
    assert chain.draft(2, [2, 9])[0][:2] == [3, 4]
    chain.observe(2, 2, [[3, 9], [4, 7, 8, 5, 6, 10, 11, 12, 13], []])
    assert chain.core.kept()["rows"].tolist() == [2, 2, 3, 9, 3, 8, 4, 7, 8, 5, 6, 10, 11, 12]


def test_ranks_with_schedulers_of_their_own_are_refused() -> None:
    made = config()
    made.parallel_config.distributed_executor_backend = "external_launcher"
    CalibratedProposer(made, rank=0, watch=not_needed)
    made.parallel_config.world_size = 2
    with pytest.raises(InputError, match="every rank schedules by itself"):
        CalibratedProposer(made, rank=0, watch=not_needed)


def test_while_it_rests_nothing_is_looked_for_and_no_token_is_lost() -> None:
    run = engine()
    request = run.add("a", prompt(7), 60)
    seen: list[Any] = []
    propose = run.proposer.propose

    def watched(*some: Any, **more: Any) -> Any:
        seen.append(run.proposer.seen)
        return propose(*some, **more)

    run.proposer.propose = watched
    for _ in range(5):
        run.step()
    run.proposer.budget.rest = 4
    for _ in range(4):
        run.step()
    assert [step.best is None for step in seen] == [False] * 5 + [True] * 4
    assert [step["a"] for step in run.proposed[5:]] == [[]] * 4
    run.run()
    assert any(step["a"] for step in run.proposed[9:])
    assert request.answer == answer(prompt(7), 60)


def test_both_cores_draft_alike_for_many_requests() -> None:
    runs = []
    for core in ("python", "native"):
        run = engine()
        proposer = run.proposer
        proposer.chains = type(proposer.chains)(proposer.most_drafts, drafting_core=core)
        chance = random.Random(3)
        for at in range(24):
            run.add(f"r{at}", prompt(at % 8, chance.randrange(2, 40)), chance.randrange(10, 40))
            for _ in range(chance.randrange(9)):
                run.step()
        run.run()
        runs.append(run)
    python, native = runs
    assert python.proposed == native.proposed
    assert sum(len(own) for step in native.proposed for own in step.values()) > 500
    tables = [run.proposer.chains.table for run in runs]
    assert [*tables[0].seen] == [*tables[1].seen]
    np.testing.assert_allclose(tables[0].probability, tables[1].probability, rtol=1e-12)


def test_answers_that_ended_help_others() -> None:
    run = engine()
    run.add("first", prompt(5), 25)
    run.run()
    cold = run.steps
    run.add("second", prompt(5), 25)
    run.run()
    assert run.steps - cold < 0.6 * cold
    # by what it said: one further step is for the next proposer call to see that it ended
    assert len(run.proposer.requests) <= 1


@pytest.mark.parametrize("shows", [True, False])
def test_steps_without_a_call_are_made_up_for(shows: bool) -> None:
    run = engine(shows=shows)
    request = run.add("a", prompt(7), 100)
    for at in range(200):
        if not run.rows:
            break
        run.step(propose=at % 5 != 3)
    assert request.answer == answer(prompt(7), 100)
    followed = run.proposer.requests
    assert len(followed) <= (1 if shows else 100)


def test_drafts_that_the_scheduler_cuts_are_learnt_from_as_far_as_they_were_verified() -> None:
    run = engine()
    run.keep_drafts = 1
    request = run.add("a", prompt(7), 100)
    skipped = []
    begin = run.proposer.chains.begin

    def watched(ids: Any) -> Any:
        chain = begin(ids)
        skip = chain.skip
        chain.skip = lambda tokens: (skipped.append(tokens), skip(tokens))
        return chain

    run.proposer.chains.begin = watched
    run.run()
    assert request.answer == answer(prompt(7), 100)
    assert not skipped  # every step was one of its own drafts


def test_a_request_whose_tokens_were_taken_back_begins_anew() -> None:
    run = engine()
    request = run.add("a", prompt(7), 60)
    for _ in range(6):
        run.step()
    assert 0 < len(request.answer) < 60
    request.tokens = [*request.prompt]
    request.computed, request.drafts = 0, []
    run.run()
    assert request.answer == answer(prompt(7), 60)


def test_other_ranks_propose_nothing_and_need_no_logits() -> None:
    proposer = CalibratedProposer(config(), rank=1, watch=lambda: pytest.fail("it looked"))
    run = Engine(proposer)
    request = run.add("a", prompt(7), 30)
    run.run()
    assert request.answer == answer(prompt(7), 30)
    assert run.verified == 0


def test_drafts_end_before_the_longest_sequence() -> None:
    run = engine(longest=40)
    run.add("a", [3, 4, 5] * 10, 10)
    while run.rows:
        run.step()
        for request in run.rows:
            assert len(request.tokens) + len(request.drafts) <= 40


def test_without_logits_it_says_so_once_and_drafts_from_ngrams(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Engine(CalibratedProposer(config(), rank=0, watch=lambda: "it is not there"))
    run.proposer.budget.note = lambda *_, **__: None
    request = run.add("a", prompt(7), 80)
    run.run()
    assert request.answer == answer(prompt(7), 80)
    assert run.accepted > 10
    assert [record.getMessage() for record in caplog.records] == [
        "logitspec drafts from n-grams alone, because vLLM does not show the logits: "
        "it is not there"
    ]


def test_a_runner_of_another_version_is_not_wrapped() -> None:
    class Other:
        def _sample(self, logits: Any) -> None: ...

    before = Other._sample
    assert "does not take" in (logits.wrap(Other) or "")
    assert Other._sample is before


def test_a_runner_is_wrapped_once_and_shows_the_best_tokens_of_every_position() -> None:
    kind = shown()
    once = kind._sample
    assert logits.wrap(kind) is None and kind._sample is once
    run = engine()
    noted: list[int] = []
    seen: list[Any] = []
    run.proposer.budget.note = lambda tokens, *_, **__: noted.append(tokens)
    propose = run.proposer.propose
    run.proposer.propose = lambda *some, **more: (
        seen.append(run.proposer.seen),
        propose(*some, **more),
    )[1]
    run.add("a", prompt(7), 30)
    run.add("b", prompt(8), 30)
    run.run()
    assert any(sum(step.drafts) for step in seen)
    for step in seen:
        assert step.best.shape == (sum(step.drafts) + len(step.requests), 24)
    # prompts of 24 tokens are read in pieces of 16; then no step reads anything
    assert [step.tokens for step in seen[:2]] == [32, 16]
    assert [step.tokens for step in seen[2:]] == noted  # only these tell what a step costs


def test_where_all_steps_read_prompts_they_tell_what_a_step_costs() -> None:
    run = engine(requests=24)
    noted: list[int] = []
    run.proposer.budget.note = lambda tokens, *_, **__: noted.append(tokens)
    run.add("a", prompt(7), 120)
    for at in range(30):  # a new prompt in every step
        run.add(f"r{at}", prompt(at), 1)
        run.step()
    assert min(noted) > 16  # a piece of a prompt beside the request
    assert 5 < len(noted) < 16
    assert run.proposer.seen is None  # nothing is kept


def test_finding_the_best_tokens_counts_as_drafting() -> None:
    run = engine()
    run.add("a", prompt(7), 20)
    noted: list[float] = []
    note, propose = run.proposer.budget.note, run.proposer.propose

    def watched(*some: Any, **more: Any) -> None:
        noted.append(some[3])
        note(*some, **more)

    def slow(*some: Any, **more: Any) -> Any:
        assert run.proposer.seen is not None
        run.proposer.seen = run.proposer.seen._replace(seconds=100.0)
        return propose(*some, **more)

    run.proposer.budget.note, run.proposer.propose = watched, slow
    for _ in range(5):
        run.step()
    assert noted and all(100 < seconds < 101 for seconds in noted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_best_tokens_of_rows_with_equals_or_without_any(dtype: torch.dtype) -> None:
    scores = torch.full((3, 8000), -1.0, dtype=dtype)
    scores[0] = -torch.inf
    scores[1, 5000:5010] = 2.0
    none, best, equal = logits.best_tokens(scores, 12).tolist()
    assert none == [-1] * 12
    assert {*best[:10]} == {*range(5000, 5010)}
    assert len({*equal}) == 12 and min(equal) >= 0


@pytest.mark.parametrize("vocabulary", [3, 24, 3072, 49152, 50257])
def test_best_tokens_are_those_of_topk(vocabulary: int) -> None:
    made = torch.Generator().manual_seed(vocabulary)
    scores = torch.rand(5, vocabulary, generator=made, dtype=torch.float64) - 2
    few = min(vocabulary, 3)
    scores[0, few:] = -torch.inf
    scores[1, :-few] = -torch.inf
    values, best = scores.topk(min(24, vocabulary))
    found = logits.best_tokens(scores, 24)
    assert found[2:].tolist() == best[2:].tolist()
    assert found[:2].tolist() == torch.where(values > -torch.inf, best, -1)[:2].tolist()


@pytest.mark.parametrize("what", ["drafts", "rows", "nothing", "ids"])
def test_what_does_not_fit_is_not_taken_for_logits(what: str) -> None:
    runner = Runner(None)
    runner.input_batch.req_ids = ["a", "b"]
    counts = {"drafts": [1], "rows": [1, 1], "nothing": [0, 0], "ids": [1, 0]}[what]
    rows = {"drafts": 3, "rows": 3, "nothing": 2, "ids": 3}[what]
    values = None if what == "nothing" else torch.zeros(rows, 9)
    metadata = SimpleNamespace(num_draft_tokens=counts, draft_token_ids=torch.zeros(sum(counts)))
    if what == "ids":
        del metadata.draft_token_ids
    assert logits.look(runner, values, metadata, 4) is None


def test_proposing_for_32_requests_of_2000_tokens_is_cheap(tmp_path: Path) -> None:
    file = tmp_path / "proposing.json"
    flags = ["--requests", "32", "--steps", "20", "--json", str(file)]
    assert proposing.main(flags) == 0
    for row in json.loads(file.read_text())["proposing"]:
        assert row["drafts"] > 16
        # 0.2 ms a request and step are wanted, of a quiet machine; tests share theirs
        assert row["median"] < 1.0
