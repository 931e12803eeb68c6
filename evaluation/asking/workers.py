"""Several copies of the model, each in its own Ray worker (extra `ray`)."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from model.logitspec.devices import resolve_device
from model.logitspec.errors import InputError, brief

from ..command.files import ROOT
from ..traces.reading import Record
from .answering import Answerer, Assignment, Broken, TraceLine, trace_line
from .methods import FROM_FILE
from .settings import TargetSettings, WorkerSettings

TRIES = 3  # of an answer, or of loading a model, before workers' deaths count as its failure
NOTICE_SECONDS, PATIENCE_SECONDS = 60, 1800  # waited for the first worker to begin


@dataclass(frozen=True)
class Workers:
    """Copies of the model, each in a process of its own."""

    count: int
    gpus: int  # of each copy; 0: it runs on CPUs
    address: str | None = None  # of a Ray cluster; None: this machine only


def find_workers(asked: WorkerSettings, target: TargetSettings) -> Workers | None:
    """The workers that are asked for; None: this process answers.

    InputError if there cannot be so many, as far as this machine can tell.
    """
    per_model = target.num_gpus_per_model
    total = asked.num_gpus_total or per_model
    if asked.num_workers is not None:
        if asked.num_gpus_total or per_model > 1:
            raise InputError(
                "--num-workers is for a CPU; with GPUs give --num-gpus-total, and "
                "--num-gpus-per-model"
            )
        if resolve_device(target.device, 1) != "cpu":
            raise InputError(
                f"--num-workers {asked.num_workers} is for a CPU, and the device is a GPU; give "
                "--device cpu, or --num-gpus-total instead"
            )
        if asked.num_workers == 1 and asked.ray_address is None:
            return None
        return Workers(asked.num_workers, 0, asked.ray_address)
    if total % per_model:
        raise InputError(
            f"--num-gpus-total {total} is no multiple of --num-gpus-per-model {per_model}"
        )
    workers = total // per_model
    if workers == 1 and asked.ray_address is None:
        return None
    if target.device not in ("auto", "cuda"):
        raise InputError(
            f"--num-gpus-total {total} asks for {workers} copies of the model, "
            f"--device {target.device} has room for one; use --device cuda"
            if workers > 1
            else f"--ray-address with --device {target.device} wants --num-workers"
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked.ray_address is None and total > gpus:
        raise InputError(
            f"--num-gpus-total is {total}, torch sees {gpus} GPU(s) here; ask for no more than "
            "that, or for --num-workers on a CPU"
        )
    if gpus == 0:
        raise InputError(
            f"--ray-address {asked.ray_address}: torch sees no GPU here; run this on a machine "
            "like the workers', or ask for --num-workers on CPUs"
        )
    return Workers(workers, per_model, asked.ray_address)


class Worker:
    """Loads one model and answers the questions it is given."""

    def start(
        self,
        build_answerers: Callable[[], dict[str, Answerer]],
        describe: Callable[[], Record],
        threads: int,
    ) -> tuple[str | None, Record]:
        """Load the model; the error if that fails, and the environment."""
        if threads:
            torch.set_num_threads(threads)
        try:
            self._answerers = build_answerers()
        except InputError as error:
            return str(error), {}
        return None, describe()

    def answer(self, assignment: Assignment) -> tuple[list[TraceLine], str | None]:
        """The runs' lines for a question, and the error that stopped them, if any."""
        question, names = assignment
        answers: list[TraceLine] = []
        try:
            for name in names:
                answerer = self._answerers[name]
                record = answerer.answer(question)
                answers.append(TraceLine(name, record, answerer.engine.facts))
        except Broken:
            os._exit(1)  # a new process can answer again
        except InputError as error:
            return answers, str(error)
        return answers, None


@dataclass(frozen=True)
class Awaited:
    """A worker's current task: an assignment, or loading the model (None)."""

    actor: Any
    environment: Record
    assignment: Assignment | None = None


class Crew:
    """The workers of a run and their assignments.

    `hire` starts one of `count` workers, and returns its actor and the awaited result of its start.
    `strict`: stop at an answer that TRIES workers died of.
    """

    def __init__(
        self,
        ray: Any,
        hire: Callable[[], tuple[Any, Any]],
        assignments: Sequence[Assignment],
        count: int,
        *,
        strict: bool,
    ) -> None:
        self._ray = ray
        self._hire = hire
        self._strict = strict
        self._waiting = deque(assignments)
        self._idle: list[Awaited] = []
        self._busy: dict[Any, Awaited] = {}  # by Ray's reference to the result
        self._deaths: Counter[Any] = Counter()  # by question and run; None: loading
        for _ in range(min(count, len(assignments))):
            self._add_worker()

    def _add_worker(self) -> None:
        actor, loaded = self._hire()
        self._busy[loaded] = Awaited(actor, {})

    @property
    def _answering(self) -> bool:
        """Whether a question is under way."""
        return any(awaited.assignment is not None for awaited in self._busy.values())

    def answers(self) -> Generator[TraceLine, None, None]:
        """All answers, in the order they are finished."""
        idle_since = time.monotonic()
        told = False
        while self._waiting or self._answering:
            while self._waiting and self._idle:
                worker = self._idle.pop()
                assignment = self._waiting.popleft()
                result = worker.actor.answer.remote(assignment)
                self._busy[result] = Awaited(worker.actor, worker.environment, assignment)
            ready, _ = self._ray.wait(list(self._busy), timeout=NOTICE_SECONDS)
            if ready or self._answering:
                idle_since = time.monotonic()
            elif not told:
                told = True
                print("no worker has begun yet: the machines are full, or loading takes long",
                      file=sys.stderr)  # fmt: skip
            elif time.monotonic() - idle_since > PATIENCE_SECONDS:
                raise InputError(
                    f"no worker could begin within {PATIENCE_SECONDS // 60} minutes; see with "
                    "`ray status` what keeps the machines busy"
                )
            for result in ready:
                yield from self._take(result)

    def _take(self, result: Any) -> Generator[TraceLine, None, None]:
        """The answers in a result, if any; a dead worker is replaced."""
        errors = self._ray.exceptions
        awaited = self._busy.pop(result)
        answers: list[TraceLine] = []
        environment = awaited.environment
        try:
            if awaited.assignment is None:
                stopped, environment = self._ray.get(result)
                self._deaths[None] = 0
            else:
                answers, stopped = self._ray.get(result)
        except errors.RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            raise InputError(f"a worker failed: {brief(cause)}") from error
        except errors.RayError as error:  # the worker was killed, or its machine is gone
            self._ray.kill(awaited.actor)
            yield from self._bury(awaited.assignment, error)
            if len(self._waiting) > len(self._idle):
                self._add_worker()
            return
        self._idle.append(Awaited(awaited.actor, environment))
        for answer in answers:
            yield answer._replace(environment=environment | (answer.environment or {}))
        if stopped is not None:
            raise InputError(stopped)

    def _bury(
        self, assignment: Assignment | None, error: Exception
    ) -> Generator[TraceLine, None, None]:
        """After a worker's death: ask again, run by run, or give a line with the error."""
        if assignment is None:
            print(f"a worker died of loading the model ({brief(error)})", file=sys.stderr)
            self._deaths[None] += 1
            if self._deaths[None] >= TRIES:
                raise InputError(
                    f"{TRIES} workers died while they loaded the model; it may not fit into "
                    "memory so many times"
                ) from error
            return
        question, names = assignment
        named = f"question {question.question_id}"
        print(f"a worker died of {named} ({brief(error)})", file=sys.stderr)
        reason = f"{TRIES} workers died of it"
        for name in reversed(names):
            self._deaths[question.question_id, name] += 1
            if self._deaths[question.question_id, name] < TRIES:
                self._waiting.appendleft((question, [name]))
            elif self._strict:
                raise InputError(f"{named}: {reason}") from error
            else:
                yield TraceLine(name, trace_line(question, name, error=reason))


def require_ray() -> Any:
    """The module ray; InputError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise InputError("workers need Ray; `pip install -e '.[ray]'` installs it") from error
    return ray


def answer_in_workers(
    build_answerers: Callable[[], dict[str, Answerer]],
    describe: Callable[[], Record],
    assignments: Sequence[Assignment],
    workers: Workers,
    *,
    strict: bool = False,
) -> Generator[TraceLine, None, None]:
    """Answer questions in several processes; answers come in the order they are finished.

    Each worker sees only its own GPUs or its share of the cores, and takes the next question when
    it is free. A worker that dies is replaced, and its question is asked again; after TRIES deaths
    the question gets a line with an error, or with `strict` ends the run. A method learns
    separately in each worker.
    `build_answerers` loads the model in a worker and gives answerers by model_id, `describe` the
    worker's environment. InputError if there is no Ray, no model, or no room for all.
    """
    ray = require_ray()
    for name, module in sys.modules.items():
        if name.startswith(FROM_FILE):
            ray.cloudpickle.register_pickle_by_value(module)
    with cluster(ray, workers.address):
        threads = threads_per_worker(ray.nodes(), workers)
        actor = ray.remote(num_gpus=workers.gpus, num_cpus=threads)(Worker)

        def hire() -> tuple[Any, Any]:
            new = actor.remote()
            return new, new.start.remote(build_answerers, describe, threads)

        yield from Crew(ray, hire, assignments, workers.count, strict=strict).answers()


@contextmanager
def cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to the Ray cluster at an address, or start one for this process only."""
    if address is not None:
        check_reachable(address)
    own = {} if address else {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",  # not a cluster that happens to run here
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": path}},
            **own,
        )
    except SystemExit as error:  # Ray's own answer to SIGTERM
        raise KeyboardInterrupt from error
    except Exception as error:  # Ray raises many types
        where = f"connect to the Ray cluster at {address}" if address else "start Ray"
        raise InputError(f"cannot {where}: {brief(error)}") from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray installs its own
        yield
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Raise InputError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
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


def threads_per_worker(nodes: Sequence[Record], workers: Workers) -> int:
    """Threads of each worker if all are to fit on the machines; 0 (torch's default) with GPUs.

    `nodes` is the result of ray.nodes(). InputError if they do not fit.
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
