"""REST: its trees against a plain search, its datastore when torn or another's, and its speed."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from data.datastore import write_datastore
from evaluation.asking.questions import load_questions
from model.logitspec import (
    DraftTree,
    InputError,
    LlamaKVForCausalLM,
    RestDrafter,
    VanillaDrafter,
    decode,
    generate,
)
from model.logitspec.drafters.rest import cut

from ..conftest import ROOT

pytest.importorskip("pydivsufsort")


def store_of(path: Path, *documents: list[int]) -> str:
    write_datastore(path, [np.array(d, np.int32) for d in documents], "a tokenizer")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def plainly(
    documents: list[list[int]], context: list[int], capacity: int, longest: int, hits: int
) -> list[list[int]]:
    """The paths of the tree by trying every suffix at every place."""
    whole = [token for document in documents for token in (*document, -1)]
    for size in range(min(longest, len(context)), 1, -1):
        suffix = context[-size:]
        places = [at for at in range(len(whole)) if whole[at : at + size] == suffix]
        if places:
            places.sort(key=lambda at: whole[at:])
            counts: Counter[tuple[int, ...]] = Counter()
            for at in places[:hits]:
                following = [*whole[at + size : at + size + 10], -1]
                following = following[: following.index(-1)]
                counts.update(tuple(following[:n]) for n in range(1, len(following) + 1))
            ordered = sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix), prefix))
            return [list(prefix) for prefix in ordered[: capacity - 1]]
    return []


def paths(tree: DraftTree) -> list[list[int]]:
    return [tree.path_tokens(node)[1:] for node in range(1, len(tree))]


@pytest.mark.parametrize("seed", range(150))
def test_the_tree_is_that_of_a_plain_search(
    folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.logitspec.drafters.rest.FEW", seed % 2 * 9)  # both ways to count
    chance = random.Random(seed)
    documents = [chance.choices(range(3), k=chance.randint(1, 40)) for _ in range(seed % 5 + 1)]
    context = chance.choices(range(3), k=chance.randint(1, 8))
    capacity = chance.choice([1, 2, 5, 20, 65])
    longest, hits = chance.randint(2, 5), chance.choice([1, 3, 5000])
    store = store_of(folder / "any.store", *documents)
    drafter = RestDrafter(store, capacity, longest, max_hits=hits)
    drafter.reset(context[:1])
    for token in context[1:-1]:  # tokens are committed one by one
        drafter.observe(DraftTree(token, 1), [0])
    tree = drafter.draft(context[-1], [])
    asked = context if len(context) > 1 else context * 2
    assert paths(tree) == plainly(documents, asked, capacity, longest, hits)


def test_the_longest_suffix_wins_and_the_most_frequent_go_first(folder: Path) -> None:
    store = store_of(
        folder / "a.store", [1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 3, 5, 7], [9, 2, 3, 8], [9, 2, 3]
    )
    drafter = RestDrafter(store)
    drafter.reset([1, 2])
    assert paths(drafter.draft(3, [])) == [[5], [4], [5, 6], [5, 7]]
    drafter.reset([0, 2])
    assert paths(drafter.draft(3, [])) == [[5], [4], [8], [5, 6], [5, 7]]
    assert len(drafter.draft(6, [])) == 1  # "2 6" is nowhere


def test_a_document_is_not_continued_by_the_next(folder: Path) -> None:
    drafter = RestDrafter(store_of(folder / "b.store", [1, 2], [3, 4, 5], [8, 1, 2, 6]))
    drafter.reset([1])
    assert paths(drafter.draft(2, [])) == [[6]]


def test_the_published_cut_counts_the_tokens_of_every_branch(folder: Path) -> None:
    assert cut([(1,), (1, 2), (1, 1), (3,), (1, 2, 3)], 4) == [(1,), (1, 1), (3,)]
    store = store_of(folder / "c.store", [1, 2, *range(10, 30)], [1, 2, 40, 41])
    trees = {}
    for published in (False, True):
        drafter = RestDrafter(store, 9, published_cut=published)
        drafter.reset([1])
        trees[published] = paths(drafter.draft(2, []))
    assert [len(path) for path in trees[False]] == [1, 1, 2, 2, 3, 4, 5, 6]
    assert [len(path) for path in trees[True]] == [1, 1, 2, 2]  # 1 + 1 + 2 + 2 and 3 are over 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "is given none; name one with --datastore FILE"),
        ({"datastore": "no/where"}, "no datastore no/where: No such file or directory"),
        ({"datastore": "STORE", "max_ngram_size": 1}, "max_ngram_size is 1; give 2 or more"),
        ({"datastore": "STORE", "max_hits": 0}, "max_hits is 0; give 1 or more"),
        ({"datastore": "STORE", "num_pred_tokens": 0}, "num_pred_tokens is 0; give 1 or more"),
        ({"datastore": "STORE", "draft_tree_capacity": 0}, "draft_tree_capacity is 0"),
    ],
)
def test_bad_options(folder: Path, options: dict[str, Any], message: str) -> None:
    if options.get("datastore") == "STORE":
        options = {**options, "datastore": store_of(folder / "d.store", [1, 2, 3])}
    with pytest.raises(InputError, match=message):
        RestDrafter(**options)


def test_a_torn_or_changed_datastore_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "whole.store"
    store_of(path, [1, 2, 3, 1, 2])
    whole = path.read_bytes()
    RestDrafter(str(path))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"is no datastore, or not a whole one .*; build it"):
            RestDrafter(str(path))
    for at in range(len(whole) - 48, len(whole)):  # of its arrays
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(InputError, match="was changed"):
            RestDrafter(str(path))
    save_file({"tokens": np.zeros(3, np.int32)}, path)
    with pytest.raises(InputError, match="is no datastore"):
        RestDrafter(str(path))


def test_ids_that_the_model_has_not_are_refused(tiny: LlamaKVForCausalLM, folder: Path) -> None:
    drafter = RestDrafter(store_of(folder / "e.store", [5, 6, 97, 5]))
    with pytest.raises(InputError, match="holds ids up to 97, the model has 97; build it anew"):
        generate(tiny, [5, 6], drafter, max_new_tokens=4)


def test_a_step_over_a_million_tokens_is_short(tmp_path: Path) -> None:
    """Zipf's frequencies, as words have them; 5,000 occurrences of the most frequent pair count.

    The yardstick is a pass over the text, because machines differ.
    """
    chance = np.random.default_rng(0)
    text = (chance.zipf(1.3, 1_200_000) % 50_000).astype(np.int32)
    text[::7] = text[3::7][: len(text[::7])]
    store = tmp_path / "million.store"
    write_datastore(store, [text], "a tokenizer")
    drafter = RestDrafter(str(store))

    tokens = text.tolist()

    def of_a_pass(contexts: list[list[int]]) -> float:
        """Median time of a step over that of counting a token in the text, in turns."""
        seconds, passes = [], []
        for context in contexts:
            drafter.reset(context)
            start = time.thread_time()
            drafter.draft(context.pop(), [])
            drafted = time.thread_time()
            tokens.count(1)
            seconds.append(drafted - start)
            passes.append(time.thread_time() - drafted)
        return float(np.median(seconds) / np.median(passes))

    places = chance.integers(20, len(text), 100)
    assert of_a_pass([text[at - 20 : at].tolist() for at in places]) < 0.1
    assert of_a_pass([[0, 1, 1] for _ in range(30)]) < 1.0


def test_the_real_model_says_the_same_from_a_datastore(
    default_model: LlamaKVForCausalLM, default_tokenizer: Any, tmp_path: Path
) -> None:
    """Float32, quick questions: the datastore holds every other answer, and one it half knows."""
    questions = load_questions(ROOT / "data" / "quick" / "question.jsonl")[::4]
    prompts, answers = [], []
    for question in questions:
        messages = [{"role": "user", "content": question.turns[0]}]
        prompts.append(
            default_tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
        )
        plain = decode(
            default_model, prompts[-1], VanillaDrafter(), max_new_tokens=48, eos_token_ids=[2]
        )
        answers.append(plain.tokens)
    known = [*answers[::2], answers[1][:20]]
    drafter = RestDrafter(store_of(tmp_path / "answers.store", *known))
    lengths = []
    for prompt, answer in zip(prompts, answers, strict=True):
        found = decode(default_model, prompt, drafter, max_new_tokens=48, eos_token_ids=[2])
        assert found.tokens == answer
        lengths.append(found.mean_accepted_tokens)
    assert min(lengths[::2]) > 3
    assert lengths[1] > 1.2
