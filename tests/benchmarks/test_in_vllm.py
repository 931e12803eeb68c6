"""The contest inside vLLM: a server that answers as one does, and what is made of answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import in_vllm, report
from benchmarks.vllm_server import COUNTED, VllmServer, python_path, read_metrics
from model.logitspec.instruction_set import cpu_info

from ..conftest import question

# What of a vLLM server the benchmark asks for. It answers with the numbers from the prompt's
# length on; with the method suffix the last token is another, and half of its tokens were drafted.
SERVER = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
method = json.loads(flags.get("--speculative-config", "{{}}")).get("method", "none")
if method == "ngram":
    sys.exit("x\\nValueError: there is no ngram today: none")
counted = dict(tokens=0, accepted=0)
class Handler(BaseHTTPRequestHandler):
    def reply(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        if self.path == "/metrics":
            lines = ["# HELP vllm:generation_tokens_total tokens"]
            for name, value in [("generation", counted["tokens"]), ("spec_decode_num_draft",
                    2 * counted["accepted"]), ("spec_decode_num_accepted", counted["accepted"])]:
                lines.append(f'vllm:{{name}}_tokens_total{{{{engine="0"}}}} {{value}}.0')
            self.reply("\\n".join(lines) + "\\n")
        else:
            self.reply(json.dumps({{"version": "0.32.0"}}))
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        n, new = len(body["prompt"]), body["max_tokens"]
        tokens = list(range(n, n + new))
        if method == "suffix":
            tokens[-1] = 0
            counted["accepted"] += new // 2
        counted["tokens"] += new
        self.reply(json.dumps({{"choices": [{{"token_ids": tokens}}]}}))
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("127.0.0.1", int(flags["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    path = tmp_path / "python-with-vllm"
    path.write_text(SERVER.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def argv(
    chat_path: str,
    python: Path,
    make_bench: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    monkeypatch.setattr("benchmarks.vllm_server.SETTLING", 0.0)
    make_bench(*(question(n, f"What is {n}?") for n in range(12)))
    flags = ["--benches", "mine", "--max-new-tokens", "6", "--rounds", "2", "--prompts", "2", "3"]
    flags += ["--concurrency", "1", "2", "--model-path", chat_path]
    return [*flags, "--vllm-python", str(python)]


def test_no_method_is_late_in_all_rounds(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[list[str]] = []
    ask_turn = in_vllm.ask_turn

    def watched(args: Any, servers: Any, names: list[str], *more: Any) -> None:
        orders.append(names)
        ask_turn(args, servers, names, *more)

    monkeypatch.setattr(in_vllm, "ask_turn", watched)
    assert in_vllm.main([*argv, "--methods", "none,suffix,calibrated"]) == 0
    assert [names[0] for names in orders] == ["none", "suffix", "suffix", "calibrated"]
    assert all(sorted(names) == ["calibrated", "none", "suffix"] for names in orders)


def test_servers_take_turns_and_all_is_counted(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "results"
    folder.mkdir()
    file = folder / "vllm-mine.json"
    assert in_vllm.main([*argv, "--methods", "none,suffix,calibrated", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["engine"] == [{"vllm": "0.32.0"}]
    cells = content["cells"]
    assert [(row["round"], row["concurrency"], row["method"]) for row in cells[:4]] == [
        (0, 1, "none"), (0, 1, "suffix"), (0, 1, "calibrated"), (0, 2, "none"),
    ]  # fmt: skip
    assert len(cells) == 2 * 2 * 3
    by = {(row["method"], row["concurrency"]): row for row in cells if row["round"] == 1}
    assert by["suffix", 2]["tokens"] == 3 * 6
    assert by["suffix", 2]["equal"] == 0 and by["calibrated", 2]["equal"] == 3
    assert by["suffix", 2]["mat"] == 2.0 and by["suffix", 2]["right"] == 0.5
    assert by["none", 1]["mat"] == 1.0
    assert in_vllm.main([*argv, "--json", str(file)]) == 2
    assert "is there already" in capsys.readouterr().err
    page = tmp_path / "page.md"
    assert report.main([str(folder), "--output", str(page)]) == 0
    assert "vLLM 0.32.0" in page.read_text() and "| suffix |" in page.read_text()
    assert (tmp_path / "page" / "vllm-mine.png").exists()


def test_on_a_gpu_servers_share_its_memory_and_none_stands_still(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*argv, "--methods", "none,suffix", "--device", "cuda"]
    if not torch.cuda.is_available():
        assert in_vllm.main(asked) == 2
        assert "cuda" in capsys.readouterr().err.splitlines()[-1]
    given: list[list[str]] = []

    class Server(VllmServer):
        def __init__(self, python: str, model: str, some: Any, flags: Sequence[str], *more: Any):
            given.append([*flags])
            super().__init__(python, model, some, flags, *more)

    monkeypatch.setattr(in_vllm, "resolve_device", lambda name: name)
    monkeypatch.setattr(in_vllm, "VllmServer", Server)
    monkeypatch.setattr(VllmServer, "pause", lambda _: pytest.fail("it stood still"))
    assert in_vllm.main(asked) == 0
    assert "medians over the rounds" in capsys.readouterr().out
    for flags in given:
        assert flags[flags.index("--gpu-memory-utilization") + 1] == "0.45"
        assert "--kv-cache-memory-bytes" in flags
    assert len(given) == 2


def test_one_server_begins_with_a_state(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Any] = []

    class Server(VllmServer):
        def __init__(self, *some: Any) -> None:
            given.append(some[-1])
            super().__init__(*some)

    monkeypatch.setattr(in_vllm, "VllmServer", Server)
    state = tmp_path / "rows.npz"
    state.touch()
    methods = "none,calibrated,calibrated warm"
    assert in_vllm.main([*argv, "--methods", methods, "--evidence", str(state)]) == 0
    assert given == [{}, {}, {"LOGITSPEC_EVIDENCE": str(state)}]


def test_a_server_takes_the_kernels_of_a_lower_instruction_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In each of its processes torch says that the CPU has no more."""
    if "avx512f" not in cpu_info("flags").split():
        pytest.skip("this CPU has no AVX-512")
    asked = "import torch; print(torch.cpu._is_avx512_supported())"
    for isa, said in ((None, "True"), ("avx512", "True"), ("avx2", "False")):
        if isa is None:
            monkeypatch.delenv("LOGITSPEC_ISA", raising=False)
        else:
            monkeypatch.setenv("LOGITSPEC_ISA", isa)
        environment = {**os.environ, "PYTHONPATH": python_path()}
        command = [sys.executable, "-c", asked]
        assert subprocess.check_output(command, env=environment, text=True).strip() == said


def test_the_summary_by_hand() -> None:
    def cell(method: str, number: int, seconds: float, accepted: float) -> dict[str, Any]:
        return {
            "method": method, "concurrency": 4, "round": number, "speed": 10 / seconds,
            "tokens": 10, "accepted": accepted, "drafted": 2 * accepted, "equal": 1, "answers": 1,
        }  # fmt: skip

    rows = in_vllm.summary(
        [
            cell("none", 0, 1.0, 0), cell("ngram", 0, 2.0, 1), cell("suffix", 0, 0.5, 2),
            cell("calibrated", 0, 0.4, 5), cell("logitspec", 0, 0.1, 5),
            cell("none", 1, 2.0, 0), cell("ngram", 1, 2.0, 1), cell("suffix", 1, 4.0, 2),
            cell("calibrated", 1, 1.0, 5), cell("logitspec", 1, 0.1, 5),
        ]
    )  # fmt: skip
    found = {row["method"]: row for row in rows}
    assert found["calibrated"]["over_none"] == pytest.approx((2.5 + 2) / 2)
    # suffix is the best in the first round, none and ngram are in the second; ours do not count
    assert found["calibrated"]["over_best"] == pytest.approx((1.25 + 2) / 2)
    assert found["suffix"]["over_best"] == pytest.approx((2 + 0.5) / 2)
    assert found["calibrated"]["mat"] == 2.0 and found["calibrated"]["right"] == 0.5
    assert found["none"]["over_best"] == pytest.approx((0.5 + 1) / 2)


def test_metrics_are_sums_over_engines() -> None:
    text = f'{COUNTED["accepted"]}{{engine="0"}} 3.0\n{COUNTED["accepted"]}{{engine="1"}} 4.0\n'
    assert read_metrics(text)["accepted"] == 7.0
    assert read_metrics("")["generated"] == 0.0


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--methods", "calibrated,none"], "give none first, then of ngram, ngram tuned, suffix"),
        (["--methods", "none,eagle"], "--methods none,eagle: give none first"),
        (["--methods", "none,calibrated warm"], "'calibrated warm', and there is no --evidence"),
        (["--evidence", "/nowhere.npz"], "--evidence /nowhere.npz is no file; give one"),
        (["--prompts", "2"], "--prompts has 1 numbers for 2 of --concurrency; give one for each"),
        (["--rounds", "9"], "have 12 of at most 400 tokens; ask fewer"),
        (["--most-prompt-tokens", "1"], "have 0 of at most 1 tokens; ask fewer"),
        (["--vllm-python", "/nowhere"], "--vllm-python /nowhere is no program"),
        (["--vllm-python", "/bin/false"], "vLLM does not start: it ended with status 1"),
        (["--methods", "none,ngram"], "ValueError: there is no ngram today"),
    ],
)
def test_bad_input_is_one_sentence(
    argv: list[str], capsys: pytest.CaptureFixture[str], flags: list[str], problem: str
) -> None:
    assert in_vllm.main([*argv, *flags]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert problem in error
