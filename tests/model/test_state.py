"""What a calibrated drafter learnt, saved and gone on from."""

from __future__ import annotations

import random
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.memory import status
from model.logitspec import (
    DRAFTERS,
    CalibratedDrafter,
    Drafter,
    DraftTree,
    InputError,
    LlamaKVForCausalLM,
    generate,
)
from model.logitspec.drafters.calibrated import evidence
from model.logitspec.drafters.calibrated.state import LAYOUT
from model.logitspec.sampling import Foresight

from ..conftest import PACKAGES
from .test_calibrated import fresh, random_log_probabilities

CORES = ("native", "python")


def teach(
    drafters: list[CalibratedDrafter], chance: random.Random, *, sampled: bool, steps: int = 10
) -> list[DraftTree]:
    """Draft and accept after a random prompt with each alike; the last one's trees."""
    ids = [chance.randrange(14) for _ in range(chance.randrange(2, 30))]
    told = Foresight(chance.getrandbits(64)) if sampled else None
    for drafter in drafters:
        drafter.foresee(told)
        drafter.reset(ids)
    trees = []
    for _ in range(steps):
        top = chance.sample(range(14), 5)
        found = [drafter.draft(top[0], top) for drafter in drafters]
        trees.append(found[-1])
        assert all(tree.tokens == found[0].tokens for tree in found)
        path = [chance.randrange(len(found[0]))]
        while path[0]:
            path.insert(0, found[0].parents[path[0]])
        width = drafters[0].node_top_k
        rows = [chance.sample(range(max(14, width)), width) for _ in found[0].tokens]
        logs = [random_log_probabilities(chance, width) for _ in rows]
        for drafter, tree in zip(drafters, found, strict=True):
            drafter.observe(tree, path, rows, *([logs] if sampled else []))
    return trees


@given(seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_restored_drafter_goes_on_as_the_saved_one(seed: int, data: st.DataObject) -> None:
    """Of either core, into either core; what the one lists the other lists."""
    options: dict[str, Any] = {
        "draft_tree_capacity": 12,
        "row_width": data.draw(st.sampled_from([2, 8])),
        "sampled_row_width": data.draw(st.sampled_from([3, 12])),
        "reset_rows": data.draw(st.booleans()),
        "reset_ngrams": data.draw(st.booleans()),
        "reset_table": data.draw(st.booleans()),
    }
    chance = random.Random(seed)
    saved = [fresh(**options, drafting_core=core) for core in CORES]
    for _ in range(4):
        teach(saved, chance, sampled=chance.random() < 0.5)
    states = [drafter.state() for drafter in saved]
    assert states[0].keys() == states[1].keys()
    for name, numbers in states[0].items():
        assert np.array_equal(numbers, states[1][name]), name
    restored = [fresh(**options, drafting_core=core) for core in CORES]
    for drafter in restored:
        teach([drafter], random.Random(1), sampled=True)  # which is dropped
        drafter.restore(states[0])
        for name, numbers in drafter.state().items():
            assert np.array_equal(numbers, states[0].get(name, numbers * 0)), name
    for sampled in (True, False):
        teach([*saved, *restored], chance, sampled=sampled)


@pytest.mark.parametrize("core", CORES)
def test_a_warm_drafter_begins_with_what_another_learnt(core: str) -> None:
    chance = random.Random(4)
    options: dict[str, Any] = {"draft_tree_capacity": 12, "drafting_core": core}
    other = fresh(**options)
    for sampled in (False, True, False):
        teach([other], chance, sampled=sampled)
    known = [*other.table.probability]
    warm = fresh(**options)
    warm.warm(other.state())
    assert not sum(warm.table.seen) and [*warm.table.probability] == known
    rows, answers = (warm.state()[f"greedy.{name}"] for name in ("rows", "answers"))
    assert np.array_equal(rows, other.state()["greedy.rows"]) and len(rows)
    assert np.array_equal(answers, other.state()["greedy.answers"]) and len(answers)
    again = fresh(**options)
    again.warm(other.state())
    teach([again], chance, sampled=False)
    again.forget()  # what it learnt, not what it began with
    teach([warm, again], chance, sampled=True)
    teach([warm, again], chance, sampled=False)


@pytest.mark.parametrize("core", CORES)
def test_answers_alone_are_evidence(core: str) -> None:
    drafter = fresh(draft_tree_capacity=4, drafting_core=core)
    drafter.warm({"greedy.answers": np.array([3, 4, 5, 6, -1, 7, 8, -1])})
    drafter.reset([1, 3])
    assert drafter.draft(4, [4]).tokens[:3] == [4, 5, 6]
    drafter.forget()
    drafter.reset([1, 9])
    assert 8 in drafter.draft(7, [7]).tokens


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("layout", [2, 5, 6]),
        ("layout", [LAYOUT, 5, 6]),
        ("greedy.grades", [0]),
        ("greedy.answers", [1, 2]),
        ("greedy.answers", [-2, -1]),
        ("greedy.answers", [1 << 24, -1]),
        ("greedy.answers", [[1, -1]]),
        ("greedy.answers", [1.0, -1.0]),
        ("greedy.rows", [5]),
        ("greedy.rows", [5, 2, 3]),
        ("greedy.rows", [5, -1]),
        ("greedy.rows", [-5, 1, 3]),
        ("sampled.scored", [5, 1, 3]),
        ("sampled.scored", [5, 0]),
        ("sampled.logs", [0.5]),
        ("sampled.bins", [[1.0], [2.0]]),
        ("greedy.other", [1]),
    ],
)
def test_a_state_that_makes_no_sense_is_refused(name: str, numbers: list[Any]) -> None:
    drafter = fresh(draft_tree_capacity=6)
    teach([drafter], random.Random(0), sampled=False)
    before = drafter.state()
    changed = before | {name: np.array(numbers)}
    for take in (drafter.restore, drafter.warm):
        with pytest.raises(InputError, match=r"makes no sense|other options|another version of"):
            take(changed)
    for key, kept in drafter.state().items():
        assert np.array_equal(kept, before[key])


def test_counts_that_contradict_each_other_are_refused() -> None:
    drafter = fresh(draft_tree_capacity=6)
    teach([drafter], random.Random(0), sampled=True)
    state = drafter.state()
    for name, change in (
        ("sampled.right", lambda a: a + 1000),
        ("sampled.grades", lambda a: a[0] + 0 * a),
        ("sampled.grades", lambda a: a + len(drafter.table.prior)),
        ("sampled.bins", lambda a: a[::-1] + 1 - 2 * (a > 0)),
        ("sampled.shares", lambda a: -a),
        ("sampled.shares", lambda a: 0 * a),
        ("sampled.shares", lambda a: a[[1, 1]]),
        ("sampled.logs", lambda a: a[1:]),
        ("sampled.weights", lambda a: a[:, 1:]),
        ("sampled.weights", lambda a: 0 * a),
        ("greedy.weights", lambda a: a * np.nan),
        ("greedy.sums", lambda a: a + np.array([[1.0], [0.0]])),
    ):
        with pytest.raises(InputError, match="makes no sense"):
            drafter.restore(state | {name: change(state[name])})
    for name in ("sampled.shares", "sampled.weights", "greedy.sums"):  # without its other half
        with pytest.raises(InputError, match="makes no sense"):
            drafter.restore({n: a for n, a in state.items() if n != name})
    drafter.restore(state)


@pytest.mark.parametrize("core", CORES)
def test_memory_is_bounded(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers begin anew once they are too many, also those to one prompt."""
    most = 2000
    monkeypatch.setattr(evidence, "MOST_EARLIER", most)
    monkeypatch.setattr("model.logitspec.drafters.calibrated.compiled.MOST_EARLIER", most)
    chance = random.Random(2)
    for same in (False, True):
        drafter = fresh(draft_tree_capacity=4, drafting_core=core)
        sizes = []
        for prompt in range(60):
            drafter.reset([1, 2, 3] if same else [1, 2, 3, prompt])
            for _ in range(100):
                tree = drafter.draft(chance.randrange(5000), [])
                drafter.observe(tree, [0], [[]] * len(tree))
            sizes.append(len(drafter.state()["greedy.answers"]))
        assert sizes[0] < sizes[4] and max(sizes) <= most  # of 6,000 tokens


def with_state() -> list[str]:
    """Names of the methods whose state can be saved, of those that are installed."""
    return [
        name
        for name, drafter in DRAFTERS.items()
        if drafter.restore is not Drafter.restore
        and (name not in PACKAGES or find_spec(PACKAGES[name]))
    ]


@pytest.mark.parametrize("name", with_state())
def test_every_state_is_gone_on_from(name: str, tiny: LlamaKVForCausalLM) -> None:
    """Answers after a restart take the steps that they would have taken."""
    chance = random.Random(3)
    prompts = [[chance.randrange(90) for _ in range(12)] for _ in range(4)]
    prompts += prompts[:2]  # what was learnt of them helps
    settings: dict[str, Any] = {"max_new_tokens": 24, "eos_token_ids": ()}
    for temperature in (0.0, 1.0):
        settings |= {"temperature": temperature, "seed": 5}
        one = DRAFTERS[name]()
        lengths = [generate(tiny, ids, one, **settings).accept_lengths for ids in prompts]
        first, second = DRAFTERS[name](), DRAFTERS[name]()
        for ids in prompts[:3]:
            generate(tiny, ids, first, **settings)
        generate(tiny, prompts[3], second, **settings)  # which is dropped
        second.restore(first.state())
        found = [generate(tiny, ids, second, **settings).accept_lengths for ids in prompts[3:]]
        assert found == lengths[3:]
        first.forget()
        assert generate(tiny, prompts[0], first, **settings).accept_lengths == lengths[0]
        with pytest.raises(InputError, match="makes no sense"):
            second.restore({"rows": np.array([1]), "answers": np.array([1])})


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 5}])
def test_a_state_of_filtered_samples_makes_sense(
    sampling: dict[str, Any], tiny: LlamaKVForCausalLM
) -> None:
    """Log-probabilities of the tokens that a filter leaves sum up to 0, but for rounding."""
    drafter = CalibratedDrafter(16)
    for seed in range(3):
        generate(
            tiny, [5, 6, 7], drafter, temperature=0.7, seed=seed, max_new_tokens=100,
            eos_token_ids=(), **sampling,
        )  # fmt: skip
    state = drafter.state()
    assert len(state["sampled.logs"]) > 100 and (state["sampled.logs"] <= 0).all()
    CalibratedDrafter(16).restore(state)


def test_more_evidence_than_is_kept_is_refused() -> None:
    drafter = fresh(draft_tree_capacity=4)
    most = evidence.MOST_EARLIER // 5
    answers = np.append(np.arange(most - 1) % 1000, -1)
    drafter.warm({"answers": answers})
    drafter.reset([1, 5])
    assert drafter.draft(6, [6]).tokens[:3] == [6, 7, 8]
    with pytest.raises(InputError, match="are no lists of token ids"):
        drafter.warm({"answers": answers[:-1]})
    with pytest.raises(InputError, match=f"of {most + 1} tokens are more than the {most} that"):
        drafter.warm({"answers": np.append(answers, -1)})


def test_a_million_tokens_are_bounded() -> None:
    """What is kept of them begins anew, and memory does not grow."""
    if status("VmRSS") is None:
        pytest.skip("the system does not tell what a process holds")
    drafter = fresh(draft_tree_capacity=2, drafting_core="native")
    numbers = np.random.default_rng(0)
    held: list[int] = []
    for answer in range(1050):
        drafter.reset([answer, answer + 1])
        for token in numbers.integers(0, 49152, 1000).tolist():
            drafter._core.skip(token)  # as in a rest
        if answer in (349, 1049):
            drafter.reset([answer, 7])
            kept = drafter.state()["greedy.answers"]
            assert 1000 < len(kept) < evidence.MOST_EARLIER
            held.append(status("VmRSS") or 0)
    assert held[1] - held[0] < 32 << 20
