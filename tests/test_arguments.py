"""How a command ends that is stopped early, or whose output has no place, reader or letters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

COMMAND = """
import sys
from evaluation.arguments import run_command
sys.exit(run_command("command", lambda: print("7 × 2 \\udcff")))
"""


def finished(stdout: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


def test_a_full_disk_behind_standard_output_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = finished(full)
    assert done.returncode == 2
    assert done.stderr == ("command: cannot write the output: No space left on device; make room\n")


def test_nobody_reading_is_no_fault_to_speak_of() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = finished(writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


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
