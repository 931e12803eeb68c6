"""An OpenAI-compatible server over one model: python -m evaluation.serve --help.

/v1/chat/completions and /v1/completions, streamed (SSE) or not, and /v1/models. Requests wait in a
bounded queue and are answered one at a time; usage says how many drafted tokens were accepted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .asking.settings import ChatSettings, ListeningSettings, TargetSettings
from .asking.target import model_name
from .chatting.chat import Chat
from .chatting.server import make_app
from .chatting.web import serve_app
from .command.exits import run_command
from .command.flags import add_chat_flags, add_listening_flags, add_machine_flags, read
from .command.parser import Parser, at_least


def serve(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    settings, target = read(ChatSettings, args), read(TargetSettings, args)
    name = args.model_name or model_name(target.model_path)
    serve_app(
        read(ListeningSettings, args),
        lambda: Chat(target, settings.method, waiting=args.queue, state=args.state),
        lambda chat: make_app(chat, name, settings.max_new_tokens),
        f"{name} with {settings.method} at {{}}/v1",
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m evaluation.serve", "Serve a model by OpenAI's API.")
    add = parser.add_argument
    add_chat_flags(parser)
    add_listening_flags(parser)
    add("--queue", type=at_least(1, 100_000), default=64, metavar="N", help="most requests waiting")
    kept = "go on with what the method had learnt when this was written, and keep it there"
    add("--state", type=Path, metavar="FILE.npz", help=kept)
    add("--model-name", metavar="NAME", help="what clients call it (default: the checkpoint's)")
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: serve(args), "ended")


if __name__ == "__main__":
    raise SystemExit(main())
