"""A llama.cpp server out of xllamacpp, as a process of its own: llama_server.py starts it.

Prints a line of JSON once it listens, and ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
from typing import Any

PREFIX = "COMMON_SPECULATIVE_TYPE_"


def serve(model: str, mode: str, threads: int, context: int) -> dict[str, Any]:
    """Start a server; the server itself and what the parent process wants to know of it."""
    import xllamacpp

    kind = getattr(xllamacpp.common_speculative_type, PREFIX + mode.upper().replace("-", "_"), None)
    if kind is None:
        return {"lacks": mode}
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = context
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0  # keeps no prompts of earlier questions
    params.speculative.types = [kind]
    server = xllamacpp.Server(params)
    return {
        "server": server,
        "address": server.listening_address,
        "version": f"xllamacpp {xllamacpp.__version__}",
        "system": xllamacpp.get_system_info(),
    }


def main() -> None:
    found = serve(**json.loads(sys.argv[1]))
    server = found.pop("server", None)
    print(json.dumps(found), flush=True)
    sys.stdin.read()
    del server
