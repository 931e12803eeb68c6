"""What the pictures share: figures that are only written to files, colours, hatches and dashes.

Every picture can be read in black and white: bars differ in brightness and hatching, lines in
dashes and markers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.logitspec.errors import InputError

from ..command.files import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # so that a file is reproducible
HATCHES = ("", "//", "..", "\\\\", "xx", "oo", "--", "++")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def require_matplotlib() -> Any:
    """The module matplotlib; InputError if it is not installed."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise InputError(
            "plots need matplotlib; `pip install -e '.[plots]'` installs it"
        ) from error
    return matplotlib


def new_figure(width: float = 6.4, height: float = 4.8) -> Figure:
    """An empty figure of so many inches that is only ever written to files."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the file's name ends in, one of FORMATS."""
    fixed = {"svg.hashsalt": "logitspec", "svg.fonttype": "none"}
    with writing(path), require_matplotlib().rc_context(fixed):
        figure.savefig(path, dpi=120, metadata=UNDATED.get(path.suffix[1:]))


def shade(index: int, count: int) -> Any:
    """Colour of one among several, light to dark, but neither too light for a line nor too dark to
    show a hatching."""
    import matplotlib

    return matplotlib.colormaps["viridis"](0.9 - 0.7 * index / max(1, count - 1))


def style(index: int, count: int) -> dict[str, Any]:
    """Colour and hatching of the bars of one method among several."""
    hatch = HATCHES[index % len(HATCHES)]
    return {"color": shade(index, count), "hatch": hatch, "edgecolor": "black", "linewidth": 0.6}


def line_style(index: int, count: int) -> dict[str, Any]:
    """The same for lines."""
    return {"color": shade(index, count), "linestyle": DASHES[index % len(DASHES)],
            "marker": MARKERS[index % len(MARKERS)], "markersize": 4, "linewidth": 1.4}  # fmt: skip
