"""The proposers in vLLM itself, in an environment of its own: `sh test.sh full` makes it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from evaluation.asking.prompts import PromptFormat

from ..conftest import save_tiny

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("LOGITSPEC_VLLM", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON, reason="LOGITSPEC_VLLM names no python of an environment with vLLM"
    ),
    pytest.mark.timeout(1200),
]


def child(job: str, model: str, **variables: str) -> dict[str, Any]:
    """What vllm_child.py prints."""
    paths = [str(ROOT / "model"), str(Path(__file__).parent)]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING", **os.environ,
        "PYTHONPATH": os.pathsep.join(paths), **variables,
    }  # fmt: skip
    environment.pop("OMP_NUM_THREADS", None)
    command = [PYTHON, str(Path(__file__).with_name("vllm_child.py")), job, model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert done.returncode == 0 and found, done.stdout[-2000:] + done.stderr[-4000:]
    return dict(json.loads(found[-1].removeprefix("FOUND ")))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama whose heads vLLM can compute, and share among two ranks."""
    config = LlamaConfig(
        vocab_size=96, hidden_size=128, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return save_tiny(tmp_path_factory.mktemp("wide") / "wide-llama", config)


@pytest.mark.real
def test_answers_are_those_of_vllm_without_speculation(
    default_model_path: str, default_tokenizer: Any, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.json"
    lines = (ROOT / "data" / "quick" / "question.jsonl").read_text().splitlines()
    texts = [json.loads(line)["turns"][0] for line in lines][:10]
    template = PromptFormat(Path(default_model_path).name, default_tokenizer)
    asked = [template.start().ask(text)[:200] for text in texts]
    file.write_text(json.dumps(asked + asked[:4]))  # some again, which are in the prefix cache
    found = child("answers", default_model_path, LOGITSPEC_TEST_PROMPTS=str(file))
    none = found.pop("None")
    assert len(none["plain"]) == 14 and none["metrics"]["spec_decode_num_accepted_tokens"] == 0
    for name, own in found.items():
        kinds = ["plain", "penalized", "by a grammar", "to the end"]
        if name != "vllm_child.Blind":
            kinds.append("beside samples")
        for kind in kinds:
            assert own[kind] == none[kind], f"{kind}, {name}"
        assert own["metrics"]["spec_decode_num_accepted_tokens"] > 50, name
        places = own["metrics"]["places"]
        assert sum(places) == own["metrics"]["spec_decode_num_accepted_tokens"], name
        assert len(places) == 6 and sorted(places, reverse=True) == places, name
        assert own["metrics"]["num_preemptions"] > 0, name  # the cache is that small
        assert own["metrics"]["prefix_cache_hits"] > 0, name
    assert all(re.match("(Yes|No), because [a-z ]{20}", text) for text in none["texts"])
    assert len(none["to the end"][0]) == 512 - 480
    accepted = {n: own["metrics"]["spec_decode_num_accepted_tokens"] for n, own in found.items()}
    assert accepted["vllm_child.Steady"] > accepted["vllm_child.Blind"]
    drafted = {n: own["metrics"]["spec_decode_num_draft_tokens"] for n, own in found.items()}
    assert drafted["vllm_child.Even"] > 1.2 * drafted["vllm_child.Steady"]


def test_two_ranks_decode_alike(wide: str) -> None:
    found = child("two_ranks", wide)
    assert found["drafted"]["tokens"] == found["two"]["tokens"] == found["none"]["tokens"]
    assert found["drafted"]["metrics"]["spec_decode_num_accepted_tokens"] > 50


def test_a_thousand_requests_leave_nothing_behind(wide: str, tmp_path: Path) -> None:
    facts = tmp_path / "facts"
    found = child("load", wide, LOGITSPEC_TEST_FACTS=str(facts))
    assert found["ended"] > 600 and found["aborted"] > 50 and found["gone"] > 50
    assert found["answers"] > 200 and found["equal"] >= 0.99 * found["answers"]
    steps, rows, followed, idle, mib = zip(*found["facts"], strict=True)
    assert steps[-1] > 500
    assert all(own <= batch + 24 for own, batch in zip(followed, rows, strict=True))
    assert max(idle) + max(followed) <= 48  # cores of ended requests serve new ones
    half = len(mib) // 2
    assert max(mib[half:]) < max(mib[:half]) + 60, mib
