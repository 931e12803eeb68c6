"""Rich tables as text."""

from __future__ import annotations

import io
import sys

from rich.console import Console, RenderableType


def drawn(*shown: RenderableType) -> str:
    """Renderables as text for standard output: its encoding and colours, no cell is cut."""
    out = sys.stdout or io.StringIO()  # there is none behind >&-
    encoding = out.encoding or "utf-8"
    content = io.BytesIO()
    text = io.TextIOWrapper(content, encoding=encoding, errors="backslashreplace")
    console = Console(file=text, width=max(200, Console().width), force_terminal=out.isatty())
    for each in shown:
        console.print(each)
    text.flush()
    return content.getvalue().decode(encoding)
