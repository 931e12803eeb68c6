"""A server in processes of its own, asked over HTTP, for llama_server.py and vllm_server.py."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress

from model.logitspec.errors import InputError

from .measure import Figures

ANSWER_SECONDS = 600
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for this machine
ERROR = re.compile(r"\w(Error|Exception)\b.*: ")


class Served:
    """A program that serves; close() ends all its processes.

    Args:
        name: of it, in messages.
        command: that starts it.
        start_seconds: that it has to load a model.
        environment: its variables; None: this process's.
        prints: what it prints first is read by the caller.

    Raises:
        InputError: the command does not run.
    """

    def __init__(
        self, name: str, command: Sequence[str], start_seconds: float,
        environment: Mapping[str, str] | None = None, prints: bool = False,
    ) -> None:  # fmt: skip
        self.name = name
        self._start_seconds = start_seconds
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        try:
            self._process = subprocess.Popen(
                [*command], env=environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if prints else self._said, stderr=self._said,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._said.close()
            raise InputError(f"{command[0]} does not run: {error.strerror}") from error

    def close(self) -> None:
        """End its processes, those that stand still, too."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._said.close()

    def _wait(self, address: str) -> None:
        """Until it is healthy.

        Raises:
            InputError: it ended, or takes too long.
        """
        self._address = address
        until = time.monotonic() + self._start_seconds
        while self._process.poll() is None and time.monotonic() < until:
            try:
                self._get("/health", seconds=5)
                return
            except OSError:
                time.sleep(0.05)
        raise InputError(f"{self.name} does not start: {self._why(None)}")

    def _get(
        self, path: str, body: Figures | None = None, seconds: float = ANSWER_SECONDS
    ) -> str:  # fmt: skip
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address + path, data, headers)
        try:
            with OPENER.open(request, timeout=seconds) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")
            raise OSError(f"{error.code}: {' '.join(said.split())[:200]}") from error

    def _log(self) -> list[str]:
        """The lines that it said."""
        self._said.seek(0)
        return self._said.read().decode("utf-8", "replace").strip().splitlines()

    def _why(self, error: Exception | None) -> str:
        """What was raised, and the last error that it said."""
        lines = self._log()
        errors = [line for line in lines if ERROR.search(line)]
        if self._process.poll() is None:
            return "; ".join([str(error or f"no answer in {self._start_seconds} s"), *errors[-1:]])
        said = (errors or lines or ["nothing"])[-1]
        return f"it ended with status {self._process.returncode}: {said.strip()}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
