"""The proposers for vLLM, with the arrays that vLLM passes; vLLM itself is not needed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import proposing
from evaluation.asking.target import load_tokenizer
from model.logitspec import CalibratedDrafter
from model.logitspec.drafters.calibrated.chains import Chains
from model.logitspec.errors import InputError
from model.logitspec.states import tokenizer_fingerprint, write_state
from model.logitspec.vllm import CalibratedProposer, LogitSpecProposer, logits, proposers
from model.logitspec.vllm.budget import BatchBudget
from model.logitspec.vllm.following import Followed
from model.logitspec.vllm.proposers import most_even_tokens

from .fake_vllm import LONGEST, VOCABULARY, Engine, Runner, answer, config, graph_mode

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


@pytest.mark.parametrize("core", ["python", "native"])
def test_a_state_is_known_to_all_requests(core: str) -> None:
    """What an earlier answer said is drafted, and what its rows say."""
    text = answer(prompt(3), 80)
    learnt = CalibratedDrafter(drafting_core=core)
    learnt.warm({"answers": np.array([*prompt(3), *text, -1])})
    row = [99, 98, 97, 96, 95, 94, 93, 92]
    state = {**learnt.state(), "greedy.rows": np.array([60, len(row), *row])}
    chains = Chains(6, drafting_core=core)
    chains.begin_with(state)
    for chain in (chains.begin(prompt(1)), chains.begin(prompt(2))):
        chain.skip(text[20:25])
        assert chain.draft(text[25], ())[0][:3] == text[26:29]
        chain.skip([text[25]])
        assert chain.draft(60, ())[0][:1] == [99]
    unlike = CalibratedDrafter(row_width=5, drafting_core=core)
    with pytest.raises(InputError, match="of a drafter with other options"):
        chains.begin_with(unlike.state())


def test_the_calibrated_proposer_begins_with_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = CalibratedDrafter()
    learnt.warm({"answers": np.array([*prompt(7), *answer(prompt(7), 100), -1])})
    file = tmp_path / "state.npz"
    monkeypatch.setenv("LOGITSPEC_EVIDENCE", str(file))
    monkeypatch.setattr(proposers, "fingerprint_of", lambda _: "mine")
    with pytest.raises(InputError, match=r"No such file.*give another file as LOGITSPEC_EVIDENCE"):
        engine()
    steps = []
    for tokenizer in ("yours", "mine"):
        with file.open("wb") as out:
            write_state(out, "calibrated", learnt.state(), tokenizer)
        if tokenizer == "yours":
            with pytest.raises(InputError, match="another tokenizer"):
                engine()
    for name in (str(file), ""):
        monkeypatch.setenv("LOGITSPEC_EVIDENCE", name)
        run = engine()
        request = run.add("a", prompt(7), 100)
        run.run()
        assert request.answer == answer(prompt(7), 100)
        steps.append(run.steps)
    assert steps[0] < 0.6 * steps[1]
    LogitSpecProposer(config(), rank=0, watch=not_needed)  # which has no such evidence


def test_the_tokenizer_that_a_state_is_compared_with(chat_path: str) -> None:
    model = SimpleNamespace(tokenizer=chat_path, tokenizer_revision=None, trust_remote_code=False)
    expected = tokenizer_fingerprint(load_tokenizer(chat_path))
    assert proposers.fingerprint_of(SimpleNamespace(model_config=model)) == expected
    model.skip_tokenizer_init = True
    assert proposers.fingerprint_of(SimpleNamespace(model_config=model)) is None


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


@pytest.mark.parametrize("kind", PROPOSERS)
def test_where_vllm_replays_even_steps_all_requests_have_as_many_drafts(kind: type) -> None:
    noted: list[tuple[int, bool]] = []
    accepted = []
    for graphs in (False, True):
        run = engine(kind, graphs=graphs)
        noted.clear()
        run.proposer.budget.note = lambda tokens, *_, even: noted.append((tokens, even))
        asked = [run.add(f"r{at}", prompt(at), 60) for at in range(4)]
        asked.append(run.add("nearly too long", prompt(9, LONGEST - 40), 30))
        run.run()
        for request in asked:
            assert request.answer == answer(request.prompt, request.length)
        assert graphs or not any(even for _, even in noted)
        accepted.append(run.accepted)
    assert accepted[0] == accepted[1] > 10
    counts = [[len(drafts) for drafts in step.values()] for step in run.proposed]
    near_end = [max(own, default=0) for own in counts if len({*own}) > 1]
    even = [own for own in counts if {*own} == {6}]
    assert len(even) > 10 and near_end
    assert {even for _, even in noted} == {True, False}
    assert all(tokens % 7 == 0 for tokens, even in noted if even)
    # a step in which a prompt is read is none
    late = engine(kind, graphs=True)
    late.add("a", prompt(1), 60)
    late.add("b", prompt(2, 60), 20)
    late.step(), late.step()
    assert len(late.rows[1].drafts) == 0 and {6} != {len(r.drafts) for r in late.rows[:1]}


def test_repeated_drafts_that_are_right_are_taken_in() -> None:
    told: list[Any] = []
    drafts = SimpleNamespace(
        draft=lambda root, top_ids: ([4, 5], [0.9, 0.8]),
        observe=lambda *what: told.append(what),
        skip=lambda tokens: told.append([*tokens]),
    )
    request = Followed(drafts, 3, 9)
    request.draft(6)
    assert request.offer(5) == [4, 5, 5, 5, 5] and request.paths == [0.9, 0.8]
    best = [[1], [2], [3], [4], [5], [6]]
    request.advance([4, 5, 5, 5, 7], [], [4, 5, 5, 5, 5], best)
    assert told == [(2, 2, [[1], [2], [3]]), [5, 5]]
    assert (request.verified, request.accepted, request.looked_at) == (2, 2, 5)
    assert (request.count, request.root) == (8, 7)
    told.clear()
    request.draft(6)
    request.offer(5)
    request.advance([4, 8], [], [4, 5, 5], best[:4])
    assert told == [(2, 1, [[1], [2], [3]])]
    none = Followed(SimpleNamespace(**{**vars(drafts), "draft": lambda *_: ([], [])}), 3, 9)
    none.draft(6)
    assert none.offer(2) == [9, 9]
    told.clear()
    none.advance([9, 1], [], [9, 9], best[:3])
    assert told == [(0, 0, [[1]]), [9]]


def test_which_of_vllms_modes_replay_even_steps() -> None:
    modes = {"NONE": None, "PIECEWISE": None, "FULL": None}
    modes |= {"FULL_DECODE_ONLY": "FULL", "FULL_AND_PIECEWISE": "FULL"}
    for name, decode in modes.items():
        compiling = SimpleNamespace(
            cudagraph_mode=graph_mode(name, decode), max_cudagraph_capture_size=96
        )
        assert most_even_tokens(compiling) == (96 if decode else 0)
    compiling.max_cudagraph_capture_size = None
    assert most_even_tokens(compiling) == 0
    assert most_even_tokens(None) == most_even_tokens(SimpleNamespace(cudagraph_mode=None)) == 0


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


class TestBudget:
    def budget(self, seconds: Callable[[int], float], requests: int = 32) -> BatchBudget:
        """One that has learnt such costs."""
        found = BatchBudget(requests * 9)
        chance = random.Random(0)
        for _ in range(600):
            tokens = chance.randrange(1, requests * 9 + 1)
            found.note(tokens, 200, seconds(tokens), 1e-5)
        return found

    def test_what_costs_nothing_is_all_drafted(self) -> None:
        flat = self.budget(lambda _: 0.01)
        assert flat.choose([[0.9, 0.5, 0.1], [0.3]], 2, 200) == [3, 1]

    def test_where_the_machine_is_full_only_sure_drafts_are_taken(self) -> None:
        full = self.budget(lambda n: 0.002 * n)
        assert full.choose([[0.9, 0.5, 0.1]] * 4, 4, 200) == [0] * 4
        half = self.budget(lambda n: 0.03 + 0.002 * n)
        counts = half.choose([[0.95, 0.9, 0.1], [0.2], []], 3, 200)
        assert counts == [2, 0, 0]

    def test_the_most_probable_drafts_of_all_requests_come_first(self) -> None:
        some = self.budget(lambda n: 0.01 if n <= 6 else 0.01 + 0.002 * (n - 6))
        assert some.choose([[0.5, 0.4], [0.9, 0.8, 0.7], []], 3, 200) == [0, 3, 0]

    def test_equal_drafts_are_not_cut_short(self) -> None:
        flat = self.budget(lambda _: 0.01)
        assert flat.choose([[0.5, 0.5], [0.5]], 2, 200) == [2, 1]

    def test_drafts_that_are_never_right_are_given_up(self) -> None:
        some = self.budget(lambda n: 0.03 + 0.001 * n)
        paths = [[0.6, 0.5]] * 8
        assert sum(some.choose(paths, 8, 200)) == 16
        for _ in range(100):
            some.learn(8.8, 0, 16)
        assert sum(some.choose(paths, 8, 200)) == 0

    def test_it_rests_only_where_drafting_takes_time(self) -> None:
        for drafting, rests in ((1e-6, False), (2e-3, True)):
            full = self.budget(lambda n: 0.002 * n)
            found = []
            for _ in range(40):
                found.append(full.resting())
                if not found[-1]:
                    full.choose([[0.5]] * 4, 4, 200)
                full.note(4, 200, 0.008, drafting)
            assert any(found) == rests
            assert not rests or 0 < found[20:].count(False) < 4

    def test_steps_that_only_read_prompts_say_nothing_of_drafts(self) -> None:
        full = self.budget(lambda n: 0.002 * n)
        for _ in range(40):
            full.note(4, 200, 0.008, 2e-3)
            assert not full.resting()
            full.choose([], 0, 200)

    @pytest.mark.parametrize("graphs_gain", [True, False])
    def test_even_steps_are_taken_where_they_give_more(self, graphs_gain: bool) -> None:
        """And the other kind is tried now and then, ever more rarely."""
        budget = BatchBudget(4 * 9)
        budget.even, budget.most_even = 8, 36
        chosen = []
        for _ in range(1200):
            counts = budget.choose([[0.9, 0.5, 0.1], [0.3], [], []], 4, 200, even=True)
            chosen.append(counts == [8] * 4)
            tokens = 4 + sum(counts)
            seconds = (0.003 if graphs_gain else 0.012) if chosen[-1] else 0.006 + 1e-4 * tokens
            budget.came(chosen[-1])
            budget.note(tokens, 200, seconds, 1e-5, even=chosen[-1])
        assert chosen[0]  # nothing was known
        wanted = [even == graphs_gain for even in chosen]
        assert sum(wanted) > 1100
        changes = [at for at in range(1, 1200) if wanted[at - 1] and not wanted[at]]
        waits = [later - earlier for earlier, later in pairwise(changes)]
        assert len(waits) >= 3 and waits == sorted(waits)

    @pytest.mark.parametrize("known", [True, False])
    def test_even_steps_that_do_not_come_about_are_given_up(self, known: bool) -> None:
        """As where prompts are read in most steps, or a grammar ends drafts."""
        budget = BatchBudget(4 * 9)
        budget.even, budget.most_even = 8, 36
        chosen = []
        for step in range(600):
            counts = budget.choose([[0.9, 0.5, 0.1], [0.3], [], []], 4, 200, even=True)
            chosen.append(counts == [8] * 4)
            came = chosen[-1] and known and step < 100
            budget.came(came)
            budget.note(4 + sum(counts), 200, 0.003 if came else 0.006 + 1e-4 * 36, 0.0, even=came)
            budget.note(4, 200, 0.006, 0.0)
        assert sum(chosen[:100]) > (80 if known else 4)
        assert sum(chosen[300:]) < 40

    def test_a_batch_too_large_for_even_steps_has_others(self) -> None:
        budget = BatchBudget(8 * 9)
        budget.even, budget.most_even = 8, 36
        assert budget.choose([[0.9, 0.5]] * 5, 5, 200, even=True) == [2] * 5
        assert budget.choose([[0.9, 0.5]] * 4, 4, 200, even=False) == [2] * 4
        assert budget.choose([[0.9, 0.5]] * 4, 4, 200, even=True) == [8] * 4

    def test_more_requests_than_it_knows_of_get_no_drafts(self) -> None:
        small = self.budget(lambda _: 0.01, requests=1)
        assert small.choose([[0.9]] * 12, 12, 200) == [0] * 12


def test_proposing_for_32_requests_of_2000_tokens_is_cheap(tmp_path: Path) -> None:
    file = tmp_path / "proposing.json"
    flags = ["--requests", "32", "--steps", "20", "--json", str(file)]
    assert proposing.main(flags) == 0
    for row in json.loads(file.read_text())["proposing"]:
        assert row["drafts"] > 16
        # 0.2 ms a request and step are wanted, of a quiet machine; tests share theirs
        assert row["median"] < 1.0
