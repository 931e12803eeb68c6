"""How a command ends whose output has no place, no reader, or no such letters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
        cwd=Path(__file__).parent.parent,
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
