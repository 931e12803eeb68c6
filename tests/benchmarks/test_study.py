"""The study's variants of the method calibrated, and what measures them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import calibration, fit_prior, study
from model.logitspec import LlamaKVForCausalLM, VanillaDrafter, decode
from model.logitspec.drafters.calibrated.foresight import ForesightTable
from model.logitspec.drafters.calibrated.prior import PRIOR, SAMPLED_PRIOR
from model.logitspec.sizing.measuring import MeasuredModel

from ..conftest import question

PROMPT = [1, 5, 9, 5, 9, 7]


@pytest.mark.parametrize("name", study.VARIANTS)
def test_a_variant_changes_accept_lengths_at_most(tiny: LlamaKVForCausalLM, name: str) -> None:
    wanted = decode(tiny, PROMPT, VanillaDrafter(), max_new_tokens=60).tokens
    drafter = study.VARIANTS[name](12)
    for _ in range(2):
        assert decode(tiny, PROMPT, drafter, max_new_tokens=60).tokens == wanted
    assert len(drafter.path_probabilities) > 1
    assert all(0 < path <= 1 for path in drafter.path_probabilities)


@pytest.mark.parametrize("name", [name for name in study.VARIANTS if name != "as it is"])
def test_a_variant_is_one(tiny: LlamaKVForCausalLM, name: str) -> None:
    """It drafts other trees, or the same ones with other probabilities."""

    def paths(name: str) -> list[list[float]]:
        drafter = study.VARIANTS[name](96)
        drafter.prepare(MeasuredModel(tiny))
        found = []
        context = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 6, 1, 2, 3, 4, 8, 9, 1, 2, 3, 4]
        for _ in range(2):
            drafter.reset(context, [[(t + i) % 90 for i in range(2, 10)] for t in context])
            for step, root in enumerate((8, 9, 1, 2, 3, 4, 1, 2, 8, 9, 1, 2, 5, 1, 2, 7, 1, 2)):
                top = [root, *range(20, 84)][: drafter.top_k]
                tree = drafter.draft(root, top)
                found.append([*drafter.path_probabilities, *map(float, tree.tokens)])
                width = drafter.node_top_k
                after = [[(t + i + step) % 90 for i in range(width)] for t in tree.tokens]
                drafter.observe(tree, [0, 1] if len(tree) > 1 else [0], after)
        return found

    assert paths(name) != paths("as it is")


def test_the_commands(
    chat_path: str,
    make_bench: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_bench(question(1, "Hello?", "And?"), question(2, "Who?"))
    shared = ["--model-path", chat_path, "--bench-name", "mine", "--max-new-tokens", "20"]
    before = PRIOR.read_bytes()
    prior = tmp_path / "prior.json"
    assert fit_prior.main([*shared, "--output", str(prior), "--rounds", "1"]) == 0
    assert PRIOR.read_bytes() == before
    assert json.loads(prior.read_text()).keys() == json.loads(before).keys()
    sampled = [*shared, "--output", str(prior), "--rounds", "2", "--sampled"]
    assert fit_prior.main([*sampled, "--draft-tree-capacity", "9"]) == 0
    fitted = json.loads(prior.read_text())
    assert fitted.keys() == json.loads(SAMPLED_PRIOR.read_text()).keys()
    shares = ForesightTable(fitted["foresight"]).first_share
    assert ((shares > 0) & (shares < 1)).all()
    plot, figures = tmp_path / "x.png", tmp_path / "x.json"
    assert calibration.main([*shared, "--question-stride", "1", "--plot", str(plot)]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    some = ["--variants", "as it is,no prior", "--capacities", "8", "--question-stride", "1"]
    assert study.main([*shared, *some, "--json", str(figures)]) == 0
    rows = json.loads(figures.read_text())["variants"]
    assert [row["variant"] for row in rows] == ["as it is", "no prior"]
    assert rows[0]["tokens"] == rows[1]["tokens"]
    said = capsys.readouterr().out
    assert "expected calibration error" in said and "no prior" in said
    assert study.main([*shared, "--variants", "nonsense"]) == 2


def test_the_standard_error_is_how_far_the_ratio_scatters() -> None:
    chance = np.random.default_rng(0)
    expected = chance.uniform(1, 5, 200)
    found = [calibration.beside(expected, expected + chance.normal(0, 2, 200)) for _ in range(400)]
    assert found[0]["steps"] == 200
    scatter = np.std([each["ratio"] for each in found])
    assert np.mean([each["noise"] for each in found]) == pytest.approx(scatter, rel=0.1)
    assert np.mean([each["ratio"] for each in found]) == pytest.approx(1, abs=scatter / 5)


def test_a_better_feature_has_a_lower_loss() -> None:
    chance = np.random.default_rng(0)
    told = chance.integers(0, 2, 4000)
    right = (chance.random(4000) < 0.1 + 0.8 * told).astype(float)
    test = np.arange(4000) % 2 == 1

    def log_loss(x: fit_prior.Floats) -> float:
        ones = np.ones(int((~test).sum()))
        p = 1 / (1 + np.exp(-x[test] @ fit_prior.newton(x[~test], ones, right[~test])))
        return float(-np.log(np.where(right[test] > 0, p, 1 - p)).sum())

    nothing = np.ones((4000, 1))
    assert log_loss(np.column_stack([nothing, told])) < 0.6 * log_loss(nothing)
