"""TraceWriter: resuming, repairing, refusing; read_trace: what a trace line must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.command.files import write_atomically
from evaluation.traces.reading import read_lines, read_trace
from evaluation.traces.sidecars import meta_path
from evaluation.traces.writing import TraceWriter
from model.logitspec import InputError

SETTINGS = {"method": "logitspec", "dtype": "float32"}


def record(question_id: int | str, **changes: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "turns": ["text"],
        "decoding_steps": [2],
        "new_tokens": [3],
        "wall_time": [0.5],
        "accept_lengths": [2, 1],
    }
    return {
        "question_id": question_id,
        "category": "qa",
        "model_id": "m",
        "choices": [choice | changes],
    }


def writer(path: Path, overwrite: bool = False, **changes: str) -> TraceWriter:
    return TraceWriter(path, SETTINGS | changes, {"device": "x"}, overwrite=overwrite)


def test_a_rerun_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    first = writer(path)
    assert first.done == []
    first.write(record(1))
    first.close()
    second = writer(path)
    assert second.done == [1]
    second.write(record(2))
    second.close()
    assert [r["question_id"] for r in read_trace(path)] == [1, 2]
    third = TraceWriter(path, SETTINGS, {"device": "y"})  # nothing comes of it yet
    meta = json.loads(meta_path(path).read_text())
    assert meta["settings"] == SETTINGS and meta["environments"] == [{"device": "x"}]
    assert meta["starts"] == [0, 1] and meta["restored"] == []
    third.write(record(3))
    third.write(record(4))
    meta = json.loads(meta_path(path).read_text())
    assert meta["environments"] == [{"device": "x"}, {"device": "y"}]
    assert meta["starts"] == [0, 1, 2]


def test_two_runs_cannot_write_one_trace(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = writer(path)
    first.write(record(1))
    for overwrite in (False, True):
        with pytest.raises(InputError, match="another run is writing"):
            writer(path, overwrite=overwrite)
    first.write(record(2))
    assert len(read_trace(path)) == 2
    first.close()
    again = writer(path, overwrite=True)
    with pytest.raises(InputError, match="another run is writing"):
        writer(path)
    again.write(record(1))


def test_a_trace_that_is_taken_away_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    trace = writer(path)
    trace.write(record(1))
    path.rename(tmp_path / "b.jsonl")
    with pytest.raises(InputError, match="was moved or deleted"):
        trace.write(record(2))
    path.write_text("")
    with pytest.raises(InputError, match="was moved or deleted"):
        trace.write(record(2))
    assert len(read_trace(tmp_path / "b.jsonl")) == 1


def failure(question_id: int, reason: str = "out of memory") -> dict[str, Any]:
    return {"question_id": question_id, "category": "qa", "model_id": "m", "error": reason}


def test_a_failure_is_a_line_that_an_answer_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    trace = writer(path)
    for line in (record(1), failure(2), failure(3), failure(2)):
        trace.write(line)
    assert trace.done == [1] and trace.failed == dict.fromkeys((2, 3), "out of memory")
    assert len(path.read_text().splitlines()) == 3  # the same failure again says nothing new
    trace.write(failure(2, "too long"))
    trace.close()
    again = writer(path)
    assert again.done == [1] and again.failed == {2: "too long", 3: "out of memory"}
    again.write(record(2))
    answered, failed = read_lines(path)
    assert [line["question_id"] for line in answered] == [1, 2]
    assert [line["question_id"] for line in failed] == [3]
    assert again.done == [1, 2] and again.failed == {3: "out of memory"}


def test_a_trace_of_failures_alone_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    writer(path).write(failure(1))
    with pytest.raises(InputError, match=r"no question was answered .*: out of memory"):
        read_trace(path)


def test_an_interrupted_write_leaves_no_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    trace = writer(path)
    trace.write(record(1))
    before = path.read_bytes()

    def interrupted(fd: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.fsync", interrupted)
        trace.write(record(2))
    assert path.read_bytes() == before and trace.done == [1]


@pytest.mark.parametrize("kept", [1, 30, 60])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.jsonl"
    writer(path).write(record(1))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    assert writer(path).done == [1]
    assert path.read_bytes() == whole


def test_other_settings_are_refused_unless_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    writer(path).write(record(1))
    with pytest.raises(InputError, match="made with dtype 'float32', now it is 'float16'"):
        writer(path, dtype="float16")
    assert writer(path).done == [1]
    assert writer(path, overwrite=True, dtype="float16").done == []
    assert path.read_bytes() == b""
    assert read_trace(path.with_name("a.jsonl.bak"))[0]["question_id"] == 1


def test_overwriting_twice_keeps_the_last_answers_and_their_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    writer(path).write(record(1))
    for _ in range(2):  # the second time there is nothing worth keeping
        writer(path, overwrite=True)
    assert read_trace(tmp_path / "a.jsonl.bak")
    assert json.loads((tmp_path / "a.meta.json.bak").read_text())["settings"] == SETTINGS


def test_a_directory_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot write the answer file"):
        writer(tmp_path / "folder", overwrite=True)
    assert (tmp_path / "folder" / "inside").is_dir()


def test_line_separators_inside_an_answer_do_not_end_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = "one\u2028two\u2029three\u0085four\nfive\x0csix"
    writer(path).write(record(1, turns=[text]))
    assert read_trace(path)[0]["choices"][0]["turns"] == [text]
    assert writer(path).done == [1]


def test_half_surrogate_pairs_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    writer(path).write(failure(1, "no file \udcff: é😀"))
    assert read_lines(path)[1][0]["error"] == "no file \udcff: é😀"
    path.read_text(encoding="utf-8")
    write_atomically(path, {"files": ["\ud800", "é"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"files": ["\ud800", "é"]}


def test_every_trace_has_a_sidecar_of_its_own(tmp_path: Path) -> None:
    names = ("run-v1.3", "run-v1.4", "run.json", "run.jsonl")
    assert len({meta_path(tmp_path / name) for name in names}) == len(names)


@pytest.mark.parametrize("sidecar", ["", "3", '{"settings": 3, "environments": []}'])
def test_a_broken_sidecar_is_refused(tmp_path: Path, sidecar: str) -> None:
    path = tmp_path / "a.jsonl"
    writer(path).write(record(1))
    meta_path(path).write_text(sidecar)
    with pytest.raises(InputError, match="without a readable"):
        writer(path)


def test_a_file_of_unknown_making_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record(1)) + "\n")
    with pytest.raises(InputError, match=r"without a readable a\.meta\.json"):
        writer(path)
    assert read_trace(path)


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the answer file"):
        writer(tmp_path / "file" / "a.jsonl")


def test_a_failed_write_leaves_the_lines_before_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    trace = writer(path)
    trace.write(record(1))
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(InputError, match="No space left on device"):
            trace.write(record(2))
    assert path.read_bytes() == before
    trace.write(record(2))
    assert len(read_trace(path)) == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ("3", "is not a JSON object"),
        ('{"category": "qa", "choices": []}', "has no 'question_id'"),
        ('{"question_id": [1], "category": "qa", "model_id": "m"}', "has no 'question_id'"),
        ('{"question_id": 1, "category": "qa"}', "has no 'model_id'"),
        ('{"question_id": 1, "category": "qa", "model_id": "m", "choices": []}', "has no choices"),
        (json.dumps(record(1, new_tokens=[])), "'new_tokens'"),
        (json.dumps(record(1, new_tokens=["3"])), "'new_tokens'"),
        (json.dumps(record(1, new_tokens=[10**400])), "'new_tokens'"),
        (json.dumps(record(1, wall_time=[-1, 2])), "'wall_time'"),
        (json.dumps(record(1, wall_time=[float("inf")])), "'wall_time'"),
        ("[" * 100_000, "is not JSON"),
        (json.dumps(record(1, accept_lengths=None)), "'accept_lengths'"),
        (json.dumps(record(1, wall_time=[0.0])), "a wall_time that is not positive"),
        (json.dumps(record(1, turns=[None])), "'turns'"),
        (json.dumps(record(7)), "repeats question 7"),
        (json.dumps(failure(7)), "repeats question 7"),
        (json.dumps(failure(8) | {"error": None}), "an error that is no text"),
    ],
)
def test_a_bad_trace_line_is_named(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record(7)) + "\n" + line + "\n")
    with pytest.raises(InputError) as refused:
        read_trace(path)
    assert f"{path}:2 " in str(refused.value)
    assert problem in str(refused.value)


def test_no_trace_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_trace(tmp_path / "empty.jsonl")
