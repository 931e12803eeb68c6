"""data.datastore: what is read, what is refused, and that nothing torn is left behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import datastore
from evaluation.asking import documents
from evaluation.run import main as run
from model.logitspec import InputError
from model.logitspec.datastore import Datastore, open_datastore

from ..conftest import question

pytest.importorskip("pydivsufsort")

Build = Callable[..., int]


@pytest.fixture
def build(chat_path: str, tmp_path: Path) -> Build:
    """build(*files): exit status of building tmp_path/store; tuples are name and content."""

    def call(*files: Any, output: str = "store") -> int:
        argv = []
        for file in files:
            if isinstance(file, tuple):
                (tmp_path / file[0]).write_bytes(file[1].encode())
                file = tmp_path / file[0]
            argv.append(str(file))
        out = str(tmp_path / output)
        return datastore.main([*argv, "--output", out, "--model-path", chat_path])

    return call


def read(store: Datastore) -> list[list[int]]:
    """The documents of a datastore, whose suffixes are in order."""
    tokens = store.tokens.tolist()
    suffixes = store.suffixes.tolist()
    assert suffixes == sorted(range(len(tokens)), key=lambda at: tokens[at:])
    documents: list[list[int]] = [[]]
    for token in tokens:
        if token < 0:
            documents.append([])
        else:
            documents[-1].append(token)
    assert documents.pop() == []
    return documents


def lines(*entries: Any) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def test_texts_of_every_form(
    build: Build, tmp_path: Path, default_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = lines(
        {"text": "one"},
        {"content": "two", "size": 3},
        {"question_id": 1, "category": "qa", "turns": ["three", "four"]},
        {"id": "x", "data": ["five", "six"]},
        {"messages": [{"role": "user", "content": "seven"}, {"role": "a", "content": "eight"}]},
        {"conversations": [{"from": "human", "value": "nine"}]},
        {"text": ""},
    )
    assert build(("a.py", "def ten():\n    pass\n"), ("b.jsonl", corpus + "\n")) == 0
    wanted = ["def ten():\n    pass\n", "one", "two", "three", "four", "five", "six", "seven"]
    found = read(open_datastore(str(tmp_path / "store")))
    assert [default_tokenizer.decode(ids) for ids in found] == [*wanted, "eight", "nine"]
    assert "tokens in 10 documents" in capsys.readouterr().out


def test_answers_of_a_trace_are_its_own_tokens(
    build: Build, tmp_path: Path, chat_path: str, make_bench: Callable[..., Path]
) -> None:
    trace = make_bench(question(1, "Who?", "Why?")) / "model_answer" / "x-vanilla.jsonl"
    argv = ["--methods", "vanilla", "--model-path", chat_path, "--model-id", "x", "--warmup", "0"]
    argv += ["--bench-name", "mine", "--max-new-tokens", "9", "--dtype", "float32"]
    assert run(argv) == 0
    choice = json.loads(trace.read_text())["choices"][0]
    assert build(trace) == 0
    assert read(open_datastore(str(tmp_path / "store"))) == choice["output_ids"]
    meta = trace.with_name("x-vanilla.meta.json")
    content = json.loads(meta.read_text())
    content["settings"]["tokenizer_fingerprint"] = "another"
    meta.write_text(json.dumps(content))
    assert build(trace) == 0
    others = open_datastore(str(tmp_path / "store"))
    assert len(read(others)) == 2  # the answers' texts, tokenized

    store = ["--datastore", str(tmp_path / "store")]
    assert run([*argv[2:], "--methods", "rest", *store]) == 0
    rest = json.loads(trace.with_name("x-rest.jsonl").read_text())["choices"][0]
    assert rest["output_ids"] == choice["output_ids"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (("a.txt", ""), "the files hold no token"),
        (("a.jsonl", ""), "the files hold no token"),
        (("a.jsonl", lines({"error": "x", "question_id": 1, "category": "c", "model_id": "m"})),
         "the files hold no token"),
        (("a.jsonl", "{"), "a.jsonl:1 is not JSON; a line has"),
        (("a.jsonl", lines({"text": "x"}, ["x"])), "a.jsonl:2 holds no text; a line has"),
        (("a.jsonl", lines({"text": 3})), "a.jsonl:1 holds no text"),
        (("a.jsonl", lines({"messages": [{"content": [1]}]})), "a.jsonl:1 holds no text; a line"),
        (("a.jsonl", lines({"messages": ["x", 1]})), "a.jsonl:1 holds no text"),
        (("a.jsonl", lines({"text": "\ud800"})), "half a surrogate pair"),
        (("a.jsonl", lines({"choices": []})), "a.jsonl:1 has no 'question_id'; it is no trace"),
        ("/nowhere/x.txt", "no file /nowhere/x.txt; give text files"),
        (sys.executable, "is not UTF-8 text"),
    ],
)  # fmt: skip
def test_bad_input(
    build: Build, tmp_path: Path, file: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(file) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("python -m data.datastore: ")
    assert "Traceback" not in error
    assert not (tmp_path / "store").exists()
    assert build(("c.txt", "x"), output="c.txt") == 2
    assert "is one of the files to read" in capsys.readouterr().err


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["text", "turns", "data", "messages", "content", "choices", "error"]),
            inner,
        )
    ),
    max_leaves=6,
)


@given(JSON.map(json.dumps) | st.text(max_size=5))
def test_any_line_gives_documents_or_one_sentence(line: str) -> None:
    for with_ids in (False, True):
        try:
            for document in documents.in_line(line.encode(), "a:1", with_ids=with_ids):
                assert isinstance(document, str) or all(token >= 0 for token in document)
        except InputError as error:
            assert str(error).startswith("a:1 ")


def test_the_package_that_sorts_is_named(
    build: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)
    assert build(("a.txt", "x")) == 2
    assert "`pip install -e '.[datastore]'` installs it" in capsys.readouterr().err


def test_ctrl_c_leaves_the_old_datastore_and_nothing_else(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build(("a.txt", "x y z")) == 0
    before = (tmp_path / "store").read_bytes()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("evaluation.command.files.os.fsync", interrupted)
        assert build(("a.txt", "a b c")) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "store"]
    assert (tmp_path / "store").read_bytes() == before
    assert build(("a.txt", "a b c")) == 0
    assert (tmp_path / "store").read_bytes() != before
