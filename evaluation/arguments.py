"""Every flag of the inference scripts, once; a script adds only its own method's.

Also how a command of this repository ends on bad input: one sentence and exit status 2.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TextIO

from model.logitspec.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:  # but show a 0
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Takes --some-flag and --some_flag alike, and answers bad flags with one sentence."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=Formatter,
        )

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args([hyphenated(word) for word in given], namespace)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.exit(ended(self.prog, status, message or ""))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; --help lists the flags")


def hyphenated(word: str) -> str:
    """--max_ngram_size=3 as --max-ngram-size=3; anything but a long flag as it is."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number not below `least`, nor above `most` if that is given."""
    wanted = f"of {least} or more" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {wanted}")
        return value

    return parse


def is_plain(name: str) -> bool:
    """Whether a name is one component of a path, and leads nowhere else."""
    return bool(re.fullmatch(r"[\w.+=@-]+", name)) and set(name) != {"."}


def plain_name(text: str) -> str:
    """An argparse type: a name that is one component of a path."""
    if not is_plain(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a plain name (letters, digits and . _ - + = @ only)"
        )
    return text


def picture(text: str) -> Path:
    """An argparse type: a PNG file in a folder that is there."""
    path = Path(text)
    if path.suffix != ".png" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no FILE.png in a folder that exists")
    return path


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
    parser.set_defaults(step_cost=None)
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


TRUST = ("trust_remote_code", "allow_pickle")


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


INTERRUPTED = "interrupted; what is finished is on disk: run again, without --overwrite, to go on"


class Incomplete(Exception):
    """What a command was to do is done, but for some of it that could not be."""


def run_command(prog: str, command: Callable[[], None], interrupted: str = INTERRUPTED) -> int:
    """Run a command and give its exit status.

    0; 2 for bad input and 3 where some of the work could not be done (one sentence on stderr);
    130 for Ctrl-C and SIGTERM; 141 where nobody reads what it prints any more (as behind `| head`).

    Args:
        prog: its name, before what it says on stderr.
        command: what it does.
        interrupted: what to say at Ctrl-C.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # whatever characters a terminal or a log has
        sys.stdout.reconfigure(errors="backslashreplace")
    status, said = 0, ""
    try:
        with terminable(), plain_warnings():
            command()
    except InputError as error:
        status, said = 2, str(error)
    except Incomplete as error:
        status, said = 3, str(error)
    except KeyboardInterrupt:
        status, said = 130, interrupted
    except OSError as error:
        status, said = unwritable(error)
    return ended(prog, status, said)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """This project's own warnings are a sentence for users: without a file and a line of code."""
    usual = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any
    ) -> str:
        ours = ROOT in Path(filename).parents and "site-packages" not in filename
        if category is UserWarning and ours:
            return f"{message}\n"
        return usual(message, category, filename, *rest, **more)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


def ended(prog: str, status: int, said: str) -> int:
    """Write out what a command printed, and say how it ended; its exit status, as in run_command.

    Args:
        prog: its name.
        status: of what it did.
        said: why, if there is something to say.
    """
    lost = flush(sys.stdout)
    if lost is not None and status == 0:
        status, said = unwritable(lost)
    if said:
        with suppress(OSError):
            print(f"{prog}: {said}", file=sys.stderr)
        flush(sys.stderr)
    return status


def unwritable(error: OSError) -> tuple[int, str]:
    """Exit status, and what to say of something that could not be written.

    Raises:
        OSError: it is another error.
    """
    if error.errno == errno.EPIPE:
        return 141, ""  # as a shell has it
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise error
    return 2, f"cannot write {error.filename or 'the output'}: {error.strerror}; make room"


def flush(stream: TextIO | None) -> OSError | None:
    """Write out what a stream holds; what kept it from that, after which it leads nowhere."""
    if stream is None:
        return None
    try:
        stream.flush()
    except OSError as error:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())  # else the interpreter tries again
        return error
    return None


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is as Ctrl-C here, where signals can be caught."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def answer_folder(bench_name: str) -> Path:
    """Where a benchmark's traces go when nothing else is said."""
    return ROOT / "data" / bench_name / "model_answer"


def check_slice(
    begin: int | None, end: int | None, questions: Sequence[object], path: Path
) -> slice:
    """The slice of --question-begin and --question-end.

    Raises:
        InputError: it is empty or reaches outside the question set.
    """
    first = 0 if begin is None else begin
    last = len(questions) if end is None else end
    if not 0 <= first < last <= len(questions):
        raise InputError(
            f"questions {first} to {last} (--question-begin, --question-end) are no slice of the "
            f"{len(questions)} in {path}; give 0 <= begin < end <= {len(questions)}"
        )
    return slice(first, last)
