"""What the pictures share: figures that are only written to files, colours, hatches and dashes.

Every picture can be read in black and white: bars are named or differ in hatching, lines in dashes
and markers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
# The methods that a reader looks for, in two colours of Okabe and Ito, whatever their variants
STRONG = {"logitspec": "#D55E00", "calibrated": "#0072B2"}
# All others: lighter or greyer, and apart from each other and from STRONG for colour-blind readers
QUIET = ("#88CCEE", "#BBCC33", "#FFAABB", "#009E73", "#CC79A7", "#DDCC77")


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


def line_style(index: int, count: int) -> dict[str, Any]:
    """Colour and dashes of one line among several."""
    return {"color": shade(index, count), "linestyle": DASHES[index % len(DASHES)],
            "marker": MARKERS[index % len(MARKERS)], "markersize": 4, "linewidth": 1.4}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every picture alike."""

    color: str
    strong: bool
    marker: str
    variant: int  # among the variants of one method, as NAME, NAME@16 and NAME@auto

    def bar(self) -> dict[str, Any]:
        hatch = HATCHES[self.variant % len(HATCHES)]
        return {"color": self.color, "hatch": hatch, "edgecolor": "black", "linewidth": 0.5}

    def line(self) -> dict[str, Any]:
        size, width, order = (5, 2.2, 3) if self.strong else (4, 1.3, 2)
        dashes = DASHES[self.variant % len(DASHES)]
        return {"color": self.color, "linestyle": dashes, "linewidth": width, "zorder": order,
                "marker": self.marker, "markersize": size}  # fmt: skip


def looks(methods: Mapping[str, str]) -> dict[str, Look]:
    """The look of each label, from the method that it stands for; variants share a colour.

    It depends on which methods there are, not on their order, so pictures of the same methods
    agree.
    """
    plain = {label: method.partition("@")[0] for label, method in methods.items()}
    order = sorted(set(plain.values()))
    quiet = [name for name in order if name not in STRONG]
    found: dict[str, Look] = {}
    variants: dict[str, int] = {}
    for label, name in sorted(plain.items()):
        color = STRONG.get(name) or QUIET[quiet.index(name) % len(QUIET)]
        variant = variants[name] = variants.get(name, -1) + 1
        marker = MARKERS[order.index(name) % len(MARKERS)]
        found[label] = Look(color, name in STRONG, marker, variant)
    return found
