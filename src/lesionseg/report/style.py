"""What all figures share: a look for each run, and the colours of text and background.

Each run has one hue, from the palette of Okabe and Ito (2008) that colour-blind people can tell
apart, and one line style and marker, so that it can also be read in print without colour.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib

from lesionseg import outlines

RUN_COLORS = {"train_frozen": "#d55e00", "train_finetuned": "#0072b2"}
RUN_BRIGHT_COLORS = {"train_frozen": "#e69f00", "train_finetuned": outlines.COLOR}  # on photographs
RUN_STYLES: Mapping[str, Any] = {"train_frozen": "--", "train_finetuned": "-"}
RUN_MARKERS = {"train_frozen": "s", "train_finetuned": "o"}
INK = "#1f2328"  # text, ticks and grid
PAPER = "#fefefe"  # background; with INK, a page may replace both for its dark mode
RUN_FILLS = {"train_frozen": PAPER, "train_finetuned": RUN_COLORS["train_finetuned"]}
TRUTH = "#ffffff"

_STYLE: Any = {  # Any: rc_context wants its own literal types
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "figure.facecolor": PAPER,
    "font.size": 10,
    "grid.alpha": 0.12,
    "grid.color": INK,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
styled = matplotlib.rc_context(_STYLE)  # decorates functions that make figures
