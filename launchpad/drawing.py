"""Charts as SVG in one style. Ink is `currentColor`, so that a page sets it for light, dark and paper."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

INK = "#0a0b0c"
SERIES = ["#2f81f7", "#e3742f", "#2da44e", "#a371f7", "#d4a72c", "#e5534b"]
RED = "#cf222e"

PAPER_INK = "#6e7781"
"""Ink of charts in files of their own."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "launchpad",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def plain_numbers(axis: Any) -> None:
    """Have a logarithmic axis say 0.5, 2, 60 in place of powers of ten."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.6)))


def svg(plot: Callable[[Any, Any], None], drawn: Any, title: str, legend: tuple[int, int] = (1, 4)) -> str:
    """Return the SVG that `plot(axes, drawn)` makes, with a title and a legend of (rows, columns) above the axes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7.2, 3.4), layout="constrained")
        plot(axes, drawn)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=8 + 16 * legend[0])
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=legend[1], fontsize=9, handlelength=1.2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    text = buffer.getvalue()
    text = re.sub(
        r"<metadata>.*?</metadata>", "", text[text.index("<svg") :].replace(INK, "currentColor"), flags=re.DOTALL
    )
    for size in ("width", "height"):
        text = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", text, count=1)
    return text


def on_paper(text: str) -> str:
    """Return an SVG for a file of its own: ink that can be read on light and on dark pages."""
    return text.replace("currentColor", PAPER_INK)
