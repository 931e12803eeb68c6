"""llama.cpp as an engine: a server in a process of its own, asked over HTTP, for llama_cpp.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evaluation.command.files import ROOT
from model.logitspec.errors import InputError

from .llama_summary import THEIRS
from .measure import Figures

MODES = ("none", "ngram-simple", "ngram-mod", "ngram-cache")
CHILD = "from benchmarks.llama_child import main; main()"
START_SECONDS = 120  # to load a model
ANSWER_SECONDS = 600
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for this machine
TICKS = os.sysconf("SC_CLK_TCK")


class Lacking(InputError):
    """The llama.cpp at hand has no such mode."""


class LlamaServer:
    """A llama.cpp server with a model and a kind of speculation; close() ends it.

    Args:
        model: a GGUF file.
        mode: one of MODES, with llama.cpp's own settings of it.
        threads: that it computes with.
        context: most tokens of a prompt and its answer.
        binary: a llama-server to run; None: the one of xllamacpp.

    Raises:
        Lacking: it has no such mode.
        InputError: there is none, or it does not start.
    """

    def __init__(
        self, model: str, mode: str, threads: int, context: int, binary: Path | None
    ) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self.name = THEIRS + mode
        self.facts: Figures = {}
        if binary is None:
            given = {"model": model, "mode": mode, "threads": threads, "context": context}
            command = [sys.executable, "-c", CHILD, json.dumps(given)]
            self._process = self._start(command, subprocess.PIPE)
            self._address = self._read_address(mode)
        else:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            command = [
                str(binary), "--model", model, "--ctx-size", str(context), "--parallel", "1",
                "--threads", str(threads), "--threads-batch", str(threads), "--cache-ram", "0",
                "--spec-type", mode, "--host", "127.0.0.1", "--port", str(port),
            ]  # fmt: skip
            self._process = self._start(command, self._said)
            self._address = f"http://127.0.0.1:{port}"
        try:
            self._wait(mode)
        except BaseException:
            self.close()
            raise
        if binary is not None:
            build = self._get("/props", None, 5).get("build_info")
            self.facts = {"version": f"{binary.name} {build}"}

    def answer(self, prompt_ids: Sequence[int], max_new_tokens: int) -> Figures:
        """Tokens and seconds of a greedy answer; the seconds are the server's, without HTTP.

        Raises:
            InputError: the server failed, and why.
        """
        body = {
            "prompt": list(prompt_ids),
            "n_predict": max_new_tokens,
            "temperature": 0,
            "samplers": ["temperature"],  # greedy, and nothing before it that costs time
            "cache_prompt": False,  # each prompt is read whole, as by the other engines
            "return_tokens": True,
        }
        try:
            found = self._get("/completion", body, ANSWER_SECONDS)
            spent = found["timings"]
            return {
                "output_ids": found["tokens"],
                "tokens": spent["predicted_n"],
                "prompt_tokens": spent["prompt_n"],
                "prompt_seconds": spent["prompt_ms"] / 1e3,
                "seconds": (spent["prompt_ms"] + spent["predicted_ms"]) / 1e3,
                "drafted": spent.get("draft_n", 0),
                "accepted": spent.get("draft_n_accepted", 0),
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.name} gave no answer: {self._why(error)}") from error

    def cpu_seconds(self) -> float:
        """That its process has used."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._said.close()

    def _start(self, command: list[str], stdout: Any) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        try:
            return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=stdout, stderr=self._said)
        except OSError as error:
            raise InputError(f"{command[0]} does not run: {error.strerror}") from error

    def _read_address(self, mode: str) -> str:
        """What llama_child prints."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError as error:
            self._process.wait()
            said = self._why(error)
            self.close()
            raise InputError(f"{self.name} does not start: {said}") from error
        if "lacks" in found:
            self.close()
            raise Lacking(f"this build of llama.cpp has no {mode}; leave it out of --modes")
        self.facts = {key: found[key] for key in ("version", "system")}
        return str(found["address"])

    def _wait(self, mode: str) -> None:
        """Until the model is loaded."""
        until = time.monotonic() + START_SECONDS
        while True:
            if self._process.poll() is not None or time.monotonic() > until:
                said = self._log()
                if mode in said and "spec-type" in said:
                    raise Lacking(f"this build of llama.cpp has no {mode}; leave it out of --modes")
                raise InputError(f"{self.name} does not start: {self._why(None)}")
            try:
                self._get("/health", None, 5)
                break
            except (OSError, ValueError):
                time.sleep(0.05)
        slots = self._get("/slots", None, 5)
        if mode != "none" and not slots[0].get("speculative"):
            raise Lacking(f"this build of llama.cpp does not speculate with {mode}")

    def _get(self, path: str, body: Figures | None, seconds: float) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._address + path, data, {"Content-Type": "application/json"}
        )
        try:
            with OPENER.open(request, timeout=seconds) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")
            raise OSError(f"{error.code}: {' '.join(said.split())[:200]}") from error

    def _log(self) -> str:
        self._said.seek(0)
        return self._said.read().decode("utf-8", "replace")

    def _why(self, error: Exception | None) -> str:
        """The last line that the server said before it ended, or the error."""
        lines = self._log().strip().splitlines()
        ended = self._process.poll() is not None
        said = lines[-1] if ended and lines else str(error or f"no answer in {START_SECONDS} s")
        return f"it ended with status {self._process.returncode}: {said}" if ended else said


def find_llama(binary: Path | None) -> None:
    """Raise InputError where there is no llama.cpp to run."""
    if binary is None and find_spec("xllamacpp") is None:
        raise InputError(
            "xllamacpp is not installed; pip install -e '.[llama]', or give --llama-server a binary"
        )
    if binary is not None and not os.access(binary, os.X_OK):
        raise InputError(f"--llama-server {binary} is no program that can be run")
