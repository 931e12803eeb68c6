"""Several copies of the model at once, each in a Ray worker of its own (extra `ray`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from model.logitspec.errors import InputError

from .eval import Answer, Answerer, Job


class Worker:
    """Loads one model when it starts and answers the questions it is handed."""

    def __init__(self, build_answerers: Callable[[], dict[str, Answerer]]) -> None:
        self._answerers = build_answerers()

    def answer(self, job: Job) -> tuple[list[Answer], InputError | None]:
        """What the runs answered, and what stopped them if something did."""
        question, names = job
        answers: list[Answer] = []
        try:
            for name in names:
                answers.append((name, self._answerers[name].answer(question)))
        except InputError as error:
            return answers, InputError(str(error))  # without its cause, which may not travel
        return answers, None


def answer_in_workers(
    build_answerers: Callable[[], dict[str, Answerer]],
    jobs: Sequence[Job],
    workers: int,
    *,
    gpus_per_worker: int,
) -> Generator[Answer, None, None]:
    """Answer questions in `workers` processes; answers come in the order they are finished.

    Each worker sees only its own GPUs and takes the next question as soon as it is free. What a
    method keeps across prompts, it keeps per worker.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise InputError(
            "more than one copy of the model needs Ray; `pip install -e '.[ray]'` installs it"
        ) from error
    ray.init(log_to_driver=False, include_dashboard=False)
    try:
        actor = ray.remote(num_gpus=gpus_per_worker)(Worker)
        pool = ActorPool([actor.remote(build_answerers) for _ in range(workers)])
        for answers, stopped in pool.map_unordered(
            lambda worker, job: worker.answer.remote(job), jobs
        ):
            yield from answers
            if stopped is not None:
                raise stopped
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise InputError(f"a worker died: {str(error).splitlines()[0]}") from error
    finally:
        ray.shutdown()
