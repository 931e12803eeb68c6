"""What a command was asked to do, parsed once: every function below the commands takes these.

A field made by flag() holds the help and the type of the flag of its name; command.flags adds the
flags and reads the fields. A default of None means that the flag is not given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.logitspec.sampling import Sampling

from ..command.parser import at_least, plain_name

GREEDY = Sampling()


def flag(
    text: str,
    default: Any = None,
    kind: Callable[[str], Any] = str,
    metavar: str | None = None,
    **words: Any,
) -> Any:
    """A field with the help, default, argparse type, metavar and other words of its flag."""
    words |= {"help": text, "type": kind} | ({"metavar": metavar} if metavar else {})
    return field(default=default, metadata=words)


@dataclass(frozen=True)
class TargetSettings:
    """The checkpoint, and where and how it runs; Target.resolve() checks them."""

    model_path: str
    device: str = flag("cpu, cuda or cuda:N; auto: cuda where there is one", "auto")
    dtype: str = flag(
        "float16, bfloat16, float32, float64; auto: float32 for a GGUF file on native CPU kernels, "
        "else bfloat16 where the device has it natively, else float32 on a CPU, float16 on a GPU",
        "auto",
    )
    num_gpus_per_model: int = flag("GPUs one copy of the model spans", 1, at_least(1))
    conv_template: str | None = flag(
        "FastChat template, or `tokenizer` for the tokenizer's chat template (default: FastChat's "
        "for Vicuna, Llama-2-chat and CodeLlama, and where both give the same prompts; else the "
        "tokenizer's, or FastChat's where that has none)",
        metavar="NAME",
    )
    cpu_kernels: str = flag(
        "native: one call for all layers, compiled when first used; packed: weights rearranged "
        "for oneDNN; plain: PyTorch's operators; auto: the first of them that runs here",
        "auto",
    )
    cuda_graphs: str = flag("on, off; auto: on where the model is on one GPU", "auto")
    trust_remote_code: bool = flag("let Python code that comes with the checkpoint run", False)
    allow_pickle: bool = flag(
        "read weights that are there as pickles only (*.bin), which can run code", False
    )


@dataclass(frozen=True)
class QuestionSettings:
    """Which of a benchmark's questions are asked: every `question_stride`-th of a slice."""

    bench_name: str = flag("data/NAME/question.jsonl", "spec_bench", plain_name)
    question_begin: int | None = flag("index of the first question of a slice", None, int, "I")
    question_end: int | None = flag("index behind the last question of a slice", None, int, "J")
    question_stride: int = flag("only every K-th of them", 1, at_least(1), "K")


@dataclass(frozen=True)
class AnswerSettings:
    """How a question is answered."""

    max_new_tokens: int = flag("most tokens generated per turn", 1024, at_least(1))
    cap_new_tokens: bool = flag(
        "give a long prompt fewer new tokens, as many as the model's positions leave, instead of "
        "refusing it",
        False,
    )
    num_choices: int = flag("answers generated per question", 1, at_least(1))
    strict: bool = flag(
        "stop at a question that cannot be answered, instead of noting why and going on", False
    )
    sampling: Sampling = GREEDY


@dataclass(frozen=True)
class WorkerSettings:
    """How many copies of the model answer."""

    num_gpus_total: int | None = flag(
        "GPUs in all (default: those of one copy); more copies need the extra `ray`",
        kind=at_least(1),
    )
    num_workers: int | None = flag(
        "copies of the model on a CPU, which share its cores; more than one need the extra `ray`",
        kind=at_least(1),
        metavar="W",
    )
    ray_address: str | None = flag(
        "of a Ray cluster for the copies of the model (default: this machine alone)",
        metavar="HOST:PORT",
    )


@dataclass(frozen=True)
class RunSettings:
    """A whole run over a benchmark; with `step_cost`, steps are timed between questions."""

    target: TargetSettings
    questions: QuestionSettings = field(default_factory=QuestionSettings)
    answers: AnswerSettings = field(default_factory=AnswerSettings)
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    overwrite: bool = flag(
        "start the answer file anew instead of going on with it; the old one is kept as .bak", False
    )
    warmup: int = flag("unmeasured runs of the first question", 3, at_least(0))
    evidence: tuple[Path, ...] = flag(
        "what calibrated begins with: a state that a run left (NAME.state.npz), traces, texts",
        (), Path, "FILE", nargs="+",
    )  # fmt: skip
    step_cost: Path | None = None


@dataclass(frozen=True)
class ChatSettings:
    """A conversation: the method that answers, most tokens of an answer, the system message."""

    method: str = flag(
        "of evaluation.run, NAME@16 and FILE.py:CLASS included", "calibrated@auto", metavar="NAME"
    )
    max_new_tokens: int = flag("most tokens of an answer", 1024, at_least(1))
    system: str | None = None


@dataclass(frozen=True)
class ListeningSettings:
    """Where a server listens."""

    host: str = flag("address to listen on; 0.0.0.0 is every one", "127.0.0.1")
    port: int = flag("to listen on; 0: any that is free", 8000, at_least(0, 65535))
