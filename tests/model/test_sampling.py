"""Sampling: the target's own distribution and, with one seed, the same whatever is drafted."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LogitsProcessorList

from evaluation.run import main as run
from model.logitspec import (
    DRAFTERS,
    DecodingResult,
    Drafter,
    DraftTree,
    InputError,
    LlamaKVForCausalLM,
    Sampling,
    VanillaDrafter,
    decode,
    load,
)
from model.logitspec.acceptance import accept
from model.logitspec.cuda_graphs import GraphVerifier
from model.logitspec.prefill import last_logits, prefill
from model.logitspec.sampling import Chooser, greedy, gumbel, mixed, states_of
from model.logitspec.verification import EagerVerifier

from ..conftest import TINY, new_drafter, question, save_tiny
from ..evaluation.test_run import HERE
from .test_modeling import random_tree
from .test_verification import check_same_verdict

PROMPT = [5, 6, 7, 8, 5, 6, 7]
CPU = torch.device("cpu")


class Wrong(Drafter):
    """Trees full of random drafts, some of them right by chance."""

    top_k = 4

    def __init__(self, vocab: int, size: int = 8) -> None:
        self.vocab, self.capacity = vocab, size
        self.chance = random.Random(0)

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        pass

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        while not tree.full:
            tree.add(self.chance.randrange(self.vocab), self.chance.randrange(len(tree)))
        return tree


def sample(
    model: LlamaKVForCausalLM, ids: list[int], drafter: Drafter, tokens: int, sampling: Sampling
) -> DecodingResult:
    chooser = sampling.chooser(ids[:-1])
    return decode(model, ids, drafter, max_new_tokens=tokens, chooser=chooser)


def test_the_generator_is_splitmix64() -> None:
    # The first numbers of the stream of seed 0, as published with the generator's C source.
    state = 0
    for number in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F):
        assert mixed(state) == number
        state += 0x9E3779B97F4A7C15
    stream = mixed(77)
    noise = gumbel(states_of(stream, [3, 2**40]), 5, CPU)
    for row, position in zip(noise, (3, 2**40), strict=True):
        start = mixed(stream ^ mixed(position))
        for token in range(5):
            bits = mixed((start + token * 0x9E3779B97F4A7C15) % 2**64) >> 12
            expected = -np.log(-np.log((bits + 0.5) * 2.0**-52))
            assert float(row[token]) == pytest.approx(expected, abs=1e-12)


def test_the_noise_is_gumbels_and_its_columns_do_not_depend_on_the_others() -> None:
    noise = gumbel(states_of(mixed(1), range(200)), 1000, CPU)
    assert float(noise.mean()) == pytest.approx(np.euler_gamma, abs=0.01)
    assert float(noise.var()) == pytest.approx(np.pi**2 / 6, abs=0.02)
    uniform = torch.exp(-torch.exp(-noise)).flatten()
    assert chi_square(np.histogram(uniform, 100, (0, 1))[0], np.full(100, 0.01)) > 1e-3
    neighbours = np.corrcoef(noise[:, :-1].flatten(), noise[:, 1:].flatten())[0, 1]
    rows = np.corrcoef(noise[:-1].flatten(), noise[1:].flatten())[0, 1]
    assert abs(neighbours) < 0.01 and abs(rows) < 0.01
    assert torch.equal(gumbel(states_of(mixed(1), [7]), 10, CPU), noise[7:8, :10])


def chi_square(counts: Any, shares: Any) -> float:
    """The p-value of Pearson's test; cells expected fewer than 5 times are taken together."""
    expected = np.asarray(shares, dtype=float) * np.sum(counts)
    order = np.argsort(expected)
    rare = order[: int(np.searchsorted(np.cumsum(expected[order]), 5.0)) + 1]
    often = np.setdiff1d(order, rare)
    seen = np.append(np.asarray(counts, dtype=float)[often], np.sum(np.asarray(counts)[rare]))
    wanted = np.append(expected[often], expected[rare].sum())
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    half = torch.tensor([(len(seen) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def test_the_p_value_is_right_and_small_for_what_is_wrong() -> None:
    assert chi_square([50, 50], [0.5, 0.5]) == pytest.approx(1.0)
    assert chi_square([60, 40], [0.5, 0.5]) == pytest.approx(0.0455, abs=1e-4)
    assert chi_square([5200, 4800], [0.5, 0.5]) < 1e-4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> LlamaKVForCausalLM:
    """A model of 12 tokens, none of them improbable."""
    config = LlamaConfig(
        **TINY | {"vocab_size": 12, "num_hidden_layers": 1, "initializer_range": 0.3}
    )
    return load(save_tiny(tmp_path_factory.mktemp("small") / "m", config), dtype=torch.float64)


@pytest.mark.parametrize("drafter", [VanillaDrafter(), Wrong(12)], ids=["vanilla", "wrong drafts"])
@pytest.mark.parametrize(
    ("sampling", "samples"),
    [
        pytest.param(Sampling(temperature=1.0), 20_000, marks=pytest.mark.slow),
        (Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.2), 2_000),
    ],
    ids=["plain", "filtered"],
)
def test_two_tokens_are_distributed_as_the_target_says(
    small: LlamaKVForCausalLM, drafter: Drafter, sampling: Sampling, samples: int
) -> None:
    """Samples of two tokens against their exact probabilities."""
    prompt = [3, 1, 4, 1, 5]
    processors = sampling.processors()

    def probabilities(ids: list[int]) -> torch.Tensor:
        logits = last_logits(small, ids)[None].float()
        return processors(torch.tensor([ids]), logits).double().softmax(dim=-1)[0]

    first = probabilities(prompt)
    joint = torch.stack([p * probabilities([*prompt, a]) for a, p in enumerate(first)]).flatten()
    counts: Counter[int] = Counter()
    accepted = 0
    for seed in range(samples):
        result = sample(small, prompt, drafter, 2, replace(sampling, seed=seed))
        a, b = result.tokens
        counts[12 * a + b] += 1
        accepted += result.steps == 1
    found = [counts[cell] for cell in range(144)]
    possible = joint.numpy() > 0
    assert sum(np.array(found)[~possible]) == 0
    assert chi_square(np.array(found)[possible], joint.numpy()[possible]) > 1e-3
    assert (accepted > samples / 40) is isinstance(drafter, Wrong)


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    seed=st.integers(0, 2**63 - 1),
)


@pytest.mark.parametrize("name", DRAFTERS)
@given(sampling=SAMPLINGS)
@settings(max_examples=8, deadline=None)
def test_whatever_is_drafted_the_tokens_are_those_of_the_one_node_loop(
    tiny: LlamaKVForCausalLM, name: str, sampling: Sampling
) -> None:
    if name not in HERE:
        pytest.skip(f"{name} is not installed")
    drafter = new_drafter(name)
    wanted = sample(tiny, PROMPT, VanillaDrafter(), 40, sampling)
    found = sample(tiny, PROMPT, drafter, 40, sampling)
    assert found.tokens == wanted.tokens
    assert sum(found.accept_lengths) == len(found.tokens)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_real_model_says_the_same_whatever_is_drafted(
    either_model: LlamaKVForCausalLM, default_tokenizer: Any, temperature: float
) -> None:
    messages = [{"role": "user", "content": "Write the numbers from one to twenty as words."}]
    ids = default_tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    sampling = Sampling(temperature=temperature, seed=3)
    wanted = sample(either_model, ids, VanillaDrafter(), 32, sampling)
    greedy = decode(either_model, ids, VanillaDrafter(), max_new_tokens=32)
    assert wanted.tokens != greedy.tokens
    steps = []
    for name in (n for n in DRAFTERS if n in HERE and n != "vanilla"):
        drafter = new_drafter(name)
        found = sample(either_model, ids, drafter, 32, sampling)
        assert found.tokens == wanted.tokens, name
        steps.append(found.steps)
    assert min(steps) < 30


def test_a_seed_decides_and_no_seed_is_like_another(tiny: LlamaKVForCausalLM) -> None:
    def tokens(seed: int, temperature: float = 1.5) -> tuple[int, ...]:
        sampling = Sampling(temperature=temperature, seed=seed)
        return tuple(sample(tiny, PROMPT, Wrong(97), 20, sampling).tokens)

    assert tokens(1) == tokens(1)
    assert len({tokens(seed) for seed in range(8)}) == 8
    greedy = decode(tiny, PROMPT, VanillaDrafter(), max_new_tokens=20).tokens
    assert tuple(greedy) == tokens(1, 1e-4)  # the limit of a cold softmax


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_a_penalty_without_sampling_is_transformers_own(
    tiny: LlamaKVForCausalLM, tiny_path: str, penalty: float
) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float64)
    ids = torch.tensor([PROMPT])
    wanted = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=50, do_sample=False,
        repetition_penalty=penalty, eos_token_id=None, pad_token_id=0,
    )[0, len(PROMPT) :].tolist()  # fmt: skip
    sampling = Sampling(repetition_penalty=penalty)
    for drafter in (VanillaDrafter(), Wrong(97), DRAFTERS["logitspec"]()):
        found = sample(tiny, PROMPT, drafter, 50, sampling)
        assert found.tokens == wanted


@given(sampling=SAMPLINGS)
@settings(max_examples=30, deadline=None)
def test_the_processors_are_those_of_generate(tiny_path: str, sampling: Sampling) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(tiny_path)
    processors = theirs._get_logits_processor(
        GenerationConfig(**sampling.settings), input_ids_seq_length=len(PROMPT)
    )
    assert [type(p) for p in processors] == [type(p) for p in sampling.processors()]
    ids, logits = torch.tensor([PROMPT]), torch.randn(1, 97)
    assert torch.equal(processors(ids, logits.clone()), sampling.processors()(ids, logits))


class Counting:
    """A processor of the user's that looks at the whole context."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for row, row_ids in enumerate(ids):
            scores[row, int(row_ids.sum()) % scores.shape[1]] += 40.0
        return scores


def test_a_processor_sees_the_context_of_each_node() -> None:
    tree = DraftTree(5, 9)
    tree.add_branch([6, 7])
    tree.add_branch([8])
    chooser = Chooser(LogitsProcessorList([Counting()]), None, [1, 2])
    chooser.commit([3])
    assert chooser.choose(torch.zeros(4, 97), tree).tolist() == [11, 17, 24, 19]
    assert chooser.choose(torch.zeros(2, 97), tree, [3, 2]).tolist() == [19, 24]


@pytest.mark.parametrize("sampling", [Sampling(0.9, seed=4), Sampling(0.9, repetition_penalty=1.4)])
def test_padded_steps_choose_as_plain_ones(tiny_path: str, sampling: Sampling) -> None:
    rng = random.Random(5)
    models = [load(tiny_path, dtype=torch.float64) for _ in range(2)]
    prompt = [rng.randrange(97) for _ in range(30)]
    caches = [model.new_cache(128) for model in models]
    for model, cache in zip(models, caches, strict=True):
        prefill(model, prompt, cache, top_k=0)
    choosers = [sampling.chooser(prompt) for _ in models]
    plain = EagerVerifier(models[0], caches[0], 5, 2, choosers[0])
    padded = GraphVerifier(models[1], caches[1], 5, 2, choosers[1])
    for size in (1, 2, 3, 17, 5, 1):
        tree = random_tree(rng, 97, size)
        check_same_verdict(plain, padded, tree)


def test_acceptance_goes_by_what_was_chosen() -> None:
    tree = DraftTree(1, 9)
    tree.add_branch([2, 3])
    logits = torch.zeros(3, 6)
    logits[:, 5] = 1.0
    chooser = greedy()
    chooser.choose = lambda *_: torch.tensor([2, 4, 0])  # type: ignore[method-assign]
    verdict = accept(logits, tree, chooser, 2)
    assert (verdict.path, verdict.next_root) == ([0, 1], 4)
    assert verdict.top_ids[0] == 5  # the ranks are the logits' own


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; give 0, which is greedy, or 0.0001"),
        ({"temperature": 1e-9}, "temperature is 1e-09"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1, "top_p": 0.0}, "top_p is 0.0; give more than 0 and at most 1"),
        ({"temperature": 1, "top_p": 1.01}, "top_p is 1.01"),
        ({"temperature": 1, "top_k": -1}, "top_k is -1"),
        ({"temperature": 1, "min_p": 1.5}, "min_p is 1.5; give from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; give more than 0"),
        ({"seed": 2**63}, "seed is"),
        ({"top_p": 0.9}, "temperature 0 takes none"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint.replace("(", r"\(")):
        Sampling(**options)


@pytest.mark.slow
def test_runs_at_a_temperature(
    chat_path: str,
    make_bench: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_bench(question(1, "Who?", "Why?"), question(2)) / "model_answer"
    argv = ["--model-path", chat_path, "--bench-name", "mine", "--dtype", "float32"]
    argv += ["--device", "cpu", "--warmup", "1", "--max-new-tokens", "12", "--temperature", "0.8"]
    argv += ["--num-choices", "2", "--seed", "5", "--top-p", "0.95", "--top-k", "90"]
    methods = ["--methods", "baseline,vanilla,logitspec,hf_pld"]
    assert run([*argv, *methods, "--model-id", "x"]) == 0
    assert run([*argv, *methods, "--model-id", "y"]) == 0

    def read(name: str) -> list[list[list[int]]]:
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        return [[c["output_ids"] for c in json.loads(line)["choices"]] for line in lines]

    assert read("x-vanilla") == read("x-logitspec")
    for name in ("baseline", "vanilla", "logitspec", "hf_pld"):
        assert read(f"x-{name}") == read(f"y-{name}")
    for choices in read("x-vanilla"):
        assert choices[0] != choices[1]
    sidecar = json.loads((folder / "x-logitspec.meta.json").read_text())["settings"]
    assert (sidecar["temperature"], sidecar["top_p"], sidecar["top_k"]) == (0.8, 0.95, 90)
    assert "min_p" not in sidecar
    capsys.readouterr()
    assert run([*argv, *methods, "--model-id", "x", "--top-p", "0.9"]) == 2
    assert "was made with top_p 0.95, now it is 0.9" in capsys.readouterr().err
    assert run([*argv, *methods, "--model-id", "z", "--top-p", "1.5"]) == 2
    assert "top_p is 1.5; give more than 0 and at most 1" in capsys.readouterr().err
    assert run([*argv, *methods, "--model-id", "z", "--temperature", "-1"]) == 2
    assert "temperature is -1.0; give 0, which" in capsys.readouterr().err
