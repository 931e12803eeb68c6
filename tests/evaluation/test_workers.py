"""Several copies of the model in Ray workers: the same answers, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.faults import content
from evaluation.asking import workers as in_workers
from evaluation.asking.questions import Question
from evaluation.asking.settings import TargetSettings, WorkerSettings
from evaluation.asking.workers import Workers, find_workers, threads_per_worker
from evaluation.run import main
from evaluation.traces.reading import read_lines
from evaluation.traces.sidecars import meta_path
from model.logitspec import InputError

from ..conftest import question

pytest.importorskip("ray")
pytestmark = pytest.mark.workers
Make = Callable[..., Path]
ROOT = Path(__file__).parents[2]
DEADLY = """
import os, signal
from pathlib import Path
from model.logitspec import LogitSpecDrafter

class Deadly(LogitSpecDrafter):
    name = "deadly"
    summary = "Kills its process at the question with the word, as often as the file says."
    options = {}

    def __init__(self):
        super().__init__()
        self.marks = Path(os.environ["DEADLY_MARKS"])

    def reset(self, prompt_ids, top_ids=()):
        if len(prompt_ids) > 100 and len(list(self.marks.iterdir())) < int(os.environ["DEADLY"]):
            (self.marks / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().reset(prompt_ids, top_ids)
"""


def run(chat_path: str, *flags: str, methods: str = "vanilla,logitspec,baseline") -> int:
    return main(
        [
            "--methods", methods, "--model-path", chat_path, "--model-id", "m", "--bench-name",
            "mine", "--max-new-tokens", "12", "--device", "cpu", "--dtype", "float32",
            "--warmup", "0", *flags,
        ]
    )  # fmt: skip


def test_two_workers_write_the_trace_that_one_process_does(
    chat_path: str, make_bench: Make
) -> None:
    folder = make_bench(*(question(i, f"Question {i}?", "And then?") for i in range(7)))
    out = folder / "model_answer"
    assert run(chat_path, "--answer-dir", str(folder / "alone")) == 0
    assert run(chat_path, "--num-workers", "2") == 0
    for method in ("vanilla", "logitspec", "baseline"):
        name = f"m-{method}.jsonl"
        assert content(out / name) == content(folder / "alone" / name)
        threads = [
            e["threads"] for e in json.loads(meta_path(out / name).read_text())["environments"]
        ]
        assert threads == [max(1, len(os.sched_getaffinity(0)) // 2)]
    before = (out / "m-vanilla.jsonl").read_bytes()
    assert run(chat_path, "--num-workers", "2") == 0  # nothing is left to do
    assert (out / "m-vanilla.jsonl").read_bytes() == before


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "marks").mkdir()
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.setenv("DEADLY_MARKS", str(tmp_path / "marks"))
    return f"{tmp_path / 'deadly.py'}:Deadly"


def test_a_killed_workers_question_is_asked_again(
    chat_path: str,
    make_bench: Make,
    deadly: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DEADLY", "1")
    folder = make_bench(*(question(i, "Long? " * 100 if i == 2 else "Hi?") for i in range(5)))
    assert run(chat_path, "--num-workers", "2", methods=deadly) == 0
    said = capsys.readouterr().err
    assert said.count("a worker died of question 2") == 1
    answered, failed = read_lines(folder / "model_answer" / "m-deadly.jsonl")
    assert sorted(line["question_id"] for line in answered) == [0, 1, 2, 3, 4] and not failed


@pytest.mark.slow
def test_a_question_that_workers_die_of_is_given_up(
    chat_path: str,
    make_bench: Make,
    deadly: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DEADLY", "99")
    folder = make_bench(*(question(i, "Long? " * 100 if i == 1 else "Hi?") for i in range(3)))
    both = f"vanilla,{deadly}"
    assert run(chat_path, "--num-workers", "2", methods=both) == 3
    answered, failed = read_lines(folder / "model_answer" / "m-vanilla.jsonl")
    assert len(answered) == 3 and not failed  # who is beside it is not to blame
    assert capsys.readouterr().err.count("a worker died of question 1") == 3
    answered, failed = read_lines(folder / "model_answer" / "m-deadly.jsonl")
    assert sorted(line["question_id"] for line in answered) == [0, 2]
    assert [(line["question_id"], line["error"]) for line in failed] == [
        (1, "3 workers died of it")
    ]


@pytest.mark.slow
def test_what_stops_a_worker_stops_the_run_and_loses_nothing(
    chat_path: str, make_bench: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bench(question(0), question(1, "Who?", "Why? " * 600))
    assert run(chat_path, "--num-workers", "1", "--ray-address", "127.0.0.1:1", methods="pld") == 2
    assert "cannot connect to the Ray cluster at 127.0.0.1:1" in capsys.readouterr().err
    assert run(chat_path, "--num-workers", "1", "--ray-address", "auto", methods="pld") == 2
    assert "--ray-address auto is not HOST:PORT" in capsys.readouterr().err
    assert run(chat_path, "--num-workers", "2", "--strict", methods="pld") == 2
    assert "question 1: the prompt's" in capsys.readouterr().err
    answered, failed = read_lines(folder / "model_answer" / "m-pld.jsonl")
    assert [line["question_id"] for line in answered] in ([], [0]) and not failed


def test_workers_that_never_begin_are_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Ray whose machines are full: nothing that is awaited ever comes."""
    seconds = iter(range(0, 100_000, in_workers.NOTICE_SECONDS))
    full = SimpleNamespace(wait=lambda awaited, timeout: ([], awaited))
    monkeypatch.setattr(in_workers, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    jobs = [(Question(1, "qa", ("Hi?",)), ["vanilla"])]
    crew = in_workers.Crew(full, lambda: (None, object()), jobs, 2, strict=False)
    with pytest.raises(InputError, match="no worker could begin within 30 minutes"):
        list(crew.answers())
    assert capsys.readouterr().err.count("no worker has begun yet") == 1
    assert next(seconds) == in_workers.PATIENCE_SECONDS + 2 * in_workers.NOTICE_SECONDS


@pytest.fixture
def ray_address() -> Iterator[str]:
    """A cluster that somebody else has started."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    flags = ["--head", "--port", "6399", "--num-cpus", "2", "--include-dashboard", "false"]
    subprocess.run([*ray, "start", *flags], check=True, capture_output=True)
    yield "127.0.0.1:6399"
    subprocess.run([*ray, "stop", "--force"], check=True, capture_output=True)


@pytest.mark.slow
def test_a_cluster_by_its_address(chat_path: str, make_bench: Make, ray_address: str) -> None:
    folder = make_bench(*(question(i, f"Question {i}?") for i in range(4)))
    flags = ["--num-workers", "2", "--ray-address", ray_address]
    assert run(chat_path, *flags, methods="logitspec") == 0
    assert len(content(folder / "model_answer" / "m-logitspec.jsonl")) == 4


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "workers", "threads"),
    [
        ([node(CPU=2.0)], Workers(2, 0), 1),
        ([node(CPU=8.0)], Workers(3, 0), 2),
        ([node(CPU=3.0), node(CPU=5.0)], Workers(2, 0), 3),
        ([node(CPU=3.0), {"Alive": False, "Resources": {"CPU": 9.0}}], Workers(1, 0), 3),
        ([node(CPU=2.0), node(CPU=2.0)], Workers(5, 0), None),
        ([node(CPU=8.0, GPU=3.0), node(CPU=8.0, GPU=3.0)], Workers(2, 2), 0),
        ([node(CPU=8.0, GPU=3.0), node(CPU=8.0, GPU=3.0)], Workers(3, 2), None),
        ([node(CPU=8.0)], Workers(1, 1), None),
    ],
)
def test_workers_fit_on_the_machines(
    nodes: list[dict[str, Any]], workers: Workers, threads: int | None
) -> None:
    if threads is None:
        with pytest.raises(InputError, match="do not fit on"):
            threads_per_worker(nodes, workers)
    else:
        assert threads_per_worker(nodes, workers) == threads


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"num_workers": 2, "num_gpus_total": 2}, "--num-workers is for a CPU"),
        ({"num_workers": 2, "num_gpus_per_model": 2}, "--num-workers is for a CPU"),
        ({"num_gpus_total": 3, "num_gpus_per_model": 2}, "is no multiple of"),
        ({"num_gpus_total": 2, "device": "cpu"}, "asks for 2 copies of the model"),
        ({"num_gpus_total": 99, "device": "cuda"}, "ask for no more than that"),
        ({"ray_address": "x:1", "device": "cpu"}, "wants --num-workers"),
    ],
)
def test_flags_that_do_not_go_together(flags: dict[str, Any], complaint: str) -> None:
    of_target = {name: flags[name] for name in flags.keys() & {"num_gpus_per_model", "device"}}
    of_workers = {name: flags[name] for name in flags.keys() - of_target.keys()}
    with pytest.raises(InputError, match=complaint):
        find_workers(WorkerSettings(**of_workers), TargetSettings("x", **of_target))


@pytest.mark.slow
def test_sigterm_ends_a_run_of_workers(chat_path: str, make_bench: Make, tmp_path: Path) -> None:
    folder = make_bench(*(question(i, f"Question {i}?") for i in range(400)))
    trace = tmp_path / "t.jsonl"
    command = (
        "import sys, evaluation.asking.questions; from pathlib import Path; "
        f"evaluation.asking.questions.ROOT = Path({str(tmp_path)!r}); "
        "from evaluation.command.inference import inference_main; "
        "sys.exit(inference_main('logitspec', sys.argv[1:]))"
    )
    run = subprocess.Popen(
        [
            sys.executable, "-c", command, "--model-path", chat_path, "--model-id", "m",
            "--bench-name", "mine", "--device", "cpu", "--dtype", "float32", "--max-new-tokens",
            "100", "--num-workers", "2", "--answer-file", str(trace),
        ],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert folder.is_dir()
    deadline = time.time() + 120
    while (not trace.exists() or not trace.read_text()) and time.time() < deadline:
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and "run again, without --overwrite, to go on" in said
    assert "Traceback" not in said
    answered, failed = read_lines(trace)
    assert 0 < len(answered) < 400 and not failed
