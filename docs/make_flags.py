"""Write docs/flags.md, the flags of every command: python -m docs.make_flags

The page is made from the parsers' actions, not from the text of --help, which changes with the
version of Python and the width of the terminal. tests/docs/test_docs.py compares the page with it.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "flags.md"
FIRST = "evaluation.run"  # whose flags the other commands share
FROM_THE_MACHINE = {"--processes": "the processors this process may use"}

HEAD = """# Flags

Every command of this repository with its flags; `--help` prints the same.
Written by `python -m docs.make_flags`. [commands.md](commands.md) says more about some flags.

`--flag-name` and `--flag_name` are the same. An empty default means off or not set, unless the
meaning names the default.
"""


class Found(Exception):
    """Carries the parser of a command."""


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a command builds, taken where it would print its help."""

    def found(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Found(parser)

    with mock.patch.object(argparse.ArgumentParser, "print_help", found):
        try:
            importlib.import_module(module).main(["--help"])
        except Found as carrier:
            parser: argparse.ArgumentParser = carrier.args[0]
            return parser
    raise RuntimeError(f"{module}.main(['--help']) prints no help")


def command_modules() -> list[str]:
    """The modules that are commands, evaluation.run first."""
    found = [
        f"{folder}.{path.stem}"
        for folder in ("data", "evaluation", "benchmarks")
        for path in sorted((ROOT / folder).glob("*.py"))
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]
    return sorted(found, key=lambda module: module != FIRST)


def cells(action: argparse.Action) -> tuple[str, str, str]:
    """One row of the page: the flag, its meaning, its default."""
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    shown = action.metavar if action.option_strings and isinstance(action.metavar, str) else ""
    meaning = (action.help or "") % {"default": action.default}
    if action.choices:
        meaning += f" ({', '.join(map(str, action.choices))})"
    return f"`{names}{' ' if shown else ''}{shown}`", meaning, default_of(action)


def default_of(action: argparse.Action) -> str:
    """An action's default; "required" where there is none and one must be given."""
    default = action.default
    if action.required:
        return "required"
    if default is None or default is False or default == [] or default == argparse.SUPPRESS:
        return ""
    for name in action.option_strings:
        if name in FROM_THE_MACHINE:
            return FROM_THE_MACHINE[name]
    if isinstance(default, Path):
        return f"`{default.relative_to(ROOT) if default.is_relative_to(ROOT) else default}`"
    return f"`{' '.join(map(str, default)) if isinstance(default, list) else default}`"


def section(module: str, known: set[tuple[str, str, str]]) -> str:
    """A command's part of the page.

    Args:
        module: the command.
        known: the rows of `evaluation.run`, which other commands name without explaining them
            again. Filled by the section of `evaluation.run`.
    """
    parser = parser_of(module)
    rows = [cells(action) for action in parser._actions if action.dest != "help"]
    shared = [row[0].split()[0].strip("`,") for row in rows if row in known]
    own = [row for row in rows if row not in known]
    parts = [f"## `{parser.prog}`", (parser.description or "").strip()]
    if own:
        table = ["| flag | meaning | default |", "|---|---|---|"]
        table += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in own]
        parts.append("\n".join(table))
    if shared:
        names = ", ".join(f"`{name}`" for name in shared)
        parts.append(f"As in `python -m {FIRST}`: {names}.")
    if module == FIRST:
        known.update(rows)
    return "\n\n".join(parts)


def page() -> str:
    """The whole page."""
    known: set[tuple[str, str, str]] = set()
    return "\n\n".join([HEAD.strip(), *(section(m, known) for m in command_modules())]) + "\n"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
