"""data.prepare: what becomes of the sources of each set. Small sources of the same form."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from data import prepare
from data.questions import prepare_answers, prepare_questions
from data.sets import FILES, LONG_BENCH_PROMPTS, SETS
from evaluation.asking.questions import load_questions


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Sources:
    """A directory for --from; what it holds counts as published."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._patch = monkeypatch

    def add(self, name: str, content: bytes) -> None:
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self._patch.setitem(FILES, name, FILES[name]._replace(sha256=digest, bytes=len(content)))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    return Sources(tmp_path / "from", monkeypatch)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_problem_is_asked_with_a_form_for_its_answer_or_plain(
    sources: Sources, tmp_path: Path
) -> None:
    problem = "What is $\\frac{{a}}{b}$ of {problem}?"
    sources.add("raw/math500.jsonl", lines({"problem": problem, "answer": "\\pi", "level": 2}))
    data = tmp_path / "data"
    path = prepare_questions("math500", sources.folder, data)
    assert path == data / "math500" / "question.jsonl"
    (row,) = rows_of(path)
    prompt = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert row == {
        "question_id": 1, "category": "math_reasoning", "turns": [problem + prompt],
        "answer": "\\pi",
    }  # fmt: skip
    plain = prepare_questions("math500", sources.folder, data, plain=True)
    assert plain == data / "math500-plain" / "question.jsonl"
    assert rows_of(plain) == [row | {"turns": [problem]}]
    (sources.folder / "raw" / "math500.jsonl").unlink()
    assert prepare_questions("math500", None, data) == path  # from the copy that was kept


def test_two_papers_become_one_set(sources: Sources, tmp_path: Path) -> None:
    for paper, answer in (("I", "070"), ("II", "468")):
        row = {"id": f"{paper}-1", "problem": f"Paper {paper}?", "answer": answer}
        sources.add(f"raw/aime25-{paper}.jsonl", lines(row))
    one, two = load_questions(prepare_questions("aime25", sources.folder, tmp_path))
    assert (one.question_id, two.question_id) == (1, 2)
    assert (one.answer, two.answer) == ("070", "468")
    assert two.turns[0].startswith("Paper II?\n\nThe answer is an integer from 0 to 999. Please")


def test_a_changed_question_file_is_not_overwritten(sources: Sources, tmp_path: Path) -> None:
    sources.add("raw/aime24.jsonl", lines({"problem": "1 + 1?", "answer": "2"}))
    path = prepare_questions("aime24", sources.folder, tmp_path)
    path.write_text("mine\n")
    with pytest.raises(prepare.InputError, match="move it away first"):
        prepare_questions("aime24", sources.folder, tmp_path)
    assert path.read_text() == "mine\n"


def test_racers_sets_are_taken_as_they_are(sources: Sources, tmp_path: Path) -> None:
    content = b'{"question_id":1,  "category": "reasoning", "turns": ["x"], "level": "Level 1"}\n'
    sources.add("raw/racer_math.jsonl", content)
    assert prepare_questions("racer_math", sources.folder, tmp_path).read_bytes() == content


def test_the_archive_of_longbench(sources: Sources, tmp_path: Path) -> None:
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for task in ("narrativeqa", *LONG_BENCH_PROMPTS):
            row = {"context": f"A {task} {{input}}.", "input": "Why?", "answers": ["b", "c"]}
            out.writestr(f"data/{task}.jsonl", lines(row, row))
    sources.add("raw/longbench.zip", archive.read_bytes())
    rows = rows_of(prepare_questions("longbench", sources.folder, tmp_path / "data"))
    assert [row["question_id"] for row in rows] == [*range(1, 11)]
    assert [row["category"] for row in rows[::2]] == [
        "gov_report", "qmsum", "multi_news", "lcc", "repobench-p",
    ]  # fmt: skip
    assert all(row["reference"] == ["b", "c"] and "answer" not in row for row in rows)
    assert "\nReport:\nA gov_report {input}.\n\nNow, write" in rows[0]["turns"][0]
    assert rows[2]["turns"][0].endswith("Query: Why?\nAnswer:")
    asked = "Please complete the code given below. \nA repobench-p {input}.Why?Next line of code:\n"
    assert rows[8]["turns"] == [asked]


def test_a_report_has_a_summary_to_compare_with(sources: Sources, tmp_path: Path) -> None:
    sources.add("raw/govreport_2K.jsonl", lines({"text": "Summarize {this}.", "answer": "Short."}))
    (row,) = rows_of(prepare_questions("govreport_2k", sources.folder, tmp_path))
    assert row["turns"] == ["Summarize {this}."]
    assert row["reference"] == ["Short."] and "answer" not in row


def test_gsm8ks_answers_are_found_by_their_questions(sources: Sources, tmp_path: Path) -> None:
    example = "Q: What is two and two?\nA: The answer is 4.\n\n"
    asked = ("Why,  not?", "Is it so?", "Unknown?")
    questions = [
        {"question_id": at, "category": "math", "turns": [f"{example}Q: {text}\nA:"]}
        for at, text in enumerate(asked)
    ]
    sources.add("gsm8k/question.jsonl", lines(*questions))
    solutions = {"What is two and two?": "4", "Is it so?": "so it is\n#### 7", "Why, not?": "8"}
    rows = [{"question": text, "answer": answer} for text, answer in solutions.items()]
    sources.add("raw/gsm8k_test.jsonl", lines(*rows))
    path = prepare_questions("gsm8k", sources.folder, tmp_path)
    prepare_answers("gsm8k", path, sources.folder)
    assert rows_of(path.with_name("answers.jsonl"))[:2] == [
        {"question_id": 0, "answer": "8"},
        {"question_id": 1, "answer": "so it is\n#### 7"},
    ]


def test_mgsms_answers_are_found_by_their_questions(sources: Sources, tmp_path: Path) -> None:
    asked = ["珍妮特有几颗蛋？", "多少匹布料？"]
    rows = [
        {"question_id": at, "category": "reasoning", "turns": [text]}
        for at, text in enumerate(asked, start=1)
    ]
    sources.add("raw/mgsm_zh.jsonl", lines(*rows))
    sources.add("raw/mgsm_zh.tsv", f"{asked[1]}\t3\n{asked[0]}\t1,800\n别的？\t9\n".encode())
    for plain in (False, True):
        path = prepare_questions("mgsm_zh", sources.folder, tmp_path, plain=plain)
        prepare_answers("mgsm_zh", path, sources.folder)
        assert [row["answer"] for row in rows_of(path.with_name("answers.jsonl"))] == ["1,800", "3"]
        (first, _) = rows_of(path)
        assert first["turns"][0].startswith(asked[0])
        assert first["turns"][0].endswith("？" if plain else "放在 \\boxed{} 中。")


def test_humanevals_tests_are_in_the_order_of_its_questions(
    sources: Sources, tmp_path: Path
) -> None:
    sources.add(
        "humaneval/question.jsonl",
        lines({"question_id": 1, "category": "code", "turns": ["def f():"]}),
    )
    row = {"prompt": "def f():", "entry_point": "f", "test": "def check(f): ...", "task_id": "0"}
    sources.add("raw/HumanEval.jsonl.gz", gzip.compress(lines(row)))
    path = prepare_questions("humaneval", sources.folder, tmp_path)
    prepare_answers("humaneval", path, sources.folder)
    del row["task_id"]
    assert rows_of(path.with_name("answers.jsonl")) == [{"question_id": 1} | row]


def test_questions_without_their_answers_are_prepared_and_said_to_be(
    sources: Sources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"question_id": 1, "category": "math", "turns": ["Q: Why?\nA:"]}
    sources.add("gsm8k/question.jsonl", lines(row))
    monkeypatch.setattr(prepare, "DATA", tmp_path)
    assert prepare.main(["gsm8k", "--from", str(sources.folder)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'gsm8k' / 'question.jsonl'}\n"
    assert said.err.startswith("gsm8k cannot be scored: no file ") and said.err.count("\n") == 1


def test_every_set_names_files_of_the_table() -> None:
    for name, wanted in SETS.items():
        assert all(part.file in FILES for part in wanted.parts), name
        assert wanted.key is None or wanted.key.file in FILES
        assert name == "mt_bench" or all(
            part.prompt or part.file in (f"{name}/question.jsonl", f"raw/{name}.jsonl")
            for part in wanted.parts
        )


def test_eval_sh_fetches_every_set() -> None:
    script = (Path(prepare.ROOT) / "eval.sh").read_text().partition('case "$bench" in')[2]
    fetched = set(re.findall(r"[\w-]+(?= \||\))", script.partition("esac")[0]))
    assert fetched == SETS.keys() | {f"{name}-plain" for name in SETS if SETS[name].plain}
