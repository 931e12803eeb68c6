"""Whatever files, flags and requests hold: an answer or one sentence, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import datastore, prepare
from evaluation import demo, equal, record, replay, report, run, score, serve, speed, tables
from evaluation.asking.questions import load_questions
from evaluation.chatting.chat import Chat
from evaluation.chatting.server import make_app
from evaluation.traces.reading import read_lines
from evaluation.traces.sidecars import Sidecar
from evaluation.traces.writing import TraceWriter
from model.logitspec import InputError

from .serving import make_chat, serving
from .test_traces import record as trace_line

ALWAYS = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def spoilt(whole: Any) -> st.SearchStrategy[Any]:
    """A JSON value with some part of it replaced by another."""
    if isinstance(whole, dict) and whole:
        return (
            st.sampled_from(sorted(whole)).flatmap(
                lambda key: spoilt(whole[key]).map(lambda value: whole | {key: value})
            )
            | JSON
        )
    if isinstance(whole, list) and whole:
        return (
            st.integers(0, len(whole) - 1).flatmap(
                lambda at: spoilt(whole[at]).map(lambda v: [*whole[:at], v, *whole[at + 1 :]])
            )
            | JSON
        )
    return JSON | st.sampled_from([10**400, float("nan"), -1, 1e300, "\ud800", [], {}])


def lines_of(entry: Any) -> st.SearchStrategy[bytes]:
    """A file of JSON lines that is mostly right."""
    good = json.dumps(entry).encode()
    line = (
        st.just(good)
        | spoilt(entry).map(lambda value: json.dumps(value).encode())
        | st.binary(max_size=40)
        | st.integers(0, len(good)).map(lambda at: good[:at])
    )
    return st.lists(line, max_size=4).map(b"\n".join)


QUESTION = {"question_id": 1, "category": "qa", "turns": ["Who?", "Why?"]}


@ALWAYS
@given(content=lines_of(QUESTION))
def test_question_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    path.write_bytes(content)
    try:
        questions = load_questions(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert questions and all(turn for asked in questions for turn in asked.turns)


META = {
    "settings": {
        "bench_name": "mine", "questions": "q", "model": "m", "model_fingerprint": "f",
        "template": "t", "max_new_tokens": 9, "temperature": 0.0, "dtype": "float32",
        "device": "cpu", "num_gpus_per_model": 1, "method": "baseline",
    },
    "environments": [
        {"versions": {"torch": "2"}, "device_names": ["x"], "threads": 2, "platform": "Linux",
         "commit": "0123", "uncommitted_changes": False, "kernels": "plain", "workers": 1}
    ],
    "starts": [0],
}  # fmt: skip
ANSWER = trace_line(
    1, output_ids=[[5, 6, 7]], prompt_tokens=[4], tree_sizes=[[8, 3]], step_seconds=[[0.2, 0.3]],
    misses=[[0, 1]], next_next_ranks=[[0, -1]], verify_seconds=[0.4], draft_seconds=[None],
) | {"tstamp": 1.8e9}  # fmt: skip


@ALWAYS
@given(content=lines_of(ANSWER), meta=st.none() | spoilt(META))
def test_traces_and_their_sidecars(content: bytes, meta: Any, tmp_path: Path) -> None:
    path, base = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_bytes(content)
    base.write_text(json.dumps(ANSWER) + "\n")
    (tmp_path / "b.meta.json").write_text(json.dumps(META))
    (tmp_path / "a.meta.json").unlink(missing_ok=True)
    if meta is not None:
        (tmp_path / "a.meta.json").write_text(json.dumps(meta))
    for read in (read_lines, Sidecar.read):
        try:
            read(path)
        except InputError as error:
            assert "\n" not in str(error)
    assert speed.main(["--file-path", str(path), "--base-path", str(base)]) in (0, 2)
    assert tables.main([str(path), str(base)]) in (0, 2)
    assert tables.main([str(path), str(base), "--first-turns"]) in (0, 2)
    assert equal.main([str(path), str(base)]) in (0, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.report.draw_all", lambda *_, **__: [])
        assert report.main([str(path), str(base), "--output", str(tmp_path / "r.md")]) in (0, 2)
    try:
        TraceWriter(path, META["settings"], {}).close()  # type: ignore[arg-type]
    except InputError as error:
        assert "\n" not in str(error)


FLAGS = (
    "--model-path", "--model-id", "--bench-name", "--methods", "--dtype", "--device",
    "--temperature", "--top-p", "--top-k", "--min-p", "--seed", "--num-choices", "--num-workers",
    "--num-gpus-total", "--num-gpus-per-model", "--question-begin", "--question-stride",
    "--max-new-tokens", "--draft-tree-capacity", "--cpu-kernels", "--cuda-graphs", "--warmup",
    "--answer-dir", "--step-cost", "--strict", "--overwrite", "--conv-template", "--recording",
    "--grid", "--prompt", "--port", "--host", "--queue", "--from", "--file-path", "--base-path",
    "--ray-address", "--output", "--method", "--list", "--help", "--no-such-flag", "--plain",
    "--run-code",
)  # fmt: skip
VALUES = (
    "0", "1", "-1", "2", "99999999999999999999", "1e400", "nan", "x", "", "../x", "./a/b", "é",
    "\udcff", "auto", "cpu", "cuda:7", "logitspec", "logitspec@0", "calibrated@auto",
    "no.py:Class", "./nowhere", "quick", "float32", "127.0.0.1", "name=1,2", "=", "--", "-",
)  # fmt: skip
WORDS = st.text(st.characters(exclude_characters="\0"), max_size=6)  # no process is given a NUL
COMMANDS: dict[str, Any] = {
    "run": run.main, "serve": serve.main, "demo": demo.main, "record": record.main,
    "replay": replay.main, "speed": speed.main, "tables": tables.main, "equal": equal.main,
    "prepare": prepare.main, "score": score.main, "datastore": datastore.main,
}  # fmt: skip
NEEDED = {
    "run": ["--model-path", "./no/model", "--model-id", "m", "--methods", "vanilla"],
    "serve": ["--model-path", "./no/model", "--port", "0"],
    "demo": ["--model-path", "./no/model"],
    "record": ["--model-path", "./no/model", "--output", "no"],
    "replay": ["--recording", "no"],
    "speed": ["--file-path", "no", "--base-path", "no"],
    "tables": ["no"],
    "equal": ["no", "no"],
    "prepare": ["spec_bench", "--from", "no/folder"],
    "score": ["no"],
    "datastore": ["no", "--output", "out", "--model-path", "./no/model"],
}


@pytest.mark.parametrize("command", COMMANDS)
@settings(parent=ALWAYS, max_examples=60)
@given(
    words=st.lists(
        st.tuples(st.sampled_from(FLAGS), st.sampled_from(VALUES))
        | st.tuples(st.sampled_from(FLAGS) | st.sampled_from(VALUES) | WORDS),
        max_size=3,
    ).map(lambda parts: [word for part in parts for word in part]),
    needed=st.booleans(),
)
def test_flags(
    command: str, words: list[str], needed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No model and no recording is there, so every command ends before its work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evaluation.asking.questions.ROOT", tmp_path)
    monkeypatch.setattr("data.prepare.DATA", tmp_path)
    monkeypatch.setattr("data.fetching.download", lambda *_: pytest.fail("nothing to be fetched"))
    monkeypatch.setattr("data.prepare.prepare_default_model", lambda _: tmp_path)
    try:
        status = COMMANDS[command]([*(NEEDED[command] if needed else ()), *words])
    except SystemExit as exit_:
        status = exit_.code
    assert status in (0, 2)


@pytest.fixture(scope="module")
def address(chat_path: str) -> Iterator[str]:
    chat: Chat = make_chat(chat_path)
    with serving(make_app(chat, "tiny", 4)) as address:
        yield address
    chat.close()


CHAT = {
    "model": "tiny", "max_tokens": 2, "temperature": 0.5, "seed": 1, "stop": ["x"], "top_p": 0.5,
    "messages": [{"role": "user", "content": "Hi"}], "stream": False,
}  # fmt: skip
TEXT = {"model": "tiny", "max_tokens": 2, "prompt": [5, 6], "stream": False, "top_k": 3}


@settings(parent=ALWAYS, max_examples=120)
@given(
    asked=st.one_of(
        spoilt(CHAT).map(lambda body: ("/v1/chat/completions", json.dumps(body).encode())),
        spoilt(TEXT).map(lambda body: ("/v1/completions", json.dumps(body).encode())),
        st.binary(max_size=60).map(lambda body: ("/v1/completions", body)),
    )
)
def test_requests(asked: tuple[str, bytes], address: str) -> None:
    path, body = asked
    answer = httpx.post(address + path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
