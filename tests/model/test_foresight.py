"""Drafts of samples whose noise is known: what is told of them, and what is made of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from model.logitspec import (
    CalibratedDrafter,
    Drafter,
    DraftTree,
    InputError,
    LlamaKVForCausalLM,
    LogitSpecDrafter,
    RacerDrafter,
    Sampling,
    TokenRecyclingDrafter,
    decode,
    load,
)
from model.logitspec.acceptance import accept
from model.logitspec.cpu.layers import best_tokens, log_probabilities
from model.logitspec.cpu.layers import winners as cpu_winners
from model.logitspec.drafters.calibrated.corrections import Corrections
from model.logitspec.drafters.calibrated.foresight import FORESEEN, foresee
from model.logitspec.listed import list_scored, scored_of
from model.logitspec.sampling import (
    Chooser,
    Foresight,
    gumbel,
    mixed,
    noise_of,
    states_of,
    winners,
)
from model.logitspec.sizing.measuring import known_cost
from model.logitspec.verification import find_verifier

from .test_kernels import IDS
from .test_modeling import prefilled, random_tree

SEEDED = Sampling(1.0, seed=3)
FILTERED = [
    Sampling(1.0),
    Sampling(0.7),
    Sampling(1.3, top_k=5),
    Sampling(0.8, top_p=0.6),
    Sampling(1.0, min_p=0.2),
    Sampling(0.9, top_k=20, top_p=0.9, min_p=0.02),
]


@pytest.mark.parametrize("sampling", FILTERED)
def test_log_probabilities_are_those_after_the_filters(sampling: Sampling) -> None:
    logits = 3 * torch.randn(7, 50)
    foresight = sampling.chooser([1]).foresight
    assert foresight is not None
    ids = torch.zeros(7, 1, dtype=torch.int64)
    expected = sampling.processors()(ids, logits.clone()).log_softmax(dim=-1)
    best = logits.sort(dim=-1, descending=True)
    torch.testing.assert_close(
        foresight.log_probabilities(best.values, logits), expected.gather(1, best.indices)
    )
    few = foresight.log_probabilities(best.values[:, :3], logits)  # the others are not known
    assert few.shape == (7, 3)
    known = few.exp().sum(dim=-1)
    assert ((known > 0) & (known < 1 + 1e-5)).all()


def test_nothing_is_foreseen_where_nothing_is_drawn_or_others_decide() -> None:
    assert Sampling().chooser([1]).foresight is None
    assert Sampling(1.0, repetition_penalty=1.1).chooser([1]).foresight is None
    twice = LogitsProcessorList([logits_process.TemperatureLogitsWarper(2.0)] * 2)
    assert Chooser(twice, 0, [1]).foresight is None
    assert Chooser(twice[:1], None, [1]).foresight is None
    found = Chooser(twice[:1], 5, [1]).foresight
    assert found == Foresight(mixed(5), 2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampling", FILTERED)
def test_native_log_probabilities(sampling: Sampling, dtype: torch.dtype) -> None:
    foresight = sampling.chooser([1]).foresight
    assert foresight is not None
    for vocab, count in ((1, 1), (15, 15), (97, 9), (4096, 100)):
        logits = (4 * torch.randn(5, vocab)).to(dtype)
        best = best_tokens(logits, count)
        expected = foresight.log_probabilities(logits.gather(1, best), logits)
        found = log_probabilities(logits, best, foresight)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_one_tokens_noise_is_that_of_the_row() -> None:
    (state,) = states_of(mixed(9), [77])
    row = gumbel([state], 50, torch.device("cpu"))[0]
    for token in range(50):
        assert noise_of(state, token) == pytest.approx(float(row[token]), abs=1e-12)


def test_the_first_of_the_foreseen_wins_if_the_row_is_the_truth() -> None:
    logs = torch.randn(1, 60).log_softmax(dim=-1).sort(descending=True).values
    for state in states_of(mixed(2), range(40)):
        found = foresee((range(60), logs[0].tolist()), state)
        assert len(found) == FORESEEN
        assert found[0][0] == int(winners(logs, [state]))
        bins = [place for _, place in found]
        assert bins == sorted(bins, reverse=True)


def accept_lengths(
    drafter: Drafter,
    steps: int,
    *,
    constant: bool = False,
    sampling: Sampling = SEEDED,
) -> list[int]:
    """Of samples of a target whose logits depend on the last token alone, or on nothing."""
    generator = torch.Generator().manual_seed(1)
    logits = 1.5 * torch.randn(40, 40, generator=generator)
    if constant:
        logits = logits[:1].expand(40, 40)
    chooser = sampling.chooser([1])
    drafter.foresee(chooser.foresight)
    drafter.reset([1, 2], [[], []] if drafter.prompt_top_k else ())
    verdict = accept(logits[2:3], DraftTree(2, 1), chooser, drafter.top_k)
    chooser.commit([2])
    lengths = []
    for _ in range(steps):
        tree = drafter.draft(verdict.next_root, verdict.top_ids)
        widths = drafter.top_k, drafter.node_top_k
        verdict = accept(
            logits[tree.tokens], tree, chooser, *widths, logprobs=drafter.wants_logprobs
        )
        chooser.commit([tree.tokens[node] for node in verdict.path])
        told = [verdict.node_top_logprobs] if drafter.wants_logprobs else []
        drafter.observe(tree, verdict.path, verdict.node_top_ids, *told)
        lengths.append(len(verdict.path))
    return lengths


@pytest.mark.parametrize("core", ["native", "python"])
def test_samples_are_foreseen_where_rows_are_the_truth(core: str) -> None:
    options: dict[str, Any] = {"draft_tree_capacity": 8, "drafting_core": core, "row_width": 40}
    known = accept_lengths(CalibratedDrafter(**options, sampled_row_width=40), 150)[50:]
    blind = accept_lengths(CalibratedDrafter(**options, blind=True), 150)[50:]
    print(known, blind)
    assert sum(known) / 100 > 4
    assert sum(blind) / 100 < 3


@pytest.mark.parametrize(
    ("make", "constant"),
    [
        (TokenRecyclingDrafter, False),
        (partial(RacerDrafter, 16), False),
        (partial(LogitSpecDrafter, draft_tree_capacity=12, num_pred_tokens=3), True),
    ],
)
def test_other_methods_may_foresee_too(make: Callable[..., Drafter], constant: bool) -> None:
    """Rows that are nearly the truth are worth more with the noise; asked for only, and of samples
    only."""

    def mean(drafter: Drafter) -> float:
        return sum(accept_lengths(drafter, 150, constant=constant)[50:]) / 100

    drafter = make(foresight=True)
    assert mean(drafter) > 1.3 * mean(make())
    assert drafter.wants_logprobs
    drafter.foresee(None)
    assert (drafter.wants_logprobs, drafter.node_top_k) == (False, make().node_top_k)
    usual = make()
    usual.foresee(Foresight(1))
    assert not usual.wants_logprobs


@pytest.mark.parametrize("filters", [{"top_p": 0.5}, {"top_k": 2}])
@pytest.mark.parametrize(
    "make", [TokenRecyclingDrafter, partial(RacerDrafter, 64), LogitSpecDrafter]
)
def test_what_a_filter_leaves_out_is_drafted_behind_the_rest(
    make: Callable[..., Drafter], filters: dict[str, Any]
) -> None:
    """Filters of one place say little of the next: as much is drafted as without foresight."""
    nodes: dict[bool, int] = {}

    for foresight in (False, True):
        drafter = make(foresight=foresight)
        accept_lengths(drafter, 60, sampling=Sampling(1.0, seed=3, **filters))
        tree = drafter.draft(3, [3, *range(4, 40)])
        nodes[foresight] = len(tree)
    assert nodes[True] > 0.9 * nodes[False]


def test_trees_of_logitspec_that_size_themselves_ask_for_the_cost_of_foresight(
    tiny: LlamaKVForCausalLM,
) -> None:
    drafter = LogitSpecDrafter(draft_tree_capacity="auto", foresight=True)
    chooser = Sampling(1.0).chooser([1, 5, 9])
    decode(tiny, [1, 5, 9, 5], drafter, max_new_tokens=4, chooser=chooser)
    assert drafter.node_top_k > 0
    assert known_cost(tiny, drafter.top_k, drafter.node_top_k) is not None


def test_a_mixture_that_is_off_is_corrected() -> None:
    """Tokens that both estimates name come twice as often as the mixture says."""
    evidence = CalibratedDrafter().evidence
    corrections = Corrections(evidence.sources)
    chance = random.Random(2)
    for _ in range(3000):
        for guess, truth in ((0, 0.6), (1, 0.1)):
            found, at = corrections.correct_mixture(0.3, guess)
            corrections.learn_at(at, (chance.random() < truth) - found)
    assert corrections.correct_mixture(0.3, 0)[0] == pytest.approx(0.6, abs=0.08)
    assert corrections.correct_mixture(0.3, 1)[0] == pytest.approx(0.1, abs=0.05)


def test_what_recycling_foresees_with_is_kept() -> None:
    drafter, other = (TokenRecyclingDrafter(foresight=True) for _ in range(2))
    accept_lengths(drafter, 30)
    other.restore(drafter.state())
    assert accept_lengths(other, 30) == accept_lengths(drafter, 30)
    state = drafter.state()
    for logs in (state["logs"][1:], state["logs"].astype(str), state["logs"][None]):
        with pytest.raises(InputError, match="makes no sense"):
            other.restore({**state, "logs": logs})
    other.restore({"rows": state["rows"]})  # as older versions kept it


def test_samples_have_a_state_of_their_own() -> None:
    drafter = CalibratedDrafter(draft_tree_capacity=6, row_width=4)
    assert (drafter.wants_logprobs, drafter.node_top_k) == (False, 4)
    accept_lengths(drafter, 30)
    assert (drafter.wants_logprobs, drafter.node_top_k) == (True, 128)
    learnt, table = drafter.foresight_table, drafter.table
    assert learnt is not None and learnt.seen.sum() > 0 and sum(table.seen) > 0
    drafter.foresee(None)
    assert (drafter.wants_logprobs, drafter.node_top_k) == (False, 4)
    assert drafter.foresight_table is None and sum(drafter.table.seen) == 0
    drafter.foresee(Foresight(1))
    assert drafter.foresight_table is learnt and drafter.table is table
    drafter.forget()
    assert learnt.seen.sum() == 0 and sum(table.seen) == 0


def begun_with_rows(core: str, count: int, **options: Any) -> CalibratedDrafter:
    """A drafter that begins with a row of samples of each of some tokens."""
    rows = {token: ([(token + 1) % 40, 7, 9], [-0.5, -1.5, -3.0]) for token in range(count)}
    scored, logs = list_scored(rows)
    drafter = CalibratedDrafter(8, drafting_core=core, **options)
    drafter.warm({"sampled.scored": scored, "sampled.logs": logs})
    return drafter


@pytest.mark.parametrize("core", ["native", "python"])
def test_rows_of_a_large_vocabulary_outlive_prompts(core: str) -> None:
    drafter = begun_with_rows(core, 70_000)
    accept_lengths(drafter, 5)
    accept_lengths(drafter, 5)
    state = drafter.state()
    kept = scored_of(state["sampled.scored"], state["sampled.logs"])
    assert {*range(70_000)} <= {*kept} and kept[60_000][0] == [60_001 % 40, 7, 9]


@pytest.mark.parametrize("options", [{}, {"reset_rows": True}])
def test_both_cores_draft_alike_from_rows_that_they_began_with(options: dict[str, bool]) -> None:
    some, others = (
        [accept_lengths(begun_with_rows(core, 40, **options), 40) for _ in range(2)]
        for core in ("native", "python")
    )
    cold = accept_lengths(CalibratedDrafter(8, **options), 40)
    assert some == others and some[0] != cold


@pytest.mark.parametrize("core", ["native", "python"])
def test_rows_that_a_drafter_begins_with_are_no_wider_than_its_own(core: str) -> None:
    drafter = begun_with_rows(core, 40, row_width=2, sampled_row_width=2)
    state = drafter.state()
    drafter.restore({"sampled.scored": np.empty(0, np.int64)})  # a state may hold no rows
    kept = scored_of(state["sampled.scored"], state["sampled.logs"])
    assert kept == {token: ([(token + 1) % 40, 7], [-0.5, -1.5]) for token in range(40)}


def test_a_drafter_may_be_blind() -> None:
    drafter = CalibratedDrafter(blind=True)
    drafter.foresee(Foresight(1))
    assert (drafter.wants_logprobs, drafter.node_top_k) == (False, 8)
    assert CalibratedDrafter("auto", sampled_row_width=3)._widths == (8, 8)
    with pytest.raises(InputError, match="sampled_row_width is -1; give 0 or more"):
        CalibratedDrafter(sampled_row_width=-1)


@pytest.mark.parametrize("vocab", [1, 63, 97, 640, 49152])
def test_the_winners(vocab: int) -> None:
    states = states_of(mixed(vocab), range(60))
    spread = torch.randn(60, vocab)
    some = torch.where(torch.rand(60, vocab) < 0.01, spread, -torch.inf)
    few = torch.full_like(spread, -torch.inf)
    few[:, vocab // 2] = 1.0
    for scores in (spread, 8 * spread - 100, torch.zeros_like(spread), some, few):
        assert torch.equal(cpu_winners(scores, states), winners(scores, states))
    rare = 30 * torch.ones(60, vocab)  # only noise of one in e^30 would beat the first
    rare[:, 1:] = 0.0
    assert torch.equal(cpu_winners(rare, states), winners(rare, states))


def test_the_native_verifier_tells_what_the_others_tell(wide_path: str) -> None:
    tree = random_tree(random.Random(4), 97, 9)
    told = []
    for kernels in ("native", "plain"):
        model = load(wide_path, dtype=torch.float32, cpu_kernels=kernels)
        cache, _ = prefilled(model, IDS)
        chooser = Sampling(0.8, top_k=6, seed=1).chooser(IDS)
        verifier = find_verifier(model, cache, 4, 8, chooser)
        verifier.build(tree)
        verifier.wants_logprobs = True
        verifier.forward()
        told.append(verifier.accept())
        verifier.wants_logprobs = False
        verifier.forward()
        assert verifier.accept().node_top_logprobs == []
    assert told[0].node_top_ids == told[1].node_top_ids
    for one, other in zip(told[0].node_top_logprobs, told[1].node_top_logprobs, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
        assert one[6:] == [-math.inf] * 2
        assert sum(map(math.exp, one)) == pytest.approx(1)
