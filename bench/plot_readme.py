"""Draw README's chart of throughput from the figures in docs/images/readme-throughput.json.

``python bench/plot_readme.py [OUTPUT.svg]``. Needs matplotlib. Rates are comparable only within one
run on one host, so each run is a group of bars.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).resolve().parents[1] / "docs/images"
OURS = "this repository"
COLOURS = {OURS: "#1f6feb"}
OTHER = "#9aa4b2"
BAR, GAP = 0.72, 0.9  # height of a bar, and space before a group, in rows
SETTINGS = {"svg.fonttype": "path", "svg.hashsalt": "readme", "font.size": 10}


def draw_panel(axes: Any, panel: dict[str, Any]) -> None:
    """Draw one model's runs, the first on top, with a bar for each server."""
    row = 0.0
    for run in panel["runs"]:
        row += GAP
        axes.text(0, row - 0.62, run["title"], fontsize=8.5, color="#57606a", va="center")
        for name, rate in run["tokens_per_second"].items():
            axes.barh(row, rate, height=BAR, color=COLOURS.get(name, OTHER))
            weight = "bold" if name == OURS else "normal"
            axes.text(-0.015 * panel["limit"], row, name, ha="right", va="center", weight=weight)
            label = f"{rate / 1000:.1f} k"
            axes.text(rate + 0.01 * panel["limit"], row, label, va="center", weight=weight)
            row += 1
    axes.set_ylim(row - 0.3, -0.1)
    axes.set_xlim(0, panel["limit"])
    axes.set_title(panel["title"], loc="left", fontsize=11, weight="bold")
    axes.set_yticks([])
    axes.set_xticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw(figures: dict[str, Any], output: Path) -> None:
    """Draw all panels side by side and write the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(SETTINGS):
        figure, panels = plt.subplots(1, len(figures["panels"]), figsize=(11, 4.1))
        for axes, panel in zip(panels, figures["panels"], strict=True):
            draw_panel(axes, panel)
        figure.suptitle(figures["title"], x=0.012, y=0.985, ha="left", fontsize=12)
        figure.text(0.012, 0.02, figures["note"], fontsize=8, color="#57606a")
        figure.subplots_adjust(left=0.15, right=0.985, top=0.83, bottom=0.085, wspace=0.44)
        figure.savefig(
            output, facecolor="white", metadata={"Date": None} if output.suffix == ".svg" else None
        )


def main() -> None:
    """Read the figures and draw them."""
    figures = json.loads((IMAGES / "readme-throughput.json").read_text(encoding="utf-8"))
    draw(figures, Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES / "readme-throughput.svg")


if __name__ == "__main__":
    main()
