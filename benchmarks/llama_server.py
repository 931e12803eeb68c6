"""llama.cpp as an engine: a server in a process of its own, asked over HTTP, for llama_cpp.py."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model.logitspec.errors import InputError

from .llama_summary import THEIRS
from .measure import Figures
from .served import Served, free_port

MODES = ("none", "ngram-simple", "ngram-mod", "ngram-cache")
CHILD = "from benchmarks.llama_child import main; main()"
START_SECONDS = 120  # to load a model
LACKS = "this build of llama.cpp has no {}; leave it out of --modes"
TICKS = os.sysconf("SC_CLK_TCK")


class Lacking(InputError):
    """The llama.cpp at hand has no such mode."""


class LlamaServer(Served):
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
        self.facts: Figures = {}
        if binary is None:
            given = {"model": model, "mode": mode, "threads": threads, "context": context}
            command = [sys.executable, "-c", CHILD, json.dumps(given)]
            super().__init__(THEIRS + mode, command, START_SECONDS, prints=True)
            address = self._read_address(mode)
        else:
            port = free_port()
            command = [
                str(binary), "--model", model, "--ctx-size", str(context), "--parallel", "1",
                "--threads", str(threads), "--threads-batch", str(threads), "--cache-ram", "0",
                "--spec-type", mode, "--host", "127.0.0.1", "--port", str(port),
            ]  # fmt: skip
            super().__init__(THEIRS + mode, command, START_SECONDS)
            address = f"http://127.0.0.1:{port}"
        try:
            self._wait_for(mode, address)
            if binary is not None:
                build = json.loads(self._get("/props")).get("build_info")
                self.facts = {"version": f"{binary.name} {build}"}
        except BaseException:
            self.close()
            raise

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
            found = json.loads(self._get("/completion", body))
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
            raise Lacking(LACKS.format(mode))
        self.facts = {key: found[key] for key in ("version", "system")}
        return str(found["address"])

    def _wait_for(self, mode: str, address: str) -> None:
        """Until the model is loaded."""
        try:
            self._wait(address)
        except InputError as error:
            said = "\n".join(self._log())
            if mode in said and "spec-type" in said:
                raise Lacking(LACKS.format(mode)) from error
            raise
        slots = json.loads(self._get("/slots"))
        if mode != "none" and not slots[0].get("speculative"):
            raise Lacking(f"this build of llama.cpp does not speculate with {mode}")


def find_llama(binary: Path | None) -> None:
    """Raise InputError where there is no llama.cpp to run."""
    if binary is None and find_spec("xllamacpp") is None:
        raise InputError(
            "xllamacpp is not installed; pip install -e '.[llama]', or give --llama-server a binary"
        )
    if binary is not None and not os.access(binary, os.X_OK):
        raise InputError(f"--llama-server {binary} is no program that can be run")
