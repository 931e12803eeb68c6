"""The argument parser of all commands, and the types of its flags."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from .exits import ended
from .files import is_plain


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not None and False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:  # a 0 is shown
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Accepts --some-flag and --some_flag, and answers bad flags with one sentence."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog, description=description, allow_abbrev=False, formatter_class=Formatter
        )

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        given = sys.argv[1:] if args is None else list(args)
        # --max_ngram_size=3 becomes --max-ngram-size=3; other words stay as they are
        words = [re.sub("^--[^=]*", lambda m: m[0].replace("_", "-"), word) for word in given]
        return super().parse_known_args(words, namespace)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.exit(ended(self.prog, status, message or ""))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; --help lists the flags")


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least` and, if given, at most `most`."""
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
