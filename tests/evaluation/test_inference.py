"""The inference scripts, in process, on a small random model: traces, resuming, bad input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from evaluation.equal import main as equal
from evaluation.speed import main as speed

from ..conftest import question, save_tiny
from .conftest import SCRIPTS

Make = Callable[..., Path]


def answers(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "model_answer" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_traces_of_baseline_and_logitspec(inference: Callable[..., int], make_bench: Make) -> None:
    folder = make_bench(question(1, "Who?", "Why?", category="writing"), question(5, "Where?"))
    assert inference("baseline") == 0
    assert inference("logitspec", "--num-choices", "2") == 0
    base, ours = answers(folder, "baseline"), answers(folder, "logitspec")
    assert [r["question_id"] for r in ours] == [1, 5]
    for record in base + ours:
        assert record["model_id"] in SCRIPTS
        assert record["answer_id"]
        assert record["tstamp"] > 1.7e9
        assert [c["index"] for c in record["choices"]] == list(range(len(record["choices"])))
        for choice in record["choices"]:
            count = 2 if record["question_id"] == 1 else 1
            per_turn = {k: v for k, v in choice.items() if k not in ("index", "accept_lengths")}
            assert all(len(values) == count for values in per_turn.values())
            assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"])
            assert sum(choice["decoding_steps"]) == len(choice["accept_lengths"])
            assert [len(ids) for ids in choice["output_ids"]] == choice["new_tokens"]
            assert [len(sizes) for sizes in choice["tree_sizes"]] == choice["decoding_steps"]
            assert all(0 < n <= 12 for n in choice["new_tokens"])
            assert all(s > 0 for s in choice["wall_time"])
            if record["model_id"] == "logitspec":
                for turn, steps in enumerate(choice["decoding_steps"]):
                    assert len(choice["misses"][turn]) == len(choice["step_seconds"][turn]) == steps
                    assert 0 < sum(choice["step_seconds"][turn]) <= choice["wall_time"][turn]
                    assert steps - 1 <= len(choice["next_next_ranks"][turn]) <= steps
    first = ours[0]["choices"][0]
    assert first["prompt_tokens"][1] > first["prompt_tokens"][0] + first["new_tokens"][0]
    spent = sum(first[f"{phase}_seconds"][0] for phase in ("prefill", "draft", "verify", "commit"))
    assert 0.3 * first["wall_time"][0] < spent <= first["wall_time"][0]
    assert base[0]["choices"][0]["verify_seconds"] == [None, None]  # generate() does not tell
    for old, new in zip(base, ours, strict=True):
        for choice in new["choices"]:
            assert choice["output_ids"] == old["choices"][0]["output_ids"]


def test_a_sidecar_says_all_that_an_answer_comes_of(
    inference: Callable[..., int], make_bench: Make, chat_path: str
) -> None:
    folder = make_bench(question(1))
    assert inference("logitspec", "--max-ngram-size", "2") == 0
    meta = json.loads((folder / "model_answer" / "logitspec.meta.json").read_text())
    settings, (environment,) = meta["settings"], meta["environments"]
    assert (
        settings["questions"]
        == hashlib.sha256((folder / "question.jsonl").read_bytes()).hexdigest()
    )
    assert len(settings["model_fingerprint"]) == len(settings["tokenizer_fingerprint"]) == 64
    expected = {"dtype": "float32", "device": "cpu", "max_ngram_size": 2, "temperature": 0.0}
    assert expected.items() <= settings.items()
    assert environment["versions"].keys() >= {"python", "torch", "transformers"}
    assert environment["device_names"] and environment["model_path"] == chat_path
    assert environment.keys() >= {"commit", "uncommitted_changes", "threads", "kernels"}


def test_the_loop_with_one_node_is_a_baseline_too(
    inference: Callable[..., int], make_bench: Make
) -> None:
    folder = make_bench(question(1))
    assert inference("baseline") == 0
    assert inference("baseline", "--engine", "kv", "--model-id", "kv") == 0
    traces = [str(folder / "model_answer" / f"{name}.jsonl") for name in ("baseline", "kv")]
    assert equal(traces) == 0
    assert speed(["--file-path", traces[1], "--base-path", traces[0]]) == 0
    assert answers(folder, "kv")[0]["choices"][0]["verify_seconds"][0] > 0


def test_a_rerun_does_what_is_missing(
    inference: Callable[..., int], make_bench: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bench(*(question(i, f"Question {i}?") for i in range(4)))
    assert inference("logitspec", "--question-begin", "1", "--question-end", "3") == 0
    assert [r["question_id"] for r in answers(folder, "logitspec")] == [1, 2]
    before = answers(folder, "logitspec")
    assert inference("logitspec") == 0
    after = answers(folder, "logitspec")
    assert after[:2] == before
    assert [r["question_id"] for r in after] == [1, 2, 0, 3]
    capsys.readouterr()
    assert inference("logitspec") == 0
    assert "0 of 4 answers to give" in capsys.readouterr().out
    assert answers(folder, "logitspec") == after


def test_other_settings_need_overwrite(
    inference: Callable[..., int], make_bench: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bench(question(1))
    assert inference("logitspec") == 0
    assert inference("logitspec", "--draft_tree_capacity", "8") == 2
    assert "draft_tree_capacity 64, now it is 8" in capsys.readouterr().err
    assert inference("logitspec", "--draft_tree_capacity=8", "--overwrite") == 0
    meta = json.loads((folder / "model_answer" / "logitspec.meta.json").read_text())
    assert meta["settings"]["draft_tree_capacity"] == 8
    assert meta["environments"][0]["versions"]["torch"]


def test_long_prompts_can_be_given_what_is_left(
    inference: Callable[..., int], make_bench: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """512 positions; the second turn's prompt holds the first turn's answer."""
    folder = make_bench(question(1, "Who? " * 90, "Why?"))
    assert inference("logitspec", "--max-new-tokens", "200") == 3
    assert "--cap-new-tokens makes do with what is left" in capsys.readouterr().err
    assert inference("logitspec", "--max-new-tokens", "200", "--cap-new-tokens") == 0
    failed, answered = answers(folder, "logitspec")
    choice = answered["choices"][0]
    said = f"the prompt's {choice['prompt_tokens'][1]} tokens and max_new_tokens 200 exceed"
    assert failed["error"].startswith(said)
    for prompt, new in zip(choice["prompt_tokens"], choice["new_tokens"], strict=True):
        assert new <= min(200, 512 - prompt)
    assert choice["prompt_tokens"][1] + choice["new_tokens"][1] == 512


def test_a_later_turn_that_is_too_long_can_be_gone_on_with(
    inference: Callable[..., int], make_bench: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bench(question(1), question(2, "Who? " * 60, "Why? " * 40))
    assert inference("logitspec", "--max-new-tokens", "150", "--strict") == 2
    assert "question 2: the prompt's" in capsys.readouterr().err
    assert [r["question_id"] for r in answers(folder, "logitspec")] == [1]
    assert inference("logitspec", "--max-new-tokens", "150", "--cap-new-tokens") == 0
    assert [r["question_id"] for r in answers(folder, "logitspec")] == [1, 2]


@pytest.mark.parametrize("capacity", ["1", "7"])
def test_a_capacity_below_num_pred_tokens_works(
    inference: Callable[..., int], make_bench: Make, capacity: str
) -> None:
    folder = make_bench(question(1))
    assert inference("baseline") == 0
    assert inference("logitspec", "--draft-tree-capacity", capacity, "--num-pred-tokens", "20") == 0
    choice = answers(folder, "logitspec")[0]["choices"][0]
    assert max(choice["tree_sizes"][0]) <= int(capacity)
    assert choice["output_ids"] == answers(folder, "baseline")[0]["choices"][0]["output_ids"]


def test_a_fastchat_template_and_another_answer_file(
    inference: Callable[..., int],
    make_bench: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_bench(question(1, "Who?", "Why?"))
    out = tmp_path / "elsewhere" / "a.jsonl"
    assert inference("logitspec", "--conv-template", "vicuna_v1.1", "--answer-file", str(out)) == 0
    assert "FastChat's template vicuna_v1.1" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["choices"][0]["turns"]) == 2


def test_ctrl_c_keeps_what_is_finished(
    inference: Callable[..., int],
    make_bench: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from evaluation.asking.answering import Answerer

    folder = make_bench(*(question(i) for i in range(3)))
    answer = Answerer.answer

    def interrupted(self: Answerer, asked: Any) -> dict[str, Any]:
        if asked.question_id == 2:
            raise KeyboardInterrupt
        return answer(self, asked)

    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "answer", interrupted)
        assert inference("logitspec") == 130
    assert "run again, without --overwrite, to go on" in capsys.readouterr().err
    assert [r["question_id"] for r in answers(folder, "logitspec")] == [0, 1]
    assert inference("logitspec") == 0
    assert [r["question_id"] for r in answers(folder, "logitspec")] == [0, 1, 2]


def test_a_question_that_fails_is_noted_and_the_run_goes_on(
    inference: Callable[..., int],
    make_bench: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from evaluation.asking.engines import KVEngine

    folder = make_bench(*(question(i, f"Question {i}?") for i in range(5)))
    generate = KVEngine.generate
    errors: list[Exception] = [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        ZeroDivisionError("division by zero"),
    ]

    def failing(self: KVEngine, *args: Any, **options: Any) -> Any:
        result = generate(self, *args, **options)
        if errors and len(asked) > 0 and len(asked) < 4:
            asked.append(0)
            raise errors.pop(0)
        asked.append(0)
        return result

    asked: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(KVEngine, "generate", failing)
        assert inference("logitspec", "--warmup", "0") == 3
    said = capsys.readouterr().err
    assert "questions that could not be answered, of logitspec: 3 (the first is 1: out of" in said
    assert "Traceback" not in said
    lines = answers(folder, "logitspec")
    assert [line["question_id"] for line in lines] == [0, 1, 2, 3, 4]
    assert ["error" in line for line in lines] == [False, True, True, True, False]
    assert lines[3]["error"] == "ZeroDivisionError: division by zero"
    whole = json.dumps(lines[4]["choices"][0]["output_ids"])

    assert inference("logitspec", "--warmup", "0") == 0  # tries the three again
    lines = answers(folder, "logitspec")
    assert len(lines) == 8 and json.dumps(lines[4]["choices"][0]["output_ids"]) == whole
    assert {line["question_id"] for line in lines[5:]} == {1, 2, 3}


@pytest.mark.parametrize(
    ("flags", "error", "reason"),
    [
        (["--strict"], ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zer"),
        ([], RuntimeError("CUDA error: an illegal memory access"), "CUDA error: an illegal memory"),
    ],
)
def test_what_stops_a_run_leaves_no_line_for_the_rest(
    flags: list[str],
    error: Exception,
    reason: str,
    inference: Callable[..., int],
    make_bench: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--strict, and a CUDA context that is broken: every further question would fail."""
    from evaluation.asking.engines import KVEngine

    folder = make_bench(*(question(i) for i in range(3)))
    generate = KVEngine.generate
    asked: list[int] = []

    def failing(self: KVEngine, *args: Any, **options: Any) -> Any:
        asked.append(0)
        if len(asked) > 1:
            raise error
        return generate(self, *args, **options)

    monkeypatch.setattr(KVEngine, "generate", failing)
    assert inference("logitspec", *flags) == 2
    said = capsys.readouterr().err
    assert "question 1: " in said and reason in said and "Traceback" not in said
    assert [line["question_id"] for line in answers(folder, "logitspec")] == [0]


def test_questions_that_are_too_long_are_left_out(
    inference: Callable[..., int], make_bench: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bench(question(1, "Who? " * 600), question(2), question(3, "Why?", "So? " * 600))
    assert inference("logitspec") == 3
    said = capsys.readouterr()
    assert "1 of 3 questions cannot be answered, the first is question 1: the prompt's" in said.out
    assert "logitspec: 2 (the first is 1: the prompt's" in said.err
    assert ["error" in line for line in answers(folder, "logitspec")] == [True, False, True]
    assert inference("logitspec", "--overwrite", "--strict") == 2
    assert "question 1: the prompt's" in capsys.readouterr().err
    assert len(answers(folder, "logitspec")) == 3  # refused before anything was begun anew


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model-path", "/nowhere/model"], "no model directory '/nowhere/model'"),
        (["--model-path", "tests/nothing"], "no model directory 'tests/nothing'"),
        (["--model-path", ""], "no model directory ''"),
        (["--bench-name", "nothing"], "no benchmark 'nothing'"),
        (["--bench-name", "../mine"], "'../mine' is not a plain name"),
        (["--question-begin", "2"], "questions 2 to 2 (--question-begin, --question-end)"),
        (["--question-begin", "-1"], "questions -1 to 2"),
        (["--question-end", "3"], "questions 0 to 3"),
        (["--question-begin", "1", "--question-end", "1"], "are no slice of the 2 in"),
        (["--max-new-tokens", "0"], "'0' is not a whole number of 1 or more"),
        (["--max-new-tokens", "500"], "question 1: the prompt's"),
        (["--dtype", "float8"], "dtype 'float8' is not known"),
        (["--device", "tpu"], "device 'tpu' is not known"),
        (["--temperature", "-0.7"], "temperature is -0.7; give 0, which is greedy"),
        (["--conv-template", "nonsense"], "FastChat has no template 'nonsense'"),
        (["--answer-file", "/dev/null/a.jsonl"], "cannot write the answer file"),
        (["--num-gpus-total", "3", "--num-gpus-per-model", "2"], "is no multiple of"),
        (["--answer-file", "QUESTIONS"], "is the question file; choose another"),
        (["--seed", "100000000000000000000"], "is not a whole number from 0 to"),
        (["--conv-template", "gemini"], "the template gemini gives no prompt"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_input(
    script: str,
    flags: list[str],
    message: str,
    inference: Callable[..., int],
    make_bench: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_bench(question(1), question(2))
    flags = [flag.replace("QUESTIONS", str(folder / "question.jsonl")) for flag in flags]
    assert inference(script, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("knob", ["max-ngram-size", "num_pred_tokens", "draft-tree-capacity"])
def test_knobs_below_one_are_refused(
    knob: str, inference: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert inference("logitspec", f"--{knob}", "0") == 2
    assert "'0' is not a whole number" in capsys.readouterr().err


def test_cuda_where_there_is_none_is_refused(
    inference: Callable[..., int],
    make_bench: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_bench(question(1))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert inference("logitspec", "--device", "cuda") == 2
    assert "torch sees 0 here" in capsys.readouterr().err
    assert inference("logitspec", "--num-gpus-total", "2") == 2
    assert (
        "asks for 2 copies of the model, --device cpu has room for one" in capsys.readouterr().err
    )
    assert inference("logitspec", "--num-gpus-total", "2", "--device", "auto") == 2
    assert "--num-gpus-total is 2, torch sees 0 GPU(s) here" in capsys.readouterr().err


def test_another_architecture_is_refused(
    inference: Callable[..., int],
    make_bench: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_bench(question(1))
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    path = save_tiny(tmp_path / "gpt2", config, GPT2LMHeadModel)
    assert inference("logitspec", model=path) == 2
    assert "'gpt2'; supported are llama, mistral, qwen2, qwen3" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), [("{", "question.jsonl:2 is not JSON"), ("", "")])
def test_bad_questions_are_refused(
    content: str,
    message: str,
    inference: Callable[..., int],
    make_bench: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_bench(question(1), content)
    if not content:
        (folder / "question.jsonl").write_text("")
        message = "holds no questions"
    assert inference("logitspec") == 2
    assert message in capsys.readouterr().err
