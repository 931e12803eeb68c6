"""evaluation.equal: equal turns, differing turns and the logits there, nothing to compare."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evaluation import inference_vanilla
from evaluation.asking.questions import load_questions
from evaluation.equal import first_difference, main
from model.logitspec import load
from model.logitspec.prefill import last_logits

from ..conftest import question
from .test_traces import record


def write(path: Path, *ids: list[list[int]], text: str = "text") -> str:
    lines = [json.dumps(record(i, output_ids=t, turns=[text] * len(t))) for i, t in enumerate(ids)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_equal_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.jsonl", [[1, 2], [3]], [[4]])
    assert main([a, a, "--strict"]) == 0
    said = "3 of 3 turns equal (100.0%); mean matched prefix 1.3 of 1.3 tokens\n"
    assert capsys.readouterr().out == said


def test_the_number_1_and_the_text_1_are_two_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trace(name: str, *answers: tuple[int | str, list[int]]) -> str:
        lines = [json.dumps(record(i, output_ids=[ids])) for i, ids in answers]
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        return str(tmp_path / name)

    a = trace("a.jsonl", (1, [1, 2]), ("1", [1, 3]))
    assert main([a, a, "--strict"]) == 0
    assert "2 of 2 turns equal" in capsys.readouterr().out
    b = trace("b.jsonl", (1, [1, 2]), ("1", [1, 4]))
    assert main([a, b]) == 0
    out = capsys.readouterr().out
    assert 'question "1", choice 0, turn 0: differs from token 1 on: 3 against 4' in out
    assert "1 of 2 turns equal" in out
    c = trace("c.jsonl", (1, [1, 2]), ("x", [7]))
    assert main([a, c]) == 2
    assert 'the same turns: question "1", choice 0' in capsys.readouterr().err


def test_differences_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.jsonl", [[1, 2, 3], [3]], [[4]])
    b = write(tmp_path / "b.jsonl", [[1, 5, 3], [3]], [[4, 4]])
    assert main([a, b]) == 0
    assert main([a, b, "--strict"]) == 1
    out = capsys.readouterr().out
    assert "question 0, choice 0, turn 0: differs from token 1 on: 2 against 5\n" in out
    assert "question 1, choice 0, turn 0: differs from token 1 on: no more against 4\n" in out
    assert "1 of 3 turns equal (33.3%); mean matched prefix 1.0 of 1.7 tokens" in out


def test_a_turn_after_different_answers_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a.jsonl", [[1, 2], [3]])
    b = write(tmp_path / "b.jsonl", [[1, 5], [4]], text="another")
    assert main([a, b]) == 0
    assert "turn 1: differs, after different answers" in capsys.readouterr().out


def test_the_logits_where_two_traces_part(
    make_bench: Callable[..., Path],
    chat_path: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A second turn, so that the prompt must be rebuilt with the first answer in it."""
    folder = make_bench(question(1, "Who?", "Why?"))
    argv = ["--model-path", chat_path, "--model-id", "a", "--bench-name", "mine", "--warmup", "0",
            "--max-new-tokens", "9", "--dtype", "float32", "--device", "cpu"]  # fmt: skip
    assert inference_vanilla.main(argv) == 0
    a, b = (folder / "model_answer" / f"{name}.jsonl" for name in "ab")
    line = json.loads(a.read_text())
    ids = line["choices"][0]["output_ids"][1]
    common, right = ids[:4], ids[4]
    wrong = (right + 1) % 50
    line["choices"][0]["output_ids"][1] = [*common, wrong, 7]
    b.write_text(json.dumps(line) + "\n")
    capsys.readouterr()
    assert main([str(a), str(b), "--model-path", chat_path, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    found = re.search(r"differs from token 4 on: (\d+) against (\d+); logits (.*)", out)
    assert found is not None
    assert (int(found[1]), int(found[2])) == (right, wrong)
    numbers = [float(n) for n in re.findall(r"(-?\d+\.\d{4})", found[3])]
    assert numbers[0] - numbers[1] == pytest.approx(numbers[2], abs=2e-4)
    assert numbers[2] > 0  # greedy chose the larger one
    asked = load_questions(folder / "question.jsonl")[0]
    prompt = rebuilt_prompt(chat_path, asked.turns, line["choices"][0]["turns"][0])
    logits = last_logits(load(chat_path, dtype=torch.float32), [*prompt, *common])
    assert numbers[:2] == pytest.approx([float(logits[right]), float(logits[wrong])], abs=1e-3)

    (folder / "question.jsonl").write_text(json.dumps(question(1, "Who then?", "Why?")) + "\n")
    assert main([str(a), str(b), "--model-path", chat_path, "--device", "cpu"]) == 2
    assert "prepare those it was made with" in capsys.readouterr().err
    bare = write(tmp_path / "bare.jsonl", [[1]])
    other = write(tmp_path / "other.jsonl", [[2]])
    assert main([bare, other, "--model-path", chat_path]) == 2
    assert "leave out --model-path" in capsys.readouterr().err


def rebuilt_prompt(path: str, turns: tuple[str, ...], answer: str) -> list[int]:
    from transformers import AutoTokenizer

    messages = [
        {"role": "user", "content": turns[0]},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": turns[1]},
    ]
    ids = AutoTokenizer.from_pretrained(path).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    return list(ids)


def test_first_difference() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [1]) == 1
    assert first_difference([], [1]) == 0


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.jsonl", [[1]], [[2]])
    b = write(tmp_path / "b.jsonl", [[1]])
    assert main([a, b]) == 2
    assert "question 1, choice 0, turn 0 is in one only" in capsys.readouterr().err
    old = tmp_path / "old.jsonl"
    old.write_text(json.dumps(record(0)) + "\n")
    assert main([str(old), str(old)]) == 2
    assert "has no output_ids to compare" in capsys.readouterr().err
