"""Whether one answer is right: mathematics by math-verify, programs by running their tests."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from .keys import Key

SECONDS = 10  # that a program may run
MEMORY = 1 << 30  # bytes that each of its processes may take
WRITTEN = 1 << 20  # bytes that it may print, or write into a file
RUN = f"""
import resource, runpy, sys
for limit, most in (("CPU", {SECONDS}), ("AS", {MEMORY}), ("FSIZE", {WRITTEN}), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (most, most))
runpy.run_path(sys.argv[1])
"""
NOT_INSTALLED = "math-verify is not installed; `pip install -e '.[score]'` installs it"


def can_judge_mathematics() -> bool:
    return find_spec("math_verify") is not None


@cache
def is_right(key: Key, text: str) -> bool:
    """Whether an answer's text is right. Cached, since methods' answers are mostly the same.

    Runs the text as a program if the key has tests.
    """
    return passes(key, text) if key.test else same_value(key.answer, text)


def same_value(expected: str, text: str) -> bool:
    """Whether the last \\boxed{} of a text, else what it says is the answer, has a value.

    `expected` may be a solution of GSM8K, which ends with #### and the answer. A text ends where it
    goes on with a question of its own, as base models do after examples.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    forms = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    value = expected.rpartition("####")[2].strip()
    own = re.split(r"\nQ:", text)[0]
    return bool(verify(parse(f"\\boxed{{{value}}}", forms), parse(own, forms)))


def passes(key: Key, text: str) -> bool:
    """Whether an answer's program passes its tests, in a process of its own with limits."""
    word = secrets.token_hex(8)  # printed after the tests: ending before them is not passing
    source = f"{program(key, text)}\n{key.test}\ncheck({key.entry_point})\nprint({word!r})\n"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place, printed = Path(folder, "answer.py"), Path(folder, "printed")
        place.write_text(source, encoding="utf-8", errors="replace")
        with printed.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", RUN, str(place)], cwd=folder, env={},
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
            try:
                process.wait(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                return False
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what it has started
                process.wait()
        return printed.read_bytes().rstrip().endswith(word.encode())


def program(key: Key, text: str) -> str:
    """The code of an answer: its first fenced block, or all of it; a function or its body."""
    fenced = re.search(r"```\w*\n(.*?)(?:```|\Z)", text, flags=re.DOTALL)
    code = fenced[1] if fenced else text
    if re.search(rf"^def {re.escape(key.entry_point)}\b", code, flags=re.MULTILINE):
        return f"{key.prompt}\n{code}"  # the prompt has imports and helpers
    return f"{key.prompt}    {code.lstrip()}"
