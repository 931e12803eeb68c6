"""What a step costs: measured in little time, then learnt from the steps that run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.logitspec import (
    CalibratedDrafter,
    LlamaKVForCausalLM,
    VanillaDrafter,
    decode,
    storage,
)
from model.logitspec.sizing import budget, measuring
from model.logitspec.sizing.live_cost import GUESSED, STORE_EVERY, LiveCost, guessed
from model.logitspec.sizing.measuring import Meter, completed, known_cost, live_cost
from model.logitspec.sizing.step_cost import MEASURED_NODES, StepCost

CONTEXTS = (128, 1024)


@pytest.fixture(autouse=True)
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model's steps are so short that drafting would rest, and these are not learnt from."""
    monkeypatch.setattr(budget, "LOSS", math.inf)


Curve = Callable[[int], float]


def cost_of(curve: Curve, *, padded: bool = False) -> StepCost:
    """A step cost whose longer context costs a fifth more."""
    near = [curve(n) for n in MEASURED_NODES]
    return StepCost(CONTEXTS, MEASURED_NODES, (near, [1.2 * s for s in near]), padded)


def flat(n: int) -> float:
    return 0.01 * max(1.0, n / 16)


def steep(n: int) -> float:
    return 0.01 * (0.6 + 0.4 * n)


def kinked(n: int) -> float:
    return 0.01 * (1 + 0.02 * n if n < 8 else 1.3 + 0.06 * (n - 8))


CURVES = {"flat": flat, "steep": steep, "kinked": kinked}


def best(curve: Sequence[float], right: float) -> int:
    """The number of nodes with the most tokens per second, where a draft at depth d is right with
    the probability right ** d."""
    expected = np.cumsum(right ** np.arange(len(curve) - 1))
    return int(np.argmax(expected / np.array(curve[1:]))) + 1


def rate(curve: Sequence[float], nodes: int, right: float) -> float:
    return float((right ** np.arange(nodes)).sum() / curve[nodes])


def live(
    cost: LiveCost,
    true: StepCost,
    steps: int,
    busy: Callable[[int], float] = lambda n: 1.0,
    seed: int = 0,
) -> float:
    """Let a drafter take what it thinks best, on a noisy machine; its share of the tokens per
    second that one gets who knows the true cost."""
    chance = np.random.default_rng(seed)
    seconds = ideal = tokens = could = 0.0
    for step in range(steps):
        context = 100 + step % 400
        curve, actual = cost.curve(context), true.curve(context)
        right = float(chance.choice([0.3, 0.6, 0.8, 0.9, 0.95]))
        nodes, wanted = best(curve, right), best(actual, right)
        tokens, seconds = (
            tokens + rate(actual, nodes, right) * actual[nodes],
            seconds + actual[nodes],
        )
        could, ideal = could + rate(actual, wanted, right) * actual[wanted], ideal + actual[wanted]
        took = actual[nodes] * busy(nodes) * float(np.exp(chance.normal(0.03, 0.05)))
        if chance.random() < 0.03:  # the process was off the processor
            took *= float(chance.uniform(3, 15))
        cost.note(nodes, context, took)
    return (tokens / seconds) / (could / ideal)


@pytest.mark.parametrize("true", CURVES)
@pytest.mark.parametrize("start", CURVES)
def test_whatever_it_begins_with_it_ends_up_with_what_steps_cost(true: str, start: str) -> None:
    actual = cost_of(CURVES[true])
    cost = LiveCost(cost_of(CURVES[start]))
    live(cost, actual, 600)
    assert live(cost, actual, 400, seed=1) > 0.94


def test_a_single_number_is_start_enough() -> None:
    for name, curve in CURVES.items():
        actual = cost_of(curve)
        start = cost_of(lambda n, curve=curve: curve(1) * guessed(n))  # type: ignore[misc]
        cost = LiveCost(start, doubt=GUESSED)
        live(cost, actual, 100)
        assert live(cost, actual, 400, seed=1) > 0.96, name


def test_a_machine_that_is_slower_at_all_sizes_changes_no_tree() -> None:
    actual = cost_of(kinked)
    cost = LiveCost(actual)
    live(cost, actual, 100)
    before = np.array(cost.cost.curve(300))
    assert live(cost, actual, 300, busy=lambda n: 3.0, seed=2) > 0.95
    after = np.array(cost.cost.curve(300))
    assert after[1] == pytest.approx(3 * before[1], rel=0.15)
    assert after[16] / after[1] == pytest.approx(before[16] / before[1], rel=0.15)


def test_what_was_learnt_on_a_busy_machine_does_not_stay() -> None:
    actual = cost_of(flat)
    cost = LiveCost(actual)
    live(cost, actual, 400, busy=lambda n: float(n), seed=3)
    busy = cost.cost.curve(300)
    assert busy[16] > 2 * busy[1]
    live(cost, actual, 600, seed=4)
    assert live(cost, actual, 300, seed=5) > 0.97
    quiet = cost.cost.curve(300)
    assert quiet[16] < 1.3 * quiet[1]


def test_a_size_that_was_once_dear_is_tried_again() -> None:
    def dear(n: int) -> float:
        return flat(n) * (1 if n == 1 else 9)

    cost = LiveCost(cost_of(dear))
    for _ in range(30_000):
        cost.note(1, 200, flat(1))
    assert cost.curve(200)[4] < 2 * cost.curve(200)[1]


def test_one_step_ten_times_too_long_moves_hardly_anything() -> None:
    cost = LiveCost(cost_of(flat))
    for _ in range(50):
        cost.note(4, 200, flat(4))
    for usual in (0, 14):  # alone, and among others that are learnt from together
        before = cost.cost.curve(200)[4]
        for step in range(usual + 1):
            cost.note(4, 200, flat(4) * (1 if step else 10))
        assert cost.cost.curve(200)[4] == pytest.approx(before, rel=0.1)
    cost.note(4, 200, 10 * flat(4))
    cost.note(4, 200, flat(4))  # of two the middle counts
    assert cost.cost.curve(200)[4] < 1.3 * before


def test_steps_of_a_padded_size_speak_for_the_whole_bucket() -> None:
    cost = LiveCost(StepCost(CONTEXTS, (1, 8, 16), ((1, 1, 1),) * 2, padded=True))
    for _ in range(200):
        cost.note(1, 128, 1.0)
        cost.note(5, 128, 2.0)
    curve = cost.curve(128)
    assert curve[2] == curve[8] == pytest.approx(2 * curve[1], rel=0.1)
    assert curve[9] == curve[16]
    cost.note(17, 128, 9.0)  # beyond: says nothing
    assert cost.curve(128) == curve


def behind_long(n: int, context: int) -> float:
    """A step whose further nodes are dearer the longer the context is."""
    return 0.004 + 0.001 * n + context * (1e-6 + 3e-7 * n)


def test_behind_a_long_context_the_curve_is_that_of_the_steps_there() -> None:
    seconds = [[behind_long(n, c) for n in MEASURED_NODES] for c in CONTEXTS]
    seconds[1] = [seconds[1][0], *(1.1 * s for s in seconds[1][1:])]  # measured a little wrong
    cost = LiveCost(StepCost(CONTEXTS, MEASURED_NODES, seconds))
    chance = np.random.default_rng(0)
    near = cost.cost.curve(128)
    for step in range(100):
        nodes = (1, 2, 4, 8)[step % 4]
        took = behind_long(nodes, 8000 + step) * float(np.exp(chance.normal(0, 0.05)))
        cost.note(nodes, 8000 + step, took)
    found = cost.cost
    assert tuple(found.contexts) == (128, 8192)
    for nodes in (1, 2, 4, 8):
        assert found.curve(8050)[nodes] == pytest.approx(behind_long(nodes, 8050), rel=0.06)
    assert found.curve(128)[8] == pytest.approx(near[8], rel=0.2)
    drawn = [LiveCost(found).curve(8050)[n] / found.curve(8050)[n] for n in (1, 2, 4, 8)]
    assert max(drawn) < 1.25 * min(drawn)


def prompt_seconds(tokens: int) -> float:
    """Of reading as many tokens in one go, each as dear as a further node of a tree."""
    return tokens * (behind_long(2, tokens // 2) - behind_long(1, tokens // 2))


def test_a_long_prompt_tells_what_large_trees_behind_it_cost_at_least() -> None:
    near, far = ([behind_long(n, c) for n in MEASURED_NODES] for c in (128, 300))
    cost = LiveCost(StepCost(CONTEXTS, MEASURED_NODES, (near, far)))  # a fifth of what 1,024 add
    assert cost.cost.curve(8000)[64] < 0.5 * behind_long(64, 8000)
    cost.note_prompt(8000, 0, prompt_seconds(8000))
    for nodes in (32, 64, 128):
        assert cost.cost.curve(8000)[nodes] == pytest.approx(behind_long(nodes, 8000), rel=0.3)
    assert cost.cost.curve(128)[64] == pytest.approx(behind_long(64, 128), rel=0.3)


@pytest.mark.parametrize(
    ("tokens", "held", "seconds"),
    [(1024, 0, 99.0), (127, 8000, 99.0), (8000, 0, 0.1)],
    ids=["behind which steps were measured", "few tokens", "cheaper than a tree"],
)
def test_other_prompts_tell_nothing(tokens: int, held: int, seconds: float) -> None:
    cost = LiveCost(cost_of(flat))
    before = cost.cost.curve(8000)
    cost.note_prompt(tokens, held, seconds)
    assert cost.cost.curve(8000) == pytest.approx(before)


def test_what_reading_a_prompt_took_is_told_without_the_tokens_that_were_held(
    tiny: LlamaKVForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(measuring, "LIVE", {})
    monkeypatch.setattr(measuring, "READ", {})
    monkeypatch.setattr(LiveCost, "note_prompt", lambda _, *read: told.append(read))
    prompt = list(range(1, 40))
    first = decode(tiny, prompt, VanillaDrafter(), max_new_tokens=4)
    decode(tiny, prompt[:9], VanillaDrafter(), max_new_tokens=4)  # has less to tell
    drafter = CalibratedDrafter("auto")
    second = decode(tiny, prompt, drafter, max_new_tokens=4, reuse_prefix=True)
    longer = [*prompt, *second.tokens, 5, 6, 7]
    third = decode(tiny, longer, drafter, max_new_tokens=4, reuse_prefix=True)
    assert third.cached_tokens > len(prompt)
    assert told == [
        (len(prompt), 0, first.prefill_seconds),  # before anybody asked for step costs
        *(
            (done.prompt_tokens - done.cached_tokens, done.cached_tokens, done.prefill_seconds)
            for done in (second, third)
        ),
    ]


def test_sizes_that_were_not_measured_follow_from_those_that_were() -> None:
    assert completed({1: 2.0}, [1, 51]) == [2.0, 4.0]
    assert completed({1: 1.0, 4: 4.0, 2: 2.0}, [1, 2, 3, 4, 6]) == [1, 2, 3, 4, 6]
    assert completed({1: 2.0, 2: 1.0}, [1, 2, 9]) == [1.5, 1.5, 1.5]  # never falling


def test_what_a_longer_context_costs_grows_with_the_nodes(tiny: LlamaKVForCausalLM) -> None:
    meter = Meter(tiny, 4, 2)
    for kind, seconds in {(1, 0): 1.0, (8, 0): 1.7, (32, 0): 4.1, (1, 1): 1.1}.items():
        meter._took[kind] = [seconds]
    at = MEASURED_NODES.index(32)
    assert meter.cost.seconds[1][at] == pytest.approx(4.1 + 0.1 * guessed(32))
    meter._took[8, 1] = [1.7 + 0.8]
    assert meter.cost.seconds[1][at] == pytest.approx(4.1 + 0.8 + 24 * 0.1)


class SlowVerify:
    """A verification that takes its time by the number of nodes."""

    def __init__(self, curve: Curve) -> None:
        self.curve = curve
        self.sizes: list[int] = []

    def __call__(self, model: Any, tree: Any, *_: Any) -> Any:
        self.sizes.append(len(tree))
        time.sleep(self.curve(len(tree)))


@pytest.mark.parametrize(
    ("one", "further", "least", "most"),
    [(0.001, 0.0001, 12, 0.6), (0.04, 0.002, 3, 0.6), (0.8, 0.1, 1, 0.9)],
)
def test_measuring_takes_half_a_second_or_one_step(
    tiny: LlamaKVForCausalLM,
    monkeypatch: pytest.MonkeyPatch,
    one: float,
    further: float,
    least: int,
    most: float,
) -> None:
    slow = SlowVerify(lambda n: one + further * (n - 1))
    monkeypatch.setattr(measuring, "verify", slow)
    meter = Meter(tiny, 4, 2)
    meter.run(0.5)
    assert sum(map(slow.curve, slow.sizes)) < most
    assert len(set(slow.sizes)) >= least
    assert slow.sizes[0] == 1
    cost = meter.cost
    for nodes in (1, 16) if least > 1 else (1,):
        found = cost.seconds[0][cost.nodes.index(nodes)]
        assert 0.95 * slow.curve(nodes) < found < 2 * slow.curve(nodes) + 0.003


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no step cost known in this process."""
    monkeypatch.setattr(storage, "cache_folder", lambda: tmp_path)
    measuring.LIVE.clear()
    return tmp_path


PROMPT = [1, 5, 9, 5, 9, 7]


def generated(model: LlamaKVForCausalLM, new: int = 3 * STORE_EVERY) -> None:
    decode(model, PROMPT, CalibratedDrafter(draft_tree_capacity="auto"), max_new_tokens=new)


def test_steps_are_learnt_from_and_kept_for_the_next_process(
    tiny: LlamaKVForCausalLM, folder: Path
) -> None:
    decode(tiny, PROMPT, VanillaDrafter(), max_new_tokens=4)
    assert not list(folder.glob("step-cost-*"))
    generated(tiny, 4)
    cost = known_cost(tiny, 24, 8)
    assert cost is not None and cost.steps > 0 and live_cost(tiny, 24, 8) is cost
    assert not list(folder.glob("step-cost-*"))  # too few steps to be worth it
    generated(tiny, 6 * STORE_EVERY)
    (file,) = folder.glob("step-cost-*.json")
    stored = json.loads(file.read_text())["found"]
    assert stored["seconds"][0] == pytest.approx(list(cost.cost.seconds[0]))


def test_a_stored_curve_is_a_start_for_this_machines_speed(
    tiny: LlamaKVForCausalLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated(tiny)
    (file,) = folder.glob("step-cost-*.json")
    content = json.loads(file.read_text())
    content["found"]["seconds"] = [[1.0 + n for n in range(len(MEASURED_NODES))]] * 2
    file.write_text(json.dumps(content))
    measuring.LIVE.clear()
    monkeypatch.setattr(measuring, "verify", SlowVerify(lambda n: 0.01))
    seconds = live_cost(tiny, 24, 8).cost.seconds[0]
    assert 0.01 < seconds[0] < 0.1  # not 1
    assert seconds[5] == pytest.approx(6 * seconds[0])


@pytest.mark.parametrize(
    "found",
    [
        None,
        [3],
        {"seconds": [[1.0]], "contexts": [128, 1024]},
        {"seconds": [[0.0] * len(MEASURED_NODES)] * 2, "contexts": [128, 1024]},
        {"seconds": [["x"] * len(MEASURED_NODES)] * 2, "contexts": [128, 1024]},
        {"seconds": [[1.0] * len(MEASURED_NODES)] * 2, "contexts": [1024, 128]},
        {"contexts": [128, 1024], "nodes": [1, 2], "seconds": [[1, 2], [1, 2]], "padded": False},
    ],
)
def test_a_stored_curve_that_is_none_is_measured_anew(
    tiny: LlamaKVForCausalLM, folder: Path, found: Any
) -> None:
    generated(tiny)
    (file,) = folder.glob("step-cost-*.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"found": found}))
    measuring.LIVE.clear()
    cost = live_cost(tiny, 24, 8)
    assert list(cost.nodes) == list(MEASURED_NODES)
    assert all(0 < s < 1 for s in cost.cost.seconds[0])
