"""How many drafts a batch gets in vLLM, and steps in which all requests have as many."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from model.logitspec.vllm.budget import BatchBudget
from model.logitspec.vllm.following import Followed
from model.logitspec.vllm.proposers import most_even_tokens

from .fake_vllm import LONGEST, answer, graph_mode
from .test_vllm import PROPOSERS, engine, prompt


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


def even_budget(requests: int) -> BatchBudget:
    """One that knows nothing, of steps that may be even with 8 drafts for up to 4 requests."""
    found = BatchBudget(requests * 9)
    found.even, found.most_even = 8, 36
    return found


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
        budget = even_budget(4)
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
        budget = even_budget(4)
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
        budget = even_budget(8)
        assert budget.choose([[0.9, 0.5]] * 5, 5, 200, even=True) == [2] * 5
        assert budget.choose([[0.9, 0.5]] * 4, 4, 200, even=False) == [2] * 4
        assert budget.choose([[0.9, 0.5]] * 4, 4, 200, even=True) == [8] * 4

    def test_more_requests_than_it_knows_of_get_no_drafts(self) -> None:
        small = self.budget(lambda _: 0.01, requests=1)
        assert small.choose([[0.9]] * 12, 12, 200) == [0] * 12
