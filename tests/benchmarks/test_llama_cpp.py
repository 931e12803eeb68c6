"""The contest with llama.cpp: a server that answers as one does, and what is made of answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import llama_cpp
from benchmarks.llama_summary import summary

from ..conftest import question

# What of a llama-server the benchmark asks for. It answers with the numbers from the prompt's
# length on, three a second; the mode ngram-mod is lacking, ngram-cache fails in the second answer.
SERVER = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
mode = flags["--spec-type"]
if mode == "ngram-mod":
    sys.exit("error: unknown --spec-type: ngram-mod")
asked = []
class Handler(BaseHTTPRequestHandler):
    def reply(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def do_GET(self):
        self.reply({{"/health": {{}}, "/slots": [{{"speculative": mode != "none"}}],
                     "/props": {{"build_info": "b1"}}}}[self.path])
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked.append(body)
        if mode == "ngram-cache" and len(asked) > 2:
            sys.exit("out of luck")
        n = len(body["prompt"])
        tokens = list(range(n, n + body["n_predict"]))
        ms = 1000 * len(tokens) / 3
        self.reply({{"tokens": tokens, "timings": {{"predicted_n": len(tokens), "prompt_n": n,
                     "prompt_ms": ms / 2, "predicted_ms": ms / 2}}}})
    def log_message(self, *_):
        pass
HTTPServer(("127.0.0.1", int(flags["--port"])), Handler).serve_forever()
"""
CLIENT = ["--bench-name", "mine", "--max-new-tokens", "6", "--methods", "vanilla,pld"]


@pytest.fixture
def server(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text(SERVER.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def model(chat_path: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint that is no GGUF file: the server here reads no weights."""
    monkeypatch.setattr(llama_cpp, "SUFFIX", "")
    return chat_path


@pytest.fixture
def argv(
    model: str, server: Path, make_bench: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> list[str]:
    make_bench(question(1, "How many?"), question(2, "Which ones are they?", "And then?"))
    return ["--model-path", model, "--llama-server", str(server), *CLIENT]


def test_engines_answer_in_turn_and_failures_lose_nothing(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    assert llama_cpp.main([*argv, "--json", str(file)]) == 3
    said = capsys.readouterr()
    assert "left out: this build of llama.cpp has no ngram-mod" in said.out
    assert "not all engines answered: llama.cpp ngram-cache: " in said.err
    content = json.loads(file.read_text())
    engines = [(row["question"], row["engine"]) for row in content["answers"]]
    theirs = [f"llama.cpp {mode}" for mode in ("none", "ngram-simple", "ngram-cache")]
    assert engines[:5] == [(1, name) for name in (*theirs, "vanilla", "pld")]
    # the second question begins with the second engine, and the third fails
    assert engines[5:] == [(2, name) for name in (theirs[1], "vanilla", "pld", theirs[0])]
    row = content["answers"][0]
    assert row["tokens"] == len(row["output_ids"]) == 6
    assert row["output_ids"][0] == row["prompt_tokens"]
    assert row["seconds"] == pytest.approx(2.0)
    by_engine = {row["engine"]: row for row in content["answers"][:5]}
    assert by_engine["pld"]["output_ids"] == by_engine["vanilla"]["output_ids"]
    assert content["engines"][0] == {"engine": theirs[0], "version": "llama-server b1"}

    again = llama_cpp.main([*argv, "--json", str(file)])  # only what is missing
    assert again == 0
    assert len(json.loads(file.read_text())["answers"]) == len(content["answers"]) + 1
    assert llama_cpp.main([*argv, "--threads", "3", "--json", str(file)]) == 2
    assert "was begun with other settings; move it away" in capsys.readouterr().err


def test_the_summary_by_hand() -> None:
    def row(engine: str, number: int, seconds: float, ids: list[int]) -> dict[str, Any]:
        facts = {"prompt_tokens": 10, "prompt_seconds": 1.0, "tokens": len(ids), "others": 0.0}
        return {
            "engine": engine,
            "question": number,
            "seconds": seconds,
            "output_ids": ids,
            **facts,
        }

    answers = [
        row("llama.cpp none", 1, 3.0, [7, 8, 9]),
        row("llama.cpp ngram-mod", 1, 2.0, [7, 8, 9]),
        row("vanilla", 1, 2.0, [7, 8, 8]),
        row("llama.cpp none", 2, 3.0, [5]),
        row("llama.cpp ngram-mod", 2, 8.0, [5]),
        row("vanilla", 2, 2.0, [5]),
        row("vanilla", 3, 2.0, [5]),  # only one has answered it, so it counts for none
    ]
    none, mod, vanilla = summary(answers)
    assert [r["questions"] for r in (none, mod, vanilla)] == [2, 2, 2]
    assert none["speed"] == 4 / 6 and none["median"] == pytest.approx((1 + 1 / 3) / 2)
    assert none["decoding"] == 4 / (2 + 2) and none["reading"] == 20 / 2
    assert none["over_plain"] == 1.0 and none["over_best"] == 1.0
    assert mod["over_best"] == pytest.approx((4 / 10) / (4 / 6))
    assert vanilla["over_plain"] == vanilla["over_best"] == pytest.approx(1.5)
    assert (none["same"], vanilla["same"]) == ("1 of 2", "2 of 2")
    assert none["agreed"] == 1.5  # of 2 and 1


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--modes", "none,eagle"], "--modes 'eagle' is not known; give all or none, ngram-simple"),
        (["--modes", "ngram-mod"], "this build of llama.cpp has no ngram-mod; leave it out of"),
        (["--llama-server", "/dev/null"], "--llama-server /dev/null is no program that can be run"),
        (["--llama-server", "/bin/false"], "llama.cpp none does not start: it ended with status 1"),
        (["--methods", "nought"], "no method 'nought'"),
    ],
)
def test_bad_input_is_one_sentence(
    argv: list[str], capsys: pytest.CaptureFixture[str], flags: list[str], problem: str
) -> None:
    assert llama_cpp.main([*argv, *flags]) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert problem in error
    assert all(line.startswith("measuring which kernels") for line in progress)


def test_only_gguf_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert llama_cpp.main(["--model-path", "checkpoints"]) == 2
    assert "checkpoints is no GGUF file, which llama.cpp needs" in capsys.readouterr().err


def test_without_xllamacpp_a_sentence_says_what_to_install(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.llama_server.find_spec", lambda _: None)
    assert llama_cpp.main(["--model-path", model, *CLIENT]) == 2
    assert "xllamacpp is not installed; pip install -e '.[llama]'" in capsys.readouterr().err
