"""Several copies of the model at once, each in a Ray worker of its own (extra `ray`)."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from model.logitspec.errors import InputError, brief

from .arguments import ROOT
from .eval import Answer, Answerer, Job, Workers, failure
from .methods import FROM_FILE
from .traces import Record

TRIES = 3  # of a question, or of loading a model, that workers die of


class Worker:
    """Loads one model and answers the questions it is handed."""

    def start(
        self,
        build_answerers: Callable[[], dict[str, Answerer]],
        describe: Callable[[], Record],
        threads: int,
    ) -> tuple[str | None, Record]:
        """What keeps it from working, if something does, and its environment."""
        if threads:
            torch.set_num_threads(threads)
        try:
            self._answerers = build_answerers()
        except InputError as error:
            return str(error), {}
        return None, describe()

    def answer(self, job: Job) -> tuple[list[Answer], str | None]:
        """What the runs answered, and what stopped them if something did."""
        question, names = job
        answers: list[Answer] = []
        try:
            for name in names:
                answers.append(Answer(name, self._answerers[name].answer(question)))
        except InputError as error:
            return answers, str(error)
        return answers, None


def answer_in_workers(
    build_answerers: Callable[[], dict[str, Answerer]],
    describe: Callable[[], Record],
    jobs: Sequence[Job],
    workers: Workers,
) -> Generator[Answer, None, None]:
    """Answer questions in several processes; answers come in the order they are finished.

    Each worker sees only its own GPUs, or has its share of the cores, and takes the next question
    as soon as it is free. One that dies is replaced, and what it was asked is asked again; a
    question that TRIES workers died of gets a line that says so. What a method keeps across
    prompts, it keeps per worker.

    Args:
        build_answerers: what a worker asks, by model_id.
        describe: the environment of a worker.
        jobs: to do.
        workers: how many, and where.

    Raises:
        InputError: Ray is not installed, or there is no room for so many workers; the model cannot
            be loaded; a question failed, and --strict is given.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("workers need Ray; `pip install -e '.[ray]'` installs it") from error
    for name, module in sys.modules.items():
        if name.startswith(FROM_FILE):
            ray.cloudpickle.register_pickle_by_value(module)
    with cluster(ray, workers.address):
        threads = room(ray.nodes(), workers)
        actor = ray.remote(num_gpus=workers.gpus, num_cpus=threads)(Worker)
        waiting = deque(jobs)
        deaths: Counter[Any] = Counter()  # by question, and of loading under None
        environments: dict[Any, Record] = {}
        busy: dict[Any, tuple[Any, Job | None]] = {}  # what is awaited: of whom, and of which job

        def hire() -> None:
            new = actor.remote()
            busy[new.start.remote(build_answerers, describe, threads)] = new, None

        for _ in range(min(workers.count, len(jobs))):
            hire()
        while busy:
            (ready, *_), _ = ray.wait(list(busy))
            worker, job = busy.pop(ready)
            answers: list[Answer] = []
            stopped = None
            try:
                if job is None:
                    stopped, environments[worker] = ray.get(ready)
                else:
                    answers, stopped = ray.get(ready)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:  # it was killed, or its machine is gone
                question = None if job is None else job[0].question_id
                deaths[question] += 1
                last = deaths[question] >= TRIES
                doing = "loading the model" if job is None else f"question {question}"
                print(
                    f"a worker died of {doing} ({brief(error)})"
                    + (", for the last time" if last else ", another takes its place"),
                    file=sys.stderr,
                )
                if last and job is None:
                    raise InputError(
                        f"{TRIES} workers died while they loaded the model; it may not fit into "
                        "memory so many times"
                    ) from error
                if last and job is not None:
                    reason = f"{TRIES} workers died of it"
                    answers = [Answer(name, failure(job[0], name, reason)) for name in job[1]]
                elif job is not None:
                    waiting.appendleft(job)
                if waiting:
                    hire()
            else:
                if waiting and stopped is None:
                    job_next = waiting.popleft()
                    busy[worker.answer.remote(job_next)] = worker, job_next
            for name, record, _ in answers:
                yield Answer(name, record, environments.get(worker))
            if stopped is not None:
                raise InputError(stopped)


@contextmanager
def cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Be connected to a Ray cluster, or to one of this process's own, which ends with it.

    Raises:
        InputError: there is none at that address.
    """
    if address is not None:
        check_reachable(address)
    own = {} if address else {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": path}},
            **own,
        )
    except Exception as error:  # of many kinds
        where = f"to the Ray cluster at {address}" if address else "Ray"
        raise InputError(
            f"cannot {'connect' if address else 'start'} {where}: {brief(error)}"
        ) from error
    try:
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray has put its own there
        yield
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Raise InputError if nobody listens at HOST:PORT; Ray itself would ask for minutes."""
    host, colon, port = address.rpartition(":")
    try:
        if not colon or not port.isdigit():
            raise InputError(f"--ray-address {address} is not HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(
            f"cannot connect to the Ray cluster at {address}: {brief(error)}; "
            "`ray start --head` starts one"
        ) from error


def room(nodes: Sequence[Record], workers: Workers) -> int:
    """How many threads each worker may have: all workers fit on the machines at once.

    Args:
        nodes: of ray.nodes().
        workers: that are wanted.

    Raises:
        InputError: they do not fit.
    """
    kind, share = ("GPU", workers.gpus) if workers.gpus else ("CPU", 1)
    there = [int(node["Resources"].get(kind, 0)) for node in nodes if node["Alive"]]
    if sum(count // share for count in there) < workers.count:
        raise InputError(
            f"{workers.count} workers of {share} {kind}(s) each do not fit on "
            f"{len(there)} machine(s) with {', '.join(map(str, there))} {kind}s; ask for fewer"
        )
    if workers.gpus:
        return 0
    fitting = [n for n in range(1, max(there) + 1) if sum(c // n for c in there) >= workers.count]
    return fitting[-1]
