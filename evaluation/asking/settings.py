"""What a command was asked to do, parsed once: every function below the commands takes these.

A field has the name of its flag's destination; command.flags adds the flags and reads the fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from model.logitspec.sampling import Sampling

GREEDY = Sampling()


@dataclass(frozen=True)
class TargetSettings:
    """The checkpoint, and where and how it runs; Target.resolve() checks them.

    Attributes:
        model_path: a local directory, a hub id or a GGUF file.
        num_gpus_per_model: GPUs that one copy of the model spans.
        conv_template: a FastChat template, "tokenizer", or None to choose.
        trust_remote_code: Python code that comes with the checkpoint may run.
        allow_pickle: weights that are there as pickles only are read.
    """

    model_path: str
    device: str = "auto"
    dtype: str = "auto"
    num_gpus_per_model: int = 1
    conv_template: str | None = None
    cpu_kernels: str = "auto"
    cuda_graphs: str = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True)
class QuestionSettings:
    """Which of a benchmark's questions are asked: every `question_stride`-th of a slice."""

    bench_name: str = "spec_bench"
    question_begin: int | None = None
    question_end: int | None = None
    question_stride: int = 1


@dataclass(frozen=True)
class AnswerSettings:
    """How a question is answered.

    Attributes:
        max_new_tokens: most tokens of a turn.
        cap_new_tokens: a long prompt gets fewer tokens instead of an error.
        num_choices: answers per question; each further one takes the next seed.
        strict: stop at a question that cannot be answered.
    """

    max_new_tokens: int = 1024
    cap_new_tokens: bool = False
    num_choices: int = 1
    strict: bool = False
    sampling: Sampling = GREEDY


@dataclass(frozen=True)
class WorkerSettings:
    """How many copies of the model answer; None where the flag is not given."""

    num_gpus_total: int | None = None
    num_workers: int | None = None
    ray_address: str | None = None


@dataclass(frozen=True)
class RunSettings:
    """A whole run over a benchmark.

    Attributes:
        overwrite: start the answer files anew.
        warmup: unmeasured runs of the first question.
        step_cost: a file for what a step costs, measured between questions; None: it is not.
    """

    target: TargetSettings
    questions: QuestionSettings = field(default_factory=QuestionSettings)
    answers: AnswerSettings = field(default_factory=AnswerSettings)
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    overwrite: bool = False
    warmup: int = 3
    step_cost: Path | None = None


@dataclass(frozen=True)
class ChatSettings:
    """A conversation: the method that answers, most tokens of an answer, the system message."""

    method: str = "calibrated@auto"
    max_new_tokens: int = 1024
    system: str | None = None


@dataclass(frozen=True)
class ListeningSettings:
    """Where a server listens; port 0 is any that is free."""

    host: str = "127.0.0.1"
    port: int = 8000
