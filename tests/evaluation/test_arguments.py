"""How a command ends that is stopped early, or whose output has no place, reader or letters."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evaluation.command.exits import run_command

ROOT = Path(__file__).parents[2]

COMMAND = """
import sys
from evaluation.command.exits import Incomplete, run_command
from evaluation.command.parser import Parser
from model.logitspec.errors import InputError

def command():
    print("7 × 2 \\udcff")
    if sys.argv[1:]:
        raise eval(sys.argv[1])

if sys.argv[1:] == ["help"]:
    Parser("command", "Does something.").parse_args(["--help"])
sys.exit(run_command("command", command, "interrupted"))
"""
FULL = "OSError(28, 'No space left on device', 'there')"
NO_ROOM = "command: cannot write the output: No space left on device; make room\n"


def finished(
    stdout: Any, *words: str, stderr: Any = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *words],
        stdout=stdout,
        stderr=stderr,
        text=True,
        cwd=ROOT,
        env=buffered | environment,
    )


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, NO_ROOM),
        (["help"], 2, NO_ROOM),
        (["Incomplete('a part')"], 3, "command: a part\n"),
    ],
)
def test_a_full_disk_behind_standard_output_is_said(
    words: list[str], status: int, said: str
) -> None:
    with Path("/dev/full").open("w") as full:
        done = finished(full, *words)
    assert (done.returncode, done.stderr) == (status, said)


def test_a_full_disk_that_shows_at_once_or_behind_everything() -> None:
    with Path("/dev/full").open("w") as full:
        done = finished(full, PYTHONUNBUFFERED="1")
        assert (done.returncode, done.stderr) == (2, NO_ROOM)
        assert finished(full, stderr=full).returncode == 2
        assert finished(full, "help", stderr=full).returncode == 2


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [([], 141, ""), (["help"], 141, ""), (["KeyboardInterrupt"], 130, "command: interrupted\n")],
)
def test_nobody_reading_is_no_fault_to_speak_of(words: list[str], status: int, said: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = finished(writer, *words)
    os.close(writer)
    assert (done.returncode, done.stderr) == (status, said)


def test_another_full_disk_costs_nothing_that_was_printed() -> None:
    done = finished(subprocess.PIPE, FULL)
    assert (done.returncode, done.stdout) == (2, "7 × 2 \\udcff\n")
    assert done.stderr == "command: cannot write there: No space left on device; make room\n"


def test_no_output_at_all() -> None:
    script = 'exec "$0" -c "$1" >&-'
    done = subprocess.run(["sh", "-c", script, sys.executable, COMMAND], cwd=ROOT, stderr=-1)
    assert (done.returncode, done.stderr) == (0, b"")


def test_letters_that_an_output_has_not_are_escaped() -> None:
    done = finished(subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "7 \\xd7 2 \\udcff\n")
    done = finished(subprocess.PIPE, PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "7 × 2 \\udcff\n")


@pytest.mark.parametrize("module", ["evaluation.run", "benchmarks.soak"])
def test_ctrl_c_while_torch_is_imported_leaves_no_traceback(module: str) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", module, "--no-such-flag"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # a background job's children ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while "libtorch_cpu" not in Path(f"/proc/{started.pid}/maps").read_text():
        assert started.poll() is None
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert (started.returncode, said) == (-signal.SIGINT, "interrupted\n")  # 130 in a shell


@pytest.mark.parametrize("module", ["evaluation.speed", "benchmarks.soak", "data.prepare"])
def test_without_the_environment_a_command_says_so(module: str) -> None:
    done = subprocess.run(  # -S: no site-packages
        [sys.executable, "-S", "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"\S+ has no \w+; run `\. \.venv/bin/activate` first .*\n", done.stderr)


def test_a_warning_of_ours_is_a_sentence() -> None:
    """In a process of its own: pytest takes warnings away."""
    code = (
        "import warnings; from pathlib import Path; from evaluation.command.exits import *\n"
        "from evaluation.command.files import ROOT\n"
        "def warn():\n"
        "    warnings.warn_explicit('it is slow', UserWarning, str(ROOT / 'evaluation/x.py'), 3)\n"
        "    warnings.warn_explicit('old', UserWarning, '/usr/lib/site-packages/y.py', 4)\n"
        "run_command('x', warn)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[0] == "it is slow"
    assert "/usr/lib/site-packages/y.py:4: UserWarning: old" in done.stderr


def test_work_that_takes_long_is_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("model.logitspec.sizing.measuring")
    assert run_command("x", lambda: log.info("measuring %d sizes", 3)) == 0
    assert capsys.readouterr() == ("", "measuring 3 sizes\n")
    log.info("nobody asked for it")  # the package alone is silent
    assert capsys.readouterr() == ("", "")
