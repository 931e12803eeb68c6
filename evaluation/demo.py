"""A chat in the terminal, or with --web a page, that shows where each accepted draft came from.

python -m evaluation.demo --model-path checkpoints/smollm2-135m-instruct
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.containers import Lines
from rich.live import Live
from rich.text import Text as Styled

from model.logitspec import DecodingResult, Drafter, Sampling, VanillaDrafter
from model.logitspec.decoding import Step, check_lengths
from model.logitspec.errors import InputError
from model.logitspec.origins import CONTINUED, COPIED, GUESSED, NEXT, RETRIEVED

from .asking.settings import ChatSettings, ListeningSettings, TargetSettings
from .chatting.chat import Chat, Job
from .command.exits import run_command
from .command.files import check_writable
from .command.flags import (
    add_chat_flags,
    add_listening_flags,
    add_machine_flags,
    add_sampling_flags,
    read,
    read_sampling,
)
from .command.parser import Parser

STYLES = {
    NEXT: "default", RETRIEVED: "green", GUESSED: "yellow", CONTINUED: "magenta", COPIED: "cyan",
}  # fmt: skip
HELP = "/vanilla: the last prompt again, one token a step; /new: begin anew; /quit or Ctrl-D"


@dataclass(frozen=True)
class TerminalOptions:
    """What is asked without a keyboard, and where the screen is recorded; not for --web."""

    prompt: Sequence[str] = ()
    compare: bool = False
    record: Path | None = None


class Answer:
    """A growing answer: its coloured text and its numbers."""

    def __init__(self) -> None:
        self.text = Styled()
        self.tokens = self.steps = self.nodes = 0
        self._given = 0  # characters of `text`, which drops control characters
        self.rate = 0.0  # tokens/s, known at the end

    def add(self, step: Step, pieces: list[str]) -> None:
        for node, piece in zip(step.path, pieces, strict=True):
            self.text.append(piece, STYLES[step.origins[node]])
            self._given += len(piece)
        self.tokens += len(step.path)
        self.nodes += len(step.tree)
        self.steps += 1

    def end(self, text: str, result: DecodingResult) -> None:
        """Add the text that was held back, and the rate without the time of drawing."""
        self.text.append(text[self._given :])
        self.rate = self.tokens / (result.prefill_seconds + sum(result.step_seconds))

    @property
    def numbers(self) -> str:
        if not self.steps:
            return "reading the prompt"
        said = (
            f"{self.tokens} tokens in {self.steps} steps of {self.nodes / self.steps:.1f} nodes: "
            f"MAT {self.tokens / self.steps:.2f}"
        )
        return f"{said}, {self.rate:.1f} tokens/s" if self.rate else said

    def shown(self, console: Console | None = None) -> Group:
        """The answer, or its last lines that fit on a console."""
        numbers = Styled(self.numbers, "dim")
        if console is None:
            return Group(self.text, numbers)
        lines = self.text.wrap(console, console.width)
        return Group(Lines(lines[-max(1, console.height - 3) :]), numbers)


class TerminalChat:
    """A conversation drawn in the terminal."""

    def __init__(self, chat: Chat, settings: ChatSettings, sampling: Sampling) -> None:
        self._chat = chat
        self._console = Console()
        self._settings = settings
        self._sampling = sampling
        self.recorded = Console(record=True, file=io.StringIO(), width=100)
        self.begin()

    def print(self, shown: Any, style: str | None = None) -> None:
        """Print on the screen and into the recording."""
        for console in (self._console, self.recorded):
            console.print(shown, style=style, markup=False, highlight=False)

    def begin(self) -> None:
        """Begin a new conversation."""
        system = self._settings.system
        self._messages = [{"role": "system", "content": system}] if system else []

    def ask(self, prompt: str) -> None:
        """Answer a prompt. InputError if it does not fit the model: the conversation stays."""
        self._messages.append({"role": "user", "content": prompt})
        try:
            spoken, answer = self._answer(None)
        except InputError:
            self._messages.pop()
            raise
        self._messages.append({"role": "assistant", "content": spoken})
        self._last = answer

    def again(self) -> None:
        """Answer the last prompt again by plain decoding, and compare."""
        if len(self._messages) < 2:
            self.print("nothing was asked yet", "dim")
            return
        told = self._messages.pop()
        try:
            spoken, answer = self._answer(VanillaDrafter())
        finally:
            self._messages.append(told)
        same = "the same text" if spoken == told["content"] else "another text (rounding)"
        ratio = self._last.rate / answer.rate
        self.print(f"vanilla: {same}, {ratio:.2f} times the time per token", "bold")

    def _answer(self, drafter: Drafter | None) -> tuple[str, Answer]:
        prompt = self._chat.prompt(self._messages)
        most = self._chat.fitting_tokens(prompt, self._settings.max_new_tokens)
        check_lengths(len(prompt), most, self._chat.target.max_positions)
        answer = Answer()
        spoken: list[str] = []
        job = Job(prompt, most, self._sampling, on_text=spoken.append, drafter=drafter)
        with Live(console=self._console, transient=True, auto_refresh=False) as live:

            def step(done: Step, pieces: list[str]) -> None:
                answer.add(done, pieces)
                live.update(answer.shown(self._console), refresh=True)

            job.on_step = step
            result = self._chat.answer(job)
        answer.end("".join(spoken), result)
        self.print(answer.shown())
        return "".join(spoken), answer


def converse(
    target: TargetSettings, settings: ChatSettings, sampling: Sampling, options: TerminalOptions
) -> None:
    """Chat in the terminal."""
    export = options.record
    if export is not None:
        if export.suffix not in (".svg", ".html"):
            raise InputError(f"--record {export} is neither FILE.svg nor FILE.html")
        check_writable(export)
    if options.compare and not options.prompt:
        raise InputError("--compare goes with --prompt; at the keyboard type /vanilla")
    chat = Chat(target, settings.method)
    talk = TerminalChat(chat, settings, sampling)
    talk.print(Styled.assemble(*((f"{origin}  ", style) for origin, style in STYLES.items())))
    try:
        if options.prompt:
            for prompt in options.prompt:
                talk.print(Styled(f"\n> {prompt}", "bold"))
                talk.ask(prompt)
                if options.compare:
                    talk.again()
        else:
            loop(talk)
    finally:
        if export is not None:
            if export.suffix == ".svg":
                talk.recorded.save_svg(str(export), title=f"logitspec, {settings.method}")
            else:
                talk.recorded.save_html(str(export))


def loop(talk: TerminalChat) -> None:
    """Read prompts until there are no more."""
    print(HELP)
    while True:
        try:
            said = input("\n> ").strip()
            said.encode()
        except EOFError:
            print()
            return
        except UnicodeError:
            print("that was not UTF-8 text")
            continue
        talk.recorded.print(Styled(f"\n> {said}", "bold"))
        if said == "/quit":
            return
        if said == "/new":
            talk.begin()
        elif said == "/vanilla":
            talk.again()
        elif said.startswith("/"):
            print(HELP)
        elif said:
            try:
                talk.ask(said)
            except InputError as error:
                talk.print(f"{error}; /new begins anew", "red")


def run(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    target, settings = read(TargetSettings, args), read(ChatSettings, args)
    sampling, options = read_sampling(args), read(TerminalOptions, args, prompt=args.prompt or ())
    for text in (settings.system or "", *options.prompt):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError("--prompt or --system is not UTF-8 text; give another") from error
    if not args.web:
        converse(target, settings, sampling, options)
        return
    for name, given in vars(options).items():
        if given:
            raise InputError(f"--{name} is for the terminal; leave it out with --web")
    from .chatting.page import make_app
    from .chatting.web import serve_app

    serve_app(
        read(ListeningSettings, args),
        lambda: Chat(target, settings.method, waiting=8),
        lambda chat: make_app(chat, settings, sampling),
        "the page is at {}",
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m evaluation.demo", "Chat, and see where the accepted drafts came from."
    )
    add = parser.add_argument
    add_chat_flags(parser)
    add("--system", metavar="TEXT", help="a system message")
    add("--prompt", action="append", metavar="TEXT", help="answer this and end; may be repeated")
    add("--compare", action="store_true", help="with --prompt: each also by plain decoding")
    screen = "write what was on the screen to a file, .svg or .html"
    add("--record", type=Path, metavar="FILE", help=screen)
    add("--web", action="store_true", help="a page on this machine, with the draft trees drawn")
    add_listening_flags(parser)
    add_sampling_flags(parser, choices=False)
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args), "ended")


if __name__ == "__main__":
    raise SystemExit(main())
