"""A chat in the terminal, or with --web a page, that shows where each accepted draft came from.

python -m evaluation.demo --model-path checkpoints/smollm2-135m-instruct
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text as Styled

from model.logitspec import DecodingResult, Drafter, VanillaDrafter
from model.logitspec.decoding import Step
from model.logitspec.drafters.base import CONTINUED, COPIED, GUESSED, NEXT, RETRIEVED
from model.logitspec.errors import InputError

from .arguments import (
    Parser,
    add_listening_flags,
    add_machine_flags,
    add_sampling_flags,
    run_command,
)
from .chat import Chat, Job, add_chat_flags
from .eval import sampling_of
from .traces import check_writable

STYLES = {
    NEXT: "default",
    RETRIEVED: "green",
    GUESSED: "yellow",
    CONTINUED: "magenta",
    COPIED: "cyan",
}
HELP = "/vanilla: the last prompt again, one token a step; /new: begin anew; /quit or Ctrl-D"


class Answer:
    """An answer as it grows: its coloured text and its numbers."""

    def __init__(self) -> None:
        self.text = Styled()
        self.tokens = self.steps = self.nodes = 0
        self._start = time.perf_counter()
        self.seconds = 0.0

    def add(self, step: Step, pieces: list[str]) -> None:
        for node, piece in zip(step.path, pieces, strict=True):
            self.text.append(piece, STYLES[step.origins[node]])
        self.tokens += len(step.path)
        self.nodes += len(step.tree)
        self.steps += 1
        self.seconds = time.perf_counter() - self._start

    @property
    def numbers(self) -> str:
        if not self.steps:
            return "reading the prompt"
        return (
            f"{self.tokens} tokens in {self.steps} steps of {self.nodes / self.steps:.1f} nodes: "
            f"MAT {self.tokens / self.steps:.2f}, {self.tokens / self.seconds:.1f} tokens/s"
        )


class TerminalChat:
    """The conversation, and what is drawn of it.

    Args:
        chat: answers.
        console: to draw on.
        args: the flags.
    """

    def __init__(self, chat: Chat, console: Console, args: argparse.Namespace) -> None:
        self._chat = chat
        self._console = console
        self._args = args
        self._sampling = sampling_of(args)
        self.begin()

    def begin(self) -> None:
        """Forget what was said."""
        system = self._args.system
        self._messages = [{"role": "system", "content": system}] if system else []

    def legend(self) -> Styled:
        drafted = [(f"{origin}  ", style) for origin, style in STYLES.items()]
        return Styled.assemble(*drafted)

    def ask(self, prompt: str) -> None:
        """Answer a prompt, on the screen."""
        self._messages.append({"role": "user", "content": prompt})
        spoken, answer, _ = self._answer(None)
        self._messages.append({"role": "assistant", "content": spoken})
        self._last = answer

    def again(self) -> None:
        """Answer the last prompt by plain decoding, and compare."""
        if len(self._messages) < 2:
            self._console.print("nothing was asked yet", style="dim")
            return
        told = self._messages.pop()
        try:
            spoken, answer, _ = self._answer(VanillaDrafter())
        finally:
            self._messages.append(told)
        same = "the same text" if spoken == told["content"] else "another text (rounding)"
        ratio = answer.seconds / answer.tokens / (self._last.seconds / self._last.tokens)
        self._console.print(
            f"vanilla: {same}, {ratio:.2f} times the time per token", style="bold", highlight=False
        )

    def _answer(self, drafter: Drafter | None) -> tuple[str, Answer, DecodingResult]:
        prompt = self._chat.prompt(self._messages)
        positions = self._chat.target.max_positions
        most = max(1, min(self._args.max_new_tokens, positions - len(prompt)))
        answer = Answer()
        spoken: list[str] = []
        job = Job(prompt, most, self._sampling, on_text=spoken.append, drafter=drafter)

        def drawn() -> Group:
            return Group(answer.text, Styled(answer.numbers, "dim"))

        with Live(console=self._console, transient=True, auto_refresh=False) as live:

            def step(done: Step, pieces: list[str]) -> None:
                answer.add(done, pieces)
                live.update(drawn(), refresh=True)

            job.on_step = step
            result = self._chat.answer(job)
        self._console.print(drawn())
        return "".join(spoken), answer, result


def converse(args: argparse.Namespace) -> None:
    """What main() does without --web."""
    export = args.record
    if export is not None:
        if export.suffix not in (".svg", ".html"):
            raise InputError(f"--record {export} is neither FILE.svg nor FILE.html")
        check_writable(export)
    console = Console(record=export is not None, width=100 if export is not None else None)
    talk = TerminalChat(Chat(args), console, args)
    console.print(talk.legend())
    try:
        if args.prompt:
            for prompt in args.prompt:
                console.print(f"\n> {prompt}", style="bold", highlight=False)
                talk.ask(prompt)
                if args.compare:
                    talk.again()
        else:
            console.print(HELP, style="dim")
            loop(talk, console)
    finally:
        if export is not None:
            title = f"logitspec, {args.method}"
            if export.suffix == ".svg":
                console.save_svg(str(export), title=title)
            else:
                console.save_html(str(export))


def loop(talk: TerminalChat, console: Console) -> None:
    """Read prompts until there are no more."""
    while True:
        try:
            said = console.input("\n[bold]> [/bold]").strip()
        except EOFError:
            return
        if said == "/quit":
            return
        if said == "/new":
            talk.begin()
        elif said == "/vanilla":
            talk.again()
        elif said.startswith("/"):
            console.print(HELP, style="dim")
        elif said:
            try:
                talk.ask(said)
            except InputError as error:
                console.print(str(error), style="red", highlight=False)
                talk.begin()


def run(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    if args.web:
        from .demo_web import serve_page

        serve_page(args)
    else:
        converse(args)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m evaluation.demo", "Chat, and see where the accepted drafts came from."
    )
    add = parser.add_argument
    add_chat_flags(parser)
    add("--system", metavar="TEXT", help="a system message")
    add("--prompt", action="append", metavar="TEXT", help="answer this and end; may be repeated")
    add("--compare", action="store_true", help="with --prompt: each also by plain decoding")
    add(
        "--record", type=Path, metavar="FILE",
        help="write what was on the screen to a file, .svg or .html",
    )  # fmt: skip
    add("--web", action="store_true", help="a page on this machine, with the draft trees drawn")
    add_listening_flags(parser)
    add_sampling_flags(parser)
    add_machine_flags(parser)
    parser.set_defaults(num_choices=1)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args), "ended")


if __name__ == "__main__":
    sys.exit(main())
