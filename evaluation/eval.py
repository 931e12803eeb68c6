"""run_eval: questions in, traces out, one per method. All inference scripts end here."""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shortuuid
import torch
from tqdm import tqdm

from model.logitspec.decoding import check_lengths
from model.logitspec.devices import resolve_device
from model.logitspec.errors import InputError, brief
from model.logitspec.sampling import Sampling

from .arguments import Incomplete, check_slice
from .engines import GREEDY, Engine, KVEngine, Models
from .environment import describe_run
from .methods import Method, Options
from .prompts import answer_text
from .questions import Question, load_questions, question_path, sha256
from .step_costs import METER_EVERY, StepCosts, measured_rounds, what_is_measured
from .targets import Target, model_name
from .traces import FILTERS, PHASES, Record, TraceWriter, check_writable

WARMUP_TOKENS = 64


@dataclass(frozen=True)
class Run:
    """One method's part in an evaluation."""

    method: Method
    options: Options  # all of the method's
    model_id: str  # names the run in its trace; unique among the runs of an evaluation
    answer_file: Path


Job = tuple[Question, list[str]]  # a question and the model_ids of the runs to ask, in order


class Answer(NamedTuple):
    """A trace line, and where it belongs."""

    model_id: str
    record: Record  # with choices, or an error
    environment: Record | None = None  # that it was made in, if not this process's


class Broken(InputError):
    """This process can answer no more."""


class Answerer:
    """Asks an engine a question's turns and keeps the books: one trace line per question.

    Args:
        target: the checkpoint.
        engine: decodes with it.
        model_id: of the run.
        args: the shared flags.
        sampling: of the first choice; each further one takes the next seed.
    """

    def __init__(
        self,
        target: Target,
        engine: Engine,
        model_id: str,
        args: argparse.Namespace,
        sampling: Sampling = GREEDY,
    ) -> None:
        self.target = target
        self.engine = engine
        self.model_id = model_id
        self.args = args
        self.sampling = sampling

    def answer(self, question: Question) -> Record:
        """Generate all choices of all turns of one question, or say why they could not be.

        Raises:
            InputError: they could not be, and --strict is given (the question is named).
            Broken: nothing can be answered any more.
        """
        try:
            choices = [self._choice(question, index) for index in range(self.args.num_choices)]
        except Exception as error:  # one question must not cost the run
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            elif "CUDA error" in str(error):  # after which every call fails
                raise Broken(
                    f"question {question.question_id}: {brief(error)}; what is finished is on "
                    "disk, run again, without --overwrite, to go on"
                ) from error
            named = f"question {question.question_id}: "
            reason = why_it_failed(error).removeprefix(named)
            if self.args.strict:
                raise InputError(f"{named}{reason}") from error
            return failure(question, self.model_id, reason)
        return identity(question, self.model_id) | {"choices": choices, "tstamp": time.time()}

    def warm_up(self, question: Question, times: int) -> None:
        """Answer a question unmeasured and briefly, so that kernels and memory are in place.

        What the method learnt from it is forgotten: it must not meet the question warm.
        """
        prompt_ids = self.target.prompts.start().ask(question.turns[0])
        tokens = allowed_tokens(question, prompt_ids, self.target, self.args)
        with suppress(Exception):  # the question's own line will say why
            for _ in range(times):
                self.engine.generate(prompt_ids, min(tokens, WARMUP_TOKENS), self.sampling)
        self.engine.forget()

    def _choice(self, question: Question, index: int) -> Record:
        sampling = replace(self.sampling, seed=self.sampling.seed + index)
        conversation = self.target.prompts.start()
        choice: Record = {"index": index, "turns": [], "accept_lengths": []}
        for asked in question.turns:
            prompt_ids = conversation.ask(asked)
            max_new_tokens = allowed_tokens(question, prompt_ids, self.target, self.args)
            synchronize(self.target.device)
            start = time.perf_counter()
            result = self.engine.generate(prompt_ids, max_new_tokens, sampling)
            synchronize(self.target.device)
            seconds = time.perf_counter() - start
            text = answer_text(self.target.tokenizer, result.tokens, conversation.stop_strings)
            conversation.answer(text)
            choice["turns"].append(text)
            # one list for all turns, as in the reference
            choice["accept_lengths"] += result.accept_lengths
            per_turn = {
                "decoding_steps": result.steps,
                "new_tokens": len(result.tokens),
                "wall_time": seconds,
                "output_ids": result.tokens,
                "prompt_tokens": result.prompt_tokens,
                "tree_sizes": result.tree_sizes,
                "step_seconds": [round(seconds, 6) for seconds in result.step_seconds],
                "misses": result.misses,
                "next_next_ranks": result.next_next_ranks,
            }
            for phase in PHASES:
                per_turn[phase] = getattr(result, phase) if self.engine.splits_time else None
            for key, value in per_turn.items():
                choice.setdefault(key, []).append(value)
        return choice


def identity(question: Question, model_id: str) -> Record:
    """What every line of a trace begins with."""
    return {
        "question_id": question.question_id,
        "category": question.category,
        "answer_id": shortuuid.uuid(),
        "model_id": model_id,
    }


def failure(question: Question, model_id: str, reason: str) -> Record:
    """The trace line of a question that could not be answered."""
    return identity(question, model_id) | {"error": reason, "tstamp": time.time()}


def why_it_failed(error: Exception) -> str:
    """An exception as the reason in a trace line."""
    if isinstance(error, InputError):
        return str(error)
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if out_of_memory or "can't allocate memory" in str(error):  # as PyTorch says on a CPU
        return (
            "out of memory; it may do with a lower --max-new-tokens (a run of its own) or more "
            "--num-gpus-per-model"
        )
    return brief(error)


def check_prompts(
    questions: Sequence[Question], target: Target, args: argparse.Namespace
) -> list[Question]:
    """The questions whose first turn's prompt is not too long for the model, at least one.

    Raises:
        InputError: all are too long, or one is and --strict is given.
    """
    fitting, refused = [], []
    for question in questions:
        try:
            allowed_tokens(question, target.prompts.start().ask(question.turns[0]), target, args)
            fitting.append(question)
        except InputError as error:
            refused.append(str(error))
    if refused and (args.strict or not fitting):
        raise InputError(refused[0])
    if refused:
        print(
            f"{len(refused)} of {len(questions)} questions cannot be answered, the first is "
            f"{refused[0]}"
        )
    return fitting


def allowed_tokens(
    question: Question, prompt_ids: list[int], target: Target, args: argparse.Namespace
) -> int:
    """How many tokens a turn may generate: --max-new-tokens, or what --cap-new-tokens leaves of it.

    Raises:
        InputError: the prompt and as many tokens exceed the model's positions.
    """
    wanted = int(args.max_new_tokens)
    if args.cap_new_tokens:
        wanted = max(1, min(wanted, target.max_positions - len(prompt_ids)))
    try:
        check_lengths(len(prompt_ids), wanted, target.max_positions)
    except InputError as error:
        way_out = "" if args.cap_new_tokens else "; --cap-new-tokens makes do with what is left"
        raise InputError(f"question {question.question_id}: {error}{way_out}") from error
    return wanted


def synchronize(device: str) -> None:
    """Wait for everything queued on the GPUs in use; nothing to wait for on a CPU."""
    if device == "auto":
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
    elif device != "cpu":
        torch.cuda.synchronize(device)


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
            from .sharding import answer_in_workers

            found = answer_in_workers(build_answerers, describe, jobs, workers, strict=args.strict)
        else:
            found = answer_here(build_answerers(), jobs, args.step_cost, made)
        with closing(found) as answers:
            write_with_progress(answers, writers, todo)
        say_what_failed(writers, [question for question, _ in jobs])


def chosen_questions(args: argparse.Namespace) -> tuple[Path, list[Question]]:
    """The benchmark's file, and the slice of it that the shared flags ask for.

    Raises:
        InputError: there is no such file or slice.
    """
    path = question_path(args.bench_name)
    questions = load_questions(path)
    questions = questions[check_slice(args.question_begin, args.question_end, questions, path)]
    return path, questions[:: args.question_stride]


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
    step_cost: Path | None,
    made: Mapping[str, Any],
) -> Generator[Answer, None, None]:
    """Answer the questions as they are asked for, with a model loaded here.

    Args:
        answerers: by model_id.
        jobs: to do.
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
            yield Answer(name, answerers[name].answer(question))


@dataclass(frozen=True)
class Workers:
    """Copies of the model, each in a process of its own."""

    count: int
    gpus: int  # of each; 0: it runs on CPUs
    address: str | None = None  # of a Ray cluster; None: this machine alone


def find_workers(args: argparse.Namespace) -> Workers | None:
    """The workers that the flags ask for; None: this process does it.

    Raises:
        InputError: there cannot be so many, as far as can be told from here.
    """
    per_model = args.num_gpus_per_model
    total = args.num_gpus_total or per_model
    if args.num_workers is not None:
        if args.num_gpus_total or per_model > 1:
            raise InputError(
                "--num-workers is for a CPU; with GPUs give --num-gpus-total, and "
                "--num-gpus-per-model"
            )
        if resolve_device(args.device, 1) != "cpu":
            raise InputError(
                f"--num-workers {args.num_workers} is for a CPU, and the device is a GPU; give "
                "--device cpu, or --num-gpus-total instead"
            )
        if args.num_workers == 1 and args.ray_address is None:
            return None
        return Workers(args.num_workers, 0, args.ray_address)
    if total % per_model:
        raise InputError(
            f"--num-gpus-total {total} is no multiple of --num-gpus-per-model {per_model}"
        )
    workers = int(total // per_model)
    if workers == 1 and args.ray_address is None:
        return None
    if args.device not in ("auto", "cuda"):
        raise InputError(
            f"--num-gpus-total {total} asks for {workers} copies of the model, "
            f"--device {args.device} has room for one; use --device cuda"
            if workers > 1
            else f"--ray-address with --device {args.device} wants --num-workers"
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if args.ray_address is None and total > gpus:
        raise InputError(
            f"--num-gpus-total is {total}, torch sees {gpus} GPU(s) here; ask for no more than "
            "that, or for --num-workers on a CPU"
        )
    if gpus == 0:
        raise InputError(
            f"--ray-address {args.ray_address}: torch sees no GPU here; run this on a machine like "
            "the workers', or ask for --num-workers on CPUs"
        )
    return Workers(workers, per_model, args.ray_address)


def write_with_progress(
    answers: Iterable[Answer], writers: dict[str, TraceWriter], count: int
) -> None:
    """Write each record as it comes, with its run's MAT and speed so far on the progress bar."""
    accept_lengths: dict[str, list[int]] = {name: [] for name in writers}
    speeds: dict[str, list[float]] = {name: [] for name in writers}

    def so_far(name: str) -> str:
        return f"MAT {np.mean(accept_lengths[name]):.2f}, {np.mean(speeds[name]):.1f} tokens/s"

    with tqdm(answers, total=count, unit="answer") as bar:
        for name, record, environment in bar:
            writers[name].write(record, environment)
            if "error" in record:
                bar.write(f"{name}: question {record['question_id']} failed: {record['error']}")
                continue
            choice = record["choices"][0]
            accept_lengths[name] += choice["accept_lengths"]
            speeds[name].append(sum(choice["new_tokens"]) / sum(choice["wall_time"]))
            bar.set_postfix_str(so_far(name) if len(writers) == 1 else f"{name}: {so_far(name)}")
    for name in writers:
        if speeds[name]:
            print(f"{name}: {so_far(name)}")


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
