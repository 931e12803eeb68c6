"""Runs that are killed, stopped, starved of disk or locked out: nothing measured is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import Trials, content, descendants, small_disk
from evaluation.traces.sidecars import meta_path
from model.logitspec import InputError

from ..conftest import question

ROOT = Path(__file__).parents[2]
# Imports everything once; a run is then a fork, so that it is killed where it works.
HATCHERY = """
import json, os, resource, signal, sys
from pathlib import Path
import evaluation.asking.questions, evaluation.asking.workers
from evaluation.command.inference import inference_main
import model.logitspec
root = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is ignored
evaluation.asking.questions.ROOT = root
for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        os.dup2(os.open(root / "said.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        os.dup2(2, 1)
        if asked["size"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["size"], asked["size"]))
        status = inference_main("logitspec", asked["argv"])
        sys.stdout.flush()
        os._exit(status)
    print(child, flush=True)
"""


class Hatchery:
    """Begins runs of inference_logitspec on benchmark `mine` of a folder."""

    def __init__(self, root: Path, model: str) -> None:
        self.root = root
        self._argv = ["--model-path", model, "--model-id", "m", "--bench-name", "mine", "--device"]
        self._argv += ["cpu", "--dtype", "float32", "--max-new-tokens", "10", "--warmup", "0"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", HATCHERY, str(root)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def ask(self, **asked: Any) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, trace: Path, *flags: str, size: int = 0) -> Run:
        pid = self.ask(argv=[*self._argv, "--answer-file", str(trace), *flags], size=size)
        return Run(self, pid)

    @property
    def said(self) -> str:
        return (self.root / "said.txt").read_text()

    def close(self) -> None:
        self._process.communicate()


class Run:
    """As much of subprocess.Popen as Trials uses."""

    def __init__(self, hatchery: Hatchery, pid: int) -> None:
        self._hatchery = hatchery
        self._status: int | None = None
        self.pid = pid

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout or 0)
        while timeout is not None and self._alive():
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("run", timeout)
            time.sleep(0.002)
        if self._status is None:
            self._status = self._hatchery.ask(wait=self.pid)
        return self._status

    def _alive(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


@pytest.fixture(scope="module")
def hatchery(chat_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hatchery]:
    root = tmp_path_factory.mktemp("faults")
    (root / "data" / "mine").mkdir(parents=True)
    questions = [question(i, f"Question {i}?", "And then?") for i in range(10)]
    lines = "".join(f"{json.dumps(asked)}\n" for asked in questions)
    (root / "data" / "mine" / "question.jsonl").write_text(lines)
    hatchery = Hatchery(root, chat_path)
    yield hatchery
    hatchery.close()


@pytest.fixture(scope="module")
def whole(hatchery: Hatchery) -> tuple[dict[Any, str], float]:
    """An undisturbed run's answers, and how long it takes."""
    trace = hatchery.root / "whole.jsonl"
    assert hatchery.start(trace).wait() == 0
    begin = time.monotonic()
    assert hatchery.start(trace, "--overwrite").wait() == 0
    return content(trace), time.monotonic() - begin


def test_killed_at_20_random_moments_it_loses_nothing(
    hatchery: Hatchery, whole: tuple[dict[Any, str], float], tmp_path: Path
) -> None:
    answers, seconds = whole
    assert len(answers) == 10
    trials = Trials(hatchery.start, tmp_path, answers)  # type: ignore[arg-type]
    chance = random.Random(0)
    for _ in range(20):
        # a run that goes on has less to do than a whole one
        trials.one(chance.uniform(0, 0.7) * seconds, lambda run: run.send_signal(signal.SIGKILL))
    trials.finish()
    assert (trials.tried, trials.lost, trials.differing) == (20, 0, 0)
    assert trials.hit >= 10 and trials.exits["-9"] == trials.hit


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_at_random_moments_it_says_how_to_go_on(
    hatchery: Hatchery, whole: tuple[dict[Any, str], float], tmp_path: Path, number: signal.Signals
) -> None:
    answers, seconds = whole
    trials = Trials(hatchery.start, tmp_path, answers)  # type: ignore[arg-type]
    chance = random.Random(1)
    for _ in range(6):
        trials.one(chance.uniform(0.3, 0.9) * seconds, lambda run: run.send_signal(number))
        if trials.exits.total() > trials.exits["0"]:
            assert "Traceback" not in hatchery.said
    trials.finish()
    assert (trials.lost, trials.differing) == (0, 0)
    assert trials.exits["130"] > 0 and set(trials.exits) <= {"0", "130"}


def test_a_stopped_run_tells_so(hatchery: Hatchery, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    run = hatchery.start(trace, "--max-new-tokens", "40")
    while not content(trace):
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    assert run.wait() == 130
    assert "interrupted; what is finished is on disk: run again, without" in hatchery.said


@pytest.mark.parametrize("size", [2_000, 5_000])
def test_a_file_that_must_not_grow_keeps_whole_lines(
    hatchery: Hatchery, whole: tuple[dict[Any, str], float], tmp_path: Path, size: int
) -> None:
    """A limit on the file's size breaks a write in the middle, as a full disk does."""
    trace = tmp_path / "t.jsonl"
    assert hatchery.start(trace, size=size).wait() == 2
    assert "make room and run again, without --overwrite, to go on" in hatchery.said
    kept = content(trace)
    assert len(kept) < 10 and trace.read_bytes().endswith(b"\n" if kept else b"")
    assert trace.stat().st_size <= size
    assert hatchery.start(trace).wait() == 0
    found = content(trace)
    assert found == whole[0] and kept.items() <= found.items()


def test_a_full_disk_and_one_that_is_read_only(
    hatchery: Hatchery, whole: tuple[dict[Any, str], float]
) -> None:
    try:
        with small_disk(64) as disk:
            trace = disk / "t.jsonl"
            (disk / "ballast").write_bytes(bytes(52_000))
            assert hatchery.start(trace).wait() == 2
            assert "No space left on device; make room and run again" in hatchery.said
            kept = content(trace)
            (disk / "ballast").unlink()
            assert hatchery.start(trace).wait() == 0
            assert content(trace) == whole[0] and kept.items() <= content(trace).items()
            before = trace.read_bytes()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            assert hatchery.start(trace, "--overwrite").wait() == 2
            assert hatchery.start(disk / "new" / "t.jsonl").wait() == 2
            assert "cannot write the answer file" in hatchery.said
            assert "Read-only file system" in hatchery.said
            assert trace.read_bytes() == before
    except InputError as error:
        pytest.skip(str(error))


def test_a_second_run_is_refused_while_the_first_writes(hatchery: Hatchery, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    first = hatchery.start(trace, "--max-new-tokens", "40")
    while not content(trace):
        time.sleep(0.01)
    assert hatchery.start(trace, "--max-new-tokens", "40").wait() == 2
    assert f"another run is writing {trace}" in hatchery.said
    assert first.wait() == 0
    assert len(content(trace)) == 10 and meta_path(trace).is_file()


def test_a_lost_answer_would_be_counted(tmp_path: Path) -> None:
    """The books themselves: a run that drops a line, and one that changes one."""

    def line(number: int, text: str = "x") -> str:
        return json.dumps({"question_id": number, "answer_id": "a", "tstamp": 1, "text": text})

    class Done:
        def __init__(self, trace: Path, *lines: str) -> None:
            trace.write_text("".join(f"{line}\n" for line in lines))

        def wait(self, timeout: float | None = None) -> int:
            return 0

    whole_trace = tmp_path / "whole.jsonl"
    Done(whole_trace, line(1), line(2))
    starts: list[Any] = [
        lambda trace: Done(trace, line(1, "other"), line(2)),
        lambda trace: Done(trace, line(1)),
    ]
    trials = Trials(lambda trace: starts.pop(0)(trace), tmp_path, content(whole_trace))
    trials.one(1.0, lambda run: None)
    assert (trials.lost, trials.differing) == (0, 1)
    Done(trials.trace, line(1), line(2))
    trials.one(1.0, lambda run: None)
    assert (trials.lost, trials.differing) == (1, 2)


def test_processes_of_processes_are_found() -> None:
    nested = "import subprocess, sys; subprocess.run(['sleep', '30'])"
    with subprocess.Popen([sys.executable, "-c", nested]) as process:
        deadline = time.monotonic() + 20
        while not descendants(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        found = descendants(process.pid)
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        process.kill()
    assert len(found) == 1 and found[0] != process.pid
