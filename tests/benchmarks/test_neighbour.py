"""Steps beside a busy neighbour: that there is one, that it stops, and the shares."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks import neighbour


def cpu_seconds(pid: int) -> float:
    """That a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_the_neighbour_runs_when_told_and_is_gone_at_the_end() -> None:
    before = {int(path.name) for path in Path("/proc").glob("[0-9]*")}
    with neighbour.neighbour() as run:
        children = Path("/proc/self/task").glob("*/children")
        pids = {int(pid) for path in children for pid in path.read_text().split()} - before
        (pid,) = pids
        used = cpu_seconds(pid)
        time.sleep(0.3)
        assert cpu_seconds(pid) - used < 0.05
        run(True)
        time.sleep(0.5)
        assert cpu_seconds(pid) - used > 0.1
    assert not Path(f"/proc/{pid}").exists()


def test_the_share_is_that_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([0.0, 100.0, 0.0, 40.0, 0.0, 50.0, 0.0, 25.0])  # zeros: settling
    monkeypatch.setattr(neighbour, "rate", lambda *_: next(rates))
    (row,) = neighbour.measure({("native", 1): lambda: None}, rounds=2, seconds=1.0)
    assert (row["quiet"], row["busy"], row["median"]) == (75.0, 32.5, 0.45)


def test_every_kernel_and_size_has_a_row(
    tiny_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model-path", tiny_path, "--dtype", "float32", "--cpu-kernels", "packed", "plain"]
    argv += ["--context", "20", "--nodes", "1", "3", "--rounds", "1", "--seconds", "0.05"]
    assert neighbour.main([*argv, "--json", str(tmp_path / "n.json")]) == 0
    rows = json.loads((tmp_path / "n.json").read_text())["steps"]
    shown = [(row["kernels"], row["nodes"], row["dtype"]) for row in rows]
    assert shown == [(k, n, "float32") for k in ("packed", "plain") for n in (1, 3)]
    assert all(row["quiet"] > 0 < row["busy"] for row in rows)
    assert "float32, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--cpu-kernels", "fast"], "CPU kernels 'fast' are not known"),
        (["--context", "600"], "600"),
        (["--seconds", "-1"], "'-1' is no number of seconds above 0"),
    ],
)
def test_bad_input_is_one_sentence(
    tiny_path: str, capsys: pytest.CaptureFixture[str], flags: list[str], problem: str
) -> None:
    try:
        status = neighbour.main(["--model-path", tiny_path, "--dtype", "float32", *flags])
    except SystemExit as error:  # argparse's
        status = int(error.code or 0)
    assert status == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
