"""What figures are drawn on and with: an empty one, colours, dashes, ticks. Colours are Okabe and
Ito's, told apart by everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"short": "#0072B2", "long": "#D55E00", "probe": "#009E73"}
CYCLE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999999",
)
DASHES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (1, 1)),
    (0, (8, 2)),
    (0, (3, 3)),
)
_NARROW = 1e4  # the ends of a logarithmic axis that has room for labels at 2 and 5 too
_TICKS = 15  # decades that all have a tick


def empty_figure(rows: int, columns: int) -> Figure:
    """Rows and columns of empty axes; no global state of pyplot, so it works in any thread and
    leaves nothing behind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * columns, 3.9 * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes in np.atleast_1d(figure.subplots(rows, columns)).flat:
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plain_ticks(axes: Axes, which: str) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, as plain numbers (0.1, 0.2, 0.5, 1); over many
    decades those at 2 and 5 have no labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    narrow = high / max(low, 1e-12) <= _NARROW
    labelled = LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=_TICKS)
    axis.set_major_locator(labelled)
    axis.set_minor_locator(LogLocator(subs=(1, 2, 5), numticks=_TICKS))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
