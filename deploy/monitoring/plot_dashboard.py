#!/usr/bin/env python3
"""Draws the dashboard's panels from a Prometheus, where no Grafana is at hand.

    deploy/monitoring/plot_dashboard.py PICTURE [--prometheus URL] [--minutes N]

Needs matplotlib. The queries are those of the dashboard, for all models.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parent / "grafana/dashboards/vllm-on-triton.json"
COLUMNS = 3
UNITS = {"s": "s", "percentunit": "share", "reqps": "1/s", "ops": "1/s"}


def main() -> None:
    """Query and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="file to write, such as dashboard.png")
    parser.add_argument("--prometheus", default="http://localhost:9090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=30, help="how far back (30)")
    options = parser.parse_args()
    draw(options.picture, options.prometheus, options.minutes * 60)


def draw(picture: Path, url: str, seconds: float) -> None:
    """Draw the panels' last ``seconds`` from the Prometheus at ``url``."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = [p for p in json.loads(DASHBOARD.read_text())["panels"] if p.get("targets")]
    rows = -(-len(panels) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(15, 2.6 * rows), constrained_layout=True)
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, panel, url, seconds)
    figure.supxlabel("seconds from now", fontsize=9)
    figure.savefig(picture, dpi=80)


def _draw_panel(axis: Any, panel: dict[str, Any], url: str, seconds: float) -> None:
    unit = UNITS.get(panel["fieldConfig"]["defaults"]["unit"])
    axis.set_title(panel["title"] + (f" ({unit})" if unit else ""), fontsize=10, loc="left")
    for target in panel["targets"]:
        for series in _range(url, target["expr"], seconds):
            times = [(float(t) - time.time()) for t, _ in series["values"]]
            values = [float(v) for _, v in series["values"]]
            axis.plot(times, values, label=_legend(target["legendFormat"], series["metric"]))
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)
    if axis.lines:
        axis.legend(fontsize=7, loc="best", framealpha=0.6)


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda m: labels.get(m[1], ""), template)


def _range(url: str, expression: str, seconds: float) -> list[Any]:
    now = time.time()
    query = expression.replace("$model", ".*").replace("$__rate_interval", "30s")
    parameters = {"query": query, "start": now - seconds, "end": now, "step": seconds / 200}
    where = f"{url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(where, timeout=30) as response:  # noqa: S310 (the user's own URL)
        return list(json.loads(response.read())["data"]["result"])


if __name__ == "__main__":
    main()
