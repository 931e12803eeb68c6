"""The native kernels among many threads and in forks: `python -m tests.model.crowd WHAT MODEL`.

test_matrices.py runs it; it ends with an error where something is not as with one thread.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from model.logitspec import generate, load
from model.logitspec.cpu.layers import Matrix

PROMPTS = [[1, 50 + i, 33 + i, 28, 50 + i, 33 + i] for i in range(4)]
X, WEIGHT = torch.randn(9, 96), torch.randn(1000, 96)


def decoder(path: str) -> Callable[[int], list[int]]:
    """Gives the tokens behind one of PROMPTS."""
    model = load(path, dtype=torch.float32, cpu_kernels="native")

    def decode(i: int) -> list[int]:
        return generate(model, PROMPTS[i], "pld", max_new_tokens=40, eos_token_ids=()).tokens

    return decode


def tasks() -> int:
    """Threads of this process, Python's or not."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def in_fork(same: Callable[[], bool]) -> bool:
    """What a child process finds."""
    child = os.fork()
    if not child:
        signal.alarm(60)
        found = False
        try:
            found = same()
        finally:
            os._exit(0 if found else 1)
    return os.waitpid(child, 0)[1] == 0


def threads(path: str) -> None:
    decode = decoder(path)
    found = []
    for count in (1, 2, 5, 2):
        torch.set_num_threads(count)
        found.append([decode(i) for i in range(4)])
    assert len({str(tokens) for tokens in found}) == 1
    assert len({str(tokens) for tokens in found[0]}) == 4


def decoders(path: str) -> None:
    decode = decoder(path)
    torch.set_num_threads(2)
    wanted = [decode(i) for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(decode, [*range(4)] * 8)) == wanted * 8


def fork(path: str) -> None:
    decode = decoder(path)
    torch.set_num_threads(2)
    wanted = [decode(i) for i in range(4)]
    assert in_fork(lambda: tasks() == 1 and [decode(i) for i in range(4)] == wanted)
    assert in_fork(lambda: decode(0) == wanted[0] and tasks() == 2)  # a crew of its own
    assert in_fork(lambda: in_fork(lambda: decode(0) == wanted[0]) and decode(1) == wanted[1])
    assert [decode(i) for i in range(4)] == wanted


def fork_beside_others(_: str) -> None:
    torch.set_num_threads(2)
    matrix = Matrix(WEIGHT)
    wanted, over = matrix(X), threading.Event()

    def multiply() -> None:
        while not over.is_set():
            matrix(X)

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(multiply) for _ in range(2)]
        try:
            found = [in_fork(lambda: torch.equal(matrix(X), wanted)) for _ in range(40)]
        finally:
            over.set()
    assert all(found) and not any(other.exception() for other in others)


def no_threads(_: str) -> None:
    """The system gives none: no memory for their stacks."""
    matrix = Matrix(WEIGHT)
    torch.set_num_threads(1)
    wanted = matrix(X)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 4 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        torch.set_num_threads(3)
        assert torch.equal(matrix(X), wanted)
        assert tasks() == 1
        return
    sys.exit("the limit is none")


if __name__ == "__main__":
    signal.alarm(100)
    what, path = sys.argv[1:]
    {f.__name__: f for f in (threads, decoders, fork, fork_beside_others, no_threads)}[what](path)
