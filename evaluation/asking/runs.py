"""Answers a benchmark with several methods and writes a trace each."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from model.logitspec import Drafter
from model.logitspec.errors import InputError
from model.logitspec.listed import Numbers
from model.logitspec.sampling import Sampling
from model.logitspec.states import way_out

from ..command.exits import Incomplete
from ..command.files import check_writable
from ..recordings.costs import METER_EVERY, StepCostFile, measured_rounds, model_and_machine
from ..traces.reading import Record
from ..traces.sidecars import FILTERS, state_path
from ..traces.writing import TraceWriter
from .answering import Answerer, Assignment, TraceLine, check_prompts
from .engines import KVEngine, Models
from .evidence import read_evidence
from .methods import DrafterMethod, Method, Options
from .questions import Question, chosen_questions, sha256
from .settings import RunSettings
from .target import Target, model_name
from .workers import answer_in_workers, find_workers, require_ray


@dataclass(frozen=True)
class Run:
    """One method's part in an evaluation."""

    method: Method
    options: Options  # all of the method's
    model_id: str  # names the run in its trace; unique among the runs of an evaluation
    answer_file: Path


def answer_benchmark(settings: RunSettings, runs: Sequence[Run]) -> None:
    """Answer a benchmark's questions with every run's method, and write a trace each.

    The runs take turns question by question, and the first one rotates, so that drift of the
    machine affects all equally. Answers that a trace already holds are skipped.
    InputError if something asked for is missing, Incomplete if a question could not be answered.
    """
    workers = find_workers(settings.workers, settings.target)
    if workers:
        require_ray()
    own_loop = any(run.method.own_loop for run in runs)
    if settings.step_cost is not None and (workers or not own_loop):
        raise InputError(
            f"--step-cost {settings.step_cost} measures this project's own loop in one process; "
            "leave it out with transformers' methods alone, or several copies of the model"
        )
    path, questions = chosen_questions(settings.questions)
    target = Target.resolve(settings.target)
    first = check_prompts(questions, target, settings.answers)[0]
    for run in runs:
        run.method.check(run.options, target.tokenizer_fingerprint)
    shared = shared_settings(settings, target, path)
    checksums = check_evidence(settings.evidence, runs)

    def describe() -> Record:
        return target.environment() | {"workers": workers.count if workers else 1}

    environment = describe()
    identity = model_and_machine(shared, environment)
    if settings.step_cost is not None:
        check_writable(settings.step_cost)
        measured_rounds(settings.step_cost, identity)
    sampling = settings.answers.sampling
    evidence = {
        run.model_id: read_evidence(
            settings.evidence, run.method.drafter(**run.options), target, sampling
        )
        for run in runs
        if settings.evidence and isinstance(run.method, DrafterMethod) and run.method.takes_evidence
    }
    build = partial(build_answerers, target, runs, settings, first, evidence)
    with ExitStack() as files:
        writers = {}
        for run in runs:
            own = {"evidence": checksums} if checksums and run.method.takes_evidence else {}
            writer = open_trace(run, path, shared | own, environment, overwrite=settings.overwrite)
            writers[run.model_id] = files.enter_context(closing(writer))
        done = {name: set(writer.done) for name, writer in writers.items()}
        assignments = list_assignments(questions, done)
        todo = sum(len(names) for _, names in assignments)
        kernels = f", {target.kernels} kernels" if own_loop else ""  # transformers' loop has none
        print(
            f"{', '.join(run.method.name for run in runs)} on {settings.questions.bench_name}: "
            f"{shared['model']}, {shared['dtype']}, {target.device}{kernels}; "
            f"prompts in {target.prompts}"
        )
        place = runs[0].answer_file if len(runs) == 1 else runs[0].answer_file.parent
        print(f"{todo} of {len(questions) * len(runs)} answers to give, into {place}")
        if not todo:
            return
        if workers:
            found = answer_in_workers(
                build, describe, assignments, workers, strict=settings.answers.strict
            )
        else:
            answerers = build()
            restore(answerers, writers)
            found = answer_here(answerers, assignments, environment, settings.step_cost, identity)
        with closing(found) as lines:
            write_with_progress(lines, writers, todo)
        say_what_failed(writers, [question for question, _ in assignments])


def build_answerers(
    target: Target,
    runs: Sequence[Run],
    settings: RunSettings,
    first: Question,
    evidence: Mapping[str, Mapping[str, Numbers]],
) -> dict[str, Answerer]:
    """Load the model and make every run's answerer, warmed up with a question; by model_id.

    `evidence` is what some of them begin with.
    """
    models = Models(target, shared=len({run.method.own_loop for run in runs}) > 1)
    answerers = {
        run.model_id: Answerer(
            target, run.method.engine(models, run.options), run.model_id, settings.answers
        )
        for run in runs
    }
    for name, answerer in answerers.items():
        if name in evidence:
            with way_out(f"it is of --evidence {' '.join(map(str, settings.evidence))}"):
                cast(KVEngine, answerer.engine).drafter.warm(evidence[name])
        answerer.warm_up(first, settings.warmup)
    return answerers


def check_evidence(files: Sequence[Path], runs: Sequence[Run]) -> list[str]:
    """The files' checksums; InputError if one is not there, or a run writes it."""
    written = {
        place.resolve() for run in runs for place in (run.answer_file, state_path(run.answer_file))
    }
    for file in files:
        if not file.is_file():
            raise InputError(f"--evidence {file} is no file; give a state (*.npz), traces or texts")
        if file.resolve() in written:
            raise InputError(
                f"--evidence {file} is written by this run; choose another --model-id, or give a "
                "copy of the file"
            )
    return [sha256(file) for file in files]


def open_trace(
    run: Run, questions: Path, shared: Record, environment: Record, *, overwrite: bool
) -> TraceWriter:
    """The writer of a run's trace; InputError if it cannot be written."""
    if run.answer_file.resolve() == questions.resolve():
        raise InputError(f"the answer file {questions} is the question file; choose another")
    own = {"method": run.method.name, **run.options, "model_id": run.model_id}
    if (checksum := run.method.drafts_from(run.options)) is not None:
        own["drafts_from"] = checksum
    return TraceWriter(run.answer_file, own | shared, environment, overwrite=overwrite)


def list_assignments(
    questions: Sequence[Question], done: Mapping[str, set[Any]]
) -> list[Assignment]:
    """The unanswered questions with their runs; the first run on one is the last on the next."""
    names = list(done)
    assignments = []
    for index, question in enumerate(questions):
        first = index % len(names)
        order = names[first:] + names[:first]
        todo = [name for name in order if question.question_id not in done[name]]
        if todo:
            assignments.append((question, todo))
    return assignments


def shared_settings(settings: RunSettings, target: Target, questions: Path) -> Record:
    """Everything an answer depends on except the method's options, for a sidecar.

    Filters of samples are included only if they are on. `questions` is the question file.
    """
    sampling = settings.answers.sampling
    filters = {name: getattr(sampling, name) for name in FILTERS}
    return {
        "model": model_name(target.path),
        "model_fingerprint": target.fingerprint,
        "tokenizer_fingerprint": target.tokenizer_fingerprint,
        "bench_name": settings.questions.bench_name,
        "questions": sha256(questions),
        "template": target.prompts.template,
        "max_new_tokens": settings.answers.max_new_tokens,
        "num_choices": settings.answers.num_choices,
        "temperature": sampling.temperature,
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": "cpu" if target.device == "cpu" else "cuda",
        "num_gpus_per_model": target.gpus,
        "seed": sampling.seed,
        **{name: value for name, value in filters.items() if value != getattr(Sampling, name)},
    }


def restore(answerers: Mapping[str, Answerer], writers: Mapping[str, TraceWriter]) -> None:
    """Have every method know what it had learnt when its run was stopped.

    InputError if what was kept cannot be read.
    """
    for name, answerer in answerers.items():
        engine, writer = answerer.engine, writers[name]
        if isinstance(engine, KVEngine) and type(engine.drafter).restore is not Drafter.restore:
            path = state_path(writer.path)
            with way_out(f"delete {path} to go on without what was learnt"):
                state = writer.read_state(engine.drafter)
                if state is not None:
                    engine.drafter.restore(state)


def answer_here(
    answerers: dict[str, Answerer],
    assignments: list[Assignment],
    environment: Record,
    step_cost: Path | None,
    identity: Mapping[str, Any],
) -> Generator[TraceLine, None, None]:
    """Answer questions with a model loaded in this process.

    Between questions, what a step costs is measured into the file `step_cost`, unless it is None;
    `identity` is model_and_machine(), for that file.
    """
    costs = None
    for answerer in answerers.values():
        if step_cost is not None and isinstance(answerer.engine, KVEngine):
            costs = StepCostFile(answerer.engine.model, step_cost, 64, identity)
            break
    for at, (question, names) in enumerate(assignments):
        if costs is not None and at % METER_EVERY == 0:
            costs.measure()
        for name in names:
            answerer = answerers[name]
            record = answerer.answer(question)
            facts, state = answerer.engine.facts, answerer.engine.state()
            yield TraceLine(name, record, environment | facts, state)


def write_with_progress(
    lines: Iterable[TraceLine], writers: dict[str, TraceWriter], count: int
) -> None:
    """Write every line when it comes; the progress bar shows its run's MAT and speed so far."""
    accept_lengths: dict[str, list[int]] = {name: [] for name in writers}
    speeds: dict[str, list[float]] = {name: [] for name in writers}
    several = len(writers) > 1
    short = {name: name.rpartition("-")[2] if several else name for name in writers}

    def so_far(name: str) -> str:
        return f"MAT {np.mean(accept_lengths[name]):.2f}, {np.mean(speeds[name]):.1f} tokens/s"

    with tqdm(lines, total=count, unit="answer") as bar:
        for name, record, environment, state in bar:
            writers[name].write(record, environment, state)
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
    said = []
    for name, writer in writers.items():
        failed = [q.question_id for q in questions if q.question_id in writer.failed]
        if failed:
            first = failed[0]
            said.append(f"{name}: {len(failed)} (the first is {first}: {writer.failed[first]})")
    if said:
        raise Incomplete(
            f"questions that could not be answered, of {', '.join(said)}; they are left out of "
            "the tables, and a run with the same flags tries them again"
        )
