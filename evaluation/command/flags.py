"""Every flag that several commands share, and the settings that are read from them.

A flag's destination is the name of a field in asking.settings.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from model.logitspec.sampling import Sampling

from ..asking.settings import (
    AnswerSettings,
    QuestionSettings,
    RunSettings,
    TargetSettings,
    WorkerSettings,
)
from .parser import Parser, at_least, plain_name

Settings = TypeVar("Settings")


def read(kind: type[Settings], args: argparse.Namespace, **more: Any) -> Settings:
    """Settings of a kind: the flags with its fields' names; other fields keep their default.

    Args:
        kind: a class of asking.settings.
        args: the parsed flags.
        more: fields that are no flags.
    """
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in vars(args).items() if name in names} | more)


def read_run(args: argparse.Namespace) -> RunSettings:
    """The settings of add_run_flags, add_machine_flags and add_warmup_flag.

    Raises:
        InputError: the sampling flags make no sense.
    """
    return read(
        RunSettings,
        args,
        target=read(TargetSettings, args),
        questions=read(QuestionSettings, args),
        answers=read(AnswerSettings, args, sampling=read_sampling(args, args.num_choices)),
        workers=read(WorkerSettings, args),
    )


def read_sampling(args: argparse.Namespace, num_choices: int = 1) -> Sampling:
    """The settings of add_sampling_flags, for the first of some choices.

    Raises:
        InputError: they make no sense, or the last choice's seed is too large.
    """
    sampling = Sampling(
        temperature=args.temperature,
        top_k=args.sampling_top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )
    replace(sampling, seed=sampling.seed + num_choices - 1)
    return sampling


def add_slice_flags(parser: Parser, stride: int = 1) -> None:
    """Which of a benchmark's questions."""
    add = parser.add_argument
    add("--question-begin", type=int, metavar="I", help="index of the first question of a slice")
    add("--question-end", type=int, metavar="J", help="index behind the last question of a slice")
    add(
        "--question-stride",
        type=at_least(1),
        default=stride,
        metavar="K",
        help="only every K-th of them",
    )


def inference_parser(prog: str, description: str) -> Parser:
    """A parser with the flags that all inference scripts share."""
    parser = Parser(f"python -m evaluation.{prog}", description)
    add_run_flags(parser)
    parser.add_argument(
        "--answer-file",
        type=Path,
        metavar="FILE",
        help="instead of data/NAME/model_answer/ID.jsonl",
    )
    add_machine_flags(parser)
    add_warmup_flag(parser)
    return parser


def add_run_flags(parser: Parser) -> None:
    """What is asked, of which model, and where the answers go."""
    add = parser.add_argument
    add(
        "--model-path", required=True, help="checkpoint: a local directory, a hub id or a GGUF file"
    )
    add("--model-id", required=True, type=plain_name, help="name of the run and its answer file")
    add("--bench-name", default="spec_bench", type=plain_name, help="data/NAME/question.jsonl")
    add_slice_flags(parser)
    add("--max-new-tokens", type=at_least(1), default=1024, help="most tokens generated per turn")
    add(
        "--cap-new-tokens",
        action="store_true",
        help="give a long prompt fewer new tokens, as many as the model's positions leave, instead "
        "of refusing it",
    )
    add("--num-choices", type=at_least(1), default=1, help="answers generated per question")
    add_sampling_flags(parser)
    add(
        "--conv-template",
        metavar="NAME",
        help="FastChat template, or `tokenizer` for the tokenizer's chat template (default: "
        "FastChat's for Vicuna, Llama-2-chat and CodeLlama, and where both give the same prompts; "
        "else the tokenizer's, or FastChat's where that has none)",
    )
    add(
        "--num-gpus-total",
        type=at_least(1),
        help="GPUs in all (default: those of one copy); more copies need the extra `ray`",
    )
    add(
        "--num-workers",
        type=at_least(1),
        metavar="W",
        help="copies of the model on a CPU, which share its cores; more than one need the extra "
        "`ray`",
    )
    add(
        "--ray-address",
        metavar="HOST:PORT",
        help="of a Ray cluster for the copies of the model (default: this machine alone)",
    )
    add(
        "--strict",
        action="store_true",
        help="stop at a question that cannot be answered, instead of noting why and going on",
    )
    add(
        "--overwrite",
        action="store_true",
        help="start the answer file anew instead of going on with it; the old one is kept as .bak",
    )


def add_sampling_flags(parser: Parser, *, choices: bool = True) -> None:
    """How the target chooses its tokens; Sampling refuses what makes no sense.

    Args:
        parser: to add to.
        choices: it has --num-choices.
    """
    add = parser.add_argument
    add("--temperature", type=float, default=0.0, help="of sampling; 0: the best token (greedy)")
    add(
        "--top-k",
        dest="sampling_top_k",
        type=at_least(0),
        default=0,
        metavar="K",
        help="sample from the K best tokens only; 0: from all",
    )
    add("--top-p", type=float, default=1.0, help="only from the best that make up this probability")
    add("--min-p", type=float, default=0.0, help="only from those of this share of the best one's")
    add(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="divide positive logits of tokens in the context by this, multiply negative ones",
    )
    add(
        "--seed",
        type=at_least(0, 2**63 - 1),
        default=0,
        help="of sampling"
        + ("; with --num-choices each further choice takes the next one" if choices else ""),
    )


def add_listening_flags(parser: Parser) -> None:
    """Where a server listens."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one")
    add("--port", type=at_least(0, 65535), default=8000, help="to listen on; 0: any that is free")


def add_machine_flags(parser: Parser) -> None:
    """What the model runs on."""
    add = parser.add_argument
    add(
        "--dtype",
        default="auto",
        help="float16, bfloat16, float32, float64; auto: bfloat16 where the device has it "
        "natively, else float32 on a CPU, float16 on a GPU",
    )
    add("--device", default="auto", help="cpu, cuda or cuda:N; auto: cuda where there is one")
    add(
        "--num-gpus-per-model", type=at_least(1), default=1, help="GPUs one copy of the model spans"
    )
    add(
        "--cpu-kernels",
        default="auto",
        help="native: one call for all layers, compiled when first used; packed: weights "
        "rearranged for oneDNN; plain: PyTorch's operators; auto: the first of them that runs here",
    )
    add(
        "--cuda-graphs",
        default="auto",
        help="on, off; auto: on where the model is on one GPU",
    )
    add_trust_flags(parser)


def add_trust_flags(parser: Parser) -> None:
    """What of a checkpoint may run code."""
    add = parser.add_argument
    add(
        "--trust-remote-code",
        action="store_true",
        help="let Python code that comes with the checkpoint run",
    )
    add(
        "--allow-pickle",
        action="store_true",
        help="read weights that are there as pickles only (*.bin), which can run code",
    )


def add_warmup_flag(parser: Parser) -> None:
    parser.add_argument(
        "--warmup", type=at_least(0), default=3, help="unmeasured runs of the first question"
    )


def add_chat_flags(parser: Parser) -> None:
    """The model, the method, and the length of answers."""
    add = parser.add_argument
    add(
        "--model-path", required=True,
        help="checkpoint: a local directory, a hub id or a GGUF file",
    )  # fmt: skip
    add(
        "--method", default="calibrated@auto", metavar="NAME",
        help="of evaluation.run, NAME@16 and FILE.py:CLASS included",
    )  # fmt: skip
    add("--max-new-tokens", type=at_least(1), default=1024, help="most tokens of an answer")
    add("--conv-template", metavar="NAME", help="as in the inference scripts")
