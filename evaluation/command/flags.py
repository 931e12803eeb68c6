"""Every flag that several commands share, and the settings that are read from them.

A flag's destination is the name of a field in asking.settings, which has most flags' help too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from model.logitspec.sampling import Sampling

from ..asking.settings import (
    AnswerSettings,
    ChatSettings,
    ListeningSettings,
    QuestionSettings,
    RunSettings,
    TargetSettings,
    WorkerSettings,
)
from .parser import Parser, at_least, plain_name

Settings = TypeVar("Settings")


def read(kind: type[Settings], args: argparse.Namespace, **more: Any) -> Settings:
    """Settings of a kind: the flags with its fields' names, and `more`; or the defaults."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in vars(args).items() if name in names} | more)


def read_run(args: argparse.Namespace) -> RunSettings:
    """The settings of add_run_flags, add_machine_flags and add_warmup_flag."""
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

    InputError if they make no sense, or the last choice's seed is too large.
    """
    sampling = read(Sampling, args, top_k=args.sampling_top_k)
    replace(sampling, seed=sampling.seed + num_choices - 1)
    return sampling


def add_settings(parser: Parser, kind: type[Any], *names: str) -> None:
    """The flags of these fields of a class of asking.settings; of all its flags, without names."""
    by_name = {field.name: field for field in fields(kind) if field.metadata}
    for name in names or by_name:
        field = by_name[name]
        words = dict(field.metadata)
        if field.default is False:
            words |= {"action": "store_true"}
            del words["type"]
        parser.add_argument("--" + name.replace("_", "-"), default=field.default, **words)


def add_model_path(parser: Parser) -> None:
    parser.add_argument(
        "--model-path", required=True, help="checkpoint: a local directory, a hub id or a GGUF file"
    )


def add_slice_flags(parser: Parser, stride: int = 1) -> None:
    """Which of a benchmark's questions."""
    add_settings(parser, QuestionSettings, "question_begin", "question_end", "question_stride")
    parser.set_defaults(question_stride=stride)


def inference_parser(prog: str, description: str) -> Parser:
    """A parser with the flags that all inference scripts share."""
    parser = Parser(f"python -m evaluation.{prog}", description)
    add_run_flags(parser)
    text = "instead of data/NAME/model_answer/ID.jsonl"
    parser.add_argument("--answer-file", type=Path, metavar="FILE", help=text)
    add_machine_flags(parser)
    add_warmup_flag(parser)
    return parser


def add_run_flags(parser: Parser) -> None:
    """What is asked, of which model, and where the answers go."""
    add_model_path(parser)
    parser.add_argument(
        "--model-id", required=True, type=plain_name, help="name of the run and its answer file"
    )
    add_settings(parser, QuestionSettings)
    add_settings(parser, AnswerSettings, "max_new_tokens", "cap_new_tokens", "num_choices")
    add_sampling_flags(parser)
    add_settings(parser, TargetSettings, "conv_template")
    add_settings(parser, WorkerSettings)
    add_settings(parser, AnswerSettings, "strict")
    add_settings(parser, RunSettings, "overwrite", "evidence")


SAMPLING: tuple[tuple[str, Callable[[str], Any], str | None, str], ...] = (
    # field, type, metavar, help
    ("temperature", float, None, "of sampling; 0: the best token (greedy)"),
    ("top_k", at_least(0), "K", "sample from the K best tokens only; 0: from all"),
    ("top_p", float, None, "only from the best that make up this probability"),
    ("min_p", float, None, "only from those of this share of the best one's"),
    ("repetition_penalty", float, "R", "divide positive logits of tokens in the context by this, "
     "multiply negative ones"),
    ("seed", at_least(0, 2**63 - 1), None, "of sampling"),
)  # fmt: skip


def add_sampling_flags(parser: Parser, *names: str, choices: bool = True) -> None:
    """How the target chooses its tokens: flags of these names, or all; `choices`: the parser has
    --num-choices."""
    for name, kind, metavar, text in SAMPLING:
        if names and name not in names:
            continue
        dest = "sampling_top_k" if name == "top_k" else name  # some methods have a top_k
        if name == "seed" and choices:
            text += "; with --num-choices each further choice takes the next one"
        parser.add_argument(
            "--" + name.replace("_", "-"), dest=dest, type=kind, metavar=metavar, help=text,
            default=getattr(Sampling, name),
        )  # fmt: skip


def add_listening_flags(parser: Parser) -> None:
    """Where a server listens."""
    add_settings(parser, ListeningSettings)


def add_machine_flags(parser: Parser) -> None:
    """What the model runs on."""
    names = ("dtype", "device", "num_gpus_per_model", "cpu_kernels", "cuda_graphs")
    add_settings(parser, TargetSettings, *names)
    add_trust_flags(parser)


def add_trust_flags(parser: Parser) -> None:
    """What of a checkpoint may run code."""
    add_settings(parser, TargetSettings, "trust_remote_code", "allow_pickle")


def add_warmup_flag(parser: Parser) -> None:
    add_settings(parser, RunSettings, "warmup")


def add_chat_flags(parser: Parser) -> None:
    """The model, the method, and the length of answers."""
    add_model_path(parser)
    add_settings(parser, ChatSettings)
    parser.add_argument("--conv-template", metavar="NAME", help="as in the inference scripts")
