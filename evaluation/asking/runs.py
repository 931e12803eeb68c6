"""run_eval: questions in, traces out, one per method. All inference scripts end here."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from model.logitspec.errors import InputError
from model.logitspec.sampling import Sampling

from ..command.exits import Incomplete
from ..command.files import check_writable
from ..recordings.costs import (
    METER_EVERY,
    StepCosts,
    measured_rounds,
    what_is_measured,
)
from ..traces.environment import describe_run
from ..traces.reading import Record
from ..traces.sidecars import FILTERS
from ..traces.writing import TraceWriter
from .answering import (
    Answer,
    Answerer,
    Job,
    check_prompts,
)
from .engines import KVEngine, Models
from .methods import Method, Options
from .questions import (
    Question,
    chosen_questions,
    sha256,
)
from .target import Target, model_name
from .workers import answer_in_workers, find_workers, require_ray


@dataclass(frozen=True)
class Run:
    """One method's part in an evaluation."""

    method: Method
    options: Options  # all of the method's
    model_id: str  # names the run in its trace; unique among the runs of an evaluation
    answer_file: Path


def run_eval(args: argparse.Namespace, runs: Sequence[Run]) -> None:
    """Answer a benchmark's questions with every run's method, and write a trace each.

    The runs take turns question by question, and who begins rotates, so that drift of the machine
    hits all alike. What a trace holds already is skipped.

    Args:
        args: the shared flags, from arguments.add_run_flags and add_machine_flags.
        runs: the methods, with their options and answer files.

    Raises:
        InputError: something asked for is not there; found before the model is loaded if it can be.
    """
    sampling = sampling_of(args)
    workers = find_workers(args)
    if workers:
        require_ray()
    if args.step_cost is not None and (workers or not any(run.method.own_loop for run in runs)):
        raise InputError(
            f"--step-cost {args.step_cost} measures this project's own loop in one process; leave "
            "it out with transformers' methods alone, or several copies of the model"
        )
    path, questions = chosen_questions(args)
    target = Target.resolve(args)
    first = check_prompts(questions, target, args)[0]
    for run in runs:
        run.method.check(run.options)
    shared = run_settings(args, target, path, sampling)

    def describe() -> Record:
        return describe_run(target) | {"workers": workers.count if workers else 1}

    environment = describe()
    made = what_is_measured(shared, environment)
    if args.step_cost is not None:
        check_writable(args.step_cost)
        measured_rounds(args.step_cost, made)

    def build_answerers() -> dict[str, Answerer]:
        both = len({run.method.own_loop for run in runs}) > 1
        models = Models(target, shared=both)
        answerers = {
            run.model_id: Answerer(
                target, run.method.engine(models, run.options), run.model_id, args, sampling
            )
            for run in runs
        }
        for answerer in answerers.values():
            answerer.warm_up(first, args.warmup)
        return answerers

    with ExitStack() as files:
        writers: dict[str, TraceWriter] = {}
        for run in runs:
            if run.answer_file.resolve() == path.resolve():
                raise InputError(f"the answer file {path} is the question file; choose another")
            own = {"method": run.method.name, **run.options, "model_id": run.model_id}
            writers[run.model_id] = files.enter_context(
                closing(
                    TraceWriter(
                        run.answer_file, own | shared, environment, overwrite=args.overwrite
                    )
                )
            )
        jobs = list_jobs(questions, {name: set(writer.done) for name, writer in writers.items()})
        todo = sum(len(names) for _, names in jobs)
        print(
            f"{', '.join(run.method.name for run in runs)} on {args.bench_name}: "
            f"{shared['model']}, {shared['dtype']}, {target.device}, {target.kernels} kernels; "
            f"prompts in {target.prompts}\n"
            f"{todo} of {len(questions) * len(runs)} answers to give, into "
            + (str(runs[0].answer_file) if len(runs) == 1 else str(runs[0].answer_file.parent))
        )
        if not todo:
            return
        if workers:
            found = answer_in_workers(build_answerers, describe, jobs, workers, strict=args.strict)
        else:
            found = answer_here(build_answerers(), jobs, environment, args.step_cost, made)
        with closing(found) as answers:
            write_with_progress(answers, writers, todo)
        say_what_failed(writers, [question for question, _ in jobs])


def list_jobs(questions: Sequence[Question], done: dict[str, set[Any]]) -> list[Job]:
    """Who is to answer what, in which order: the first run on one question is last on the next."""
    names = list(done)
    jobs = []
    for index, question in enumerate(questions):
        first = index % len(names)
        order = names[first:] + names[:first]
        todo = [name for name in order if question.question_id not in done[name]]
        if todo:
            jobs.append((question, todo))
    return jobs


def sampling_of(args: argparse.Namespace) -> Sampling:
    """What the flags of arguments.add_run_flags say of sampling.

    Raises:
        InputError: it makes no sense.
    """
    sampling = Sampling(
        temperature=args.temperature,
        top_k=args.sampling_top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )
    replace(sampling, seed=sampling.seed + args.num_choices - 1)  # the last choice's
    return sampling


def run_settings(
    args: argparse.Namespace, target: Target, questions: Path, sampling: Sampling
) -> dict[str, Any]:
    """Everything but the method's own options that an answer depends on.

    Of the filters of samples only those that are on.
    """
    filters = {name: getattr(sampling, name) for name in FILTERS}
    return {
        "model": model_name(args.model_path),
        "model_fingerprint": target.fingerprint,
        "tokenizer_fingerprint": target.tokenizer_fingerprint,
        "bench_name": args.bench_name,
        "questions": sha256(questions),
        "template": target.prompts.template,
        "max_new_tokens": args.max_new_tokens,
        "num_choices": args.num_choices,
        "temperature": sampling.temperature,
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": "cpu" if target.device == "cpu" else "cuda",
        "num_gpus_per_model": args.num_gpus_per_model,
        "seed": sampling.seed,
        **{name: value for name, value in filters.items() if value != getattr(Sampling, name)},
    }


def answer_here(
    answerers: dict[str, Answerer],
    jobs: list[Job],
    environment: Record,
    step_cost: Path | None,
    made: Mapping[str, Any],
) -> Generator[Answer, None, None]:
    """Answer the questions as they are asked for, with a model loaded here.

    Args:
        answerers: by model_id.
        jobs: to do.
        environment: of this process.
        step_cost: a file for what a step costs, measured between questions; None: it is not.
        made: what is measured in it.
    """
    costs = None
    engines = [answerer.engine for answerer in answerers.values()]
    ours = next((engine for engine in engines if isinstance(engine, KVEngine)), None)
    if step_cost is not None and ours is not None:
        costs = StepCosts(ours.model, step_cost, 64, made)
    for at, (question, names) in enumerate(jobs):
        if costs is not None and at % METER_EVERY == 0:
            costs.measure()
        for name in names:
            answerer = answerers[name]
            record = answerer.answer(question)
            yield Answer(name, record, environment, answerer.engine.facts)


def write_with_progress(
    answers: Iterable[Answer], writers: dict[str, TraceWriter], count: int
) -> None:
    """Write each record as it comes, with its run's MAT and speed so far on the progress bar."""
    accept_lengths: dict[str, list[int]] = {name: [] for name in writers}
    speeds: dict[str, list[float]] = {name: [] for name in writers}
    several = len(writers) > 1
    short = {name: name.rpartition("-")[2] if several else name for name in writers}

    def so_far(name: str) -> str:
        return f"MAT {np.mean(accept_lengths[name]):.2f}, {np.mean(speeds[name]):.1f} tokens/s"

    with tqdm(answers, total=count, unit="answer") as bar:
        for name, record, environment, facts in bar:
            made_in = None if environment is None else environment | (facts or {})
            writers[name].write(record, made_in)
            if "error" in record:
                asked = f"{short[name]}: question {record['question_id']}"
                bar.write(f"{asked} failed: {record['error']}")
                continue
            choice = record["choices"][0]
            accept_lengths[name] += choice["accept_lengths"]
            speeds[name].append(sum(choice["new_tokens"]) / sum(choice["wall_time"]))
            bar.set_postfix_str(f"{short[name]}: {so_far(name)}" if several else so_far(name))
    for name in writers:
        if speeds[name]:
            print(f"{short[name]}: {so_far(name)}")


def say_what_failed(writers: Mapping[str, TraceWriter], questions: Sequence[Question]) -> None:
    """Raise Incomplete if some of these questions were not answered."""
    asked = [question.question_id for question in questions]
    failed = {name: [at for at in asked if at in writer.failed] for name, writer in writers.items()}
    said = [
        f"{name}: {len(ids)} (the first is {ids[0]}: {writers[name].failed[ids[0]]})"
        for name, ids in failed.items()
        if ids
    ]
    if said:
        raise Incomplete(
            f"questions that could not be answered, of {', '.join(said)}; they are left out of "
            "the tables, and a run with the same flags tries them again"
        )
