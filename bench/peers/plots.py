"""Plots of a comparison: throughput against streams, and latency against throughput."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peers.report import Cell, Row, cells


def draw(rows: Sequence[Row], folder: Path) -> Iterator[Path]:
    """Draw what there is to draw; yield the files. Raises ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    for stream, name in ((True, "streamed"), (False, "whole")):
        found = [cell for cell in cells(rows) if cell.stream == stream]
        if found:
            yield _throughput(found, folder / f"throughput_{name}.png")
        if found and stream:
            yield _latency(found, folder / f"latency_{name}.png")


def _throughput(found: Sequence[Cell], path: Path) -> Path:
    """Tokens/s against streams: medians, with the spread of the repeats."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for peer, own in _by_peer(found):
        points = [
            (c.streams, rate, c.values("tokens_per_second"))
            for c in own
            if (rate := c.median("tokens_per_second")) is not None
        ]
        axes.errorbar(
            [streams for streams, _, _ in points],
            [rate for _, rate, _ in points],
            yerr=[
                [rate - min(values) for _, rate, values in points],
                [max(values) - rate for _, rate, values in points],
            ],
            marker="o",
            capsize=3,
            label=peer,
        )
    axes.set(xlabel="streams", ylabel="tokens/s", xscale="log")
    axes.set_xticks(sorted({c.streams for c in found}), minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    return _save(figure, [axes], path)


def _latency(found: Sequence[Cell], path: Path) -> Path:
    """Time to first token, and gaps between messages, against tokens/s: a point for each load."""
    from matplotlib import pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axes, key, title in zip(
        both, ("ttft_ms", "gap_ms"), ("time to first token", "between messages"), strict=True
    ):
        for peer, own in _by_peer(found):
            rates = [c.median("tokens_per_second") for c in own]
            (line,) = axes.plot(rates, [c.median(key, "p50") for c in own], "o-", label=peer)
            p99 = [c.median(key, "p99") for c in own]
            axes.plot(rates, p99, "x:", color=line.get_color())
        axes.set(xlabel="tokens/s", ylabel=f"{title}, ms (line p50, dotted p99)", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    return _save(figure, list(both), path)


def _by_peer(found: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    for peer in dict.fromkeys(cell.peer for cell in found):
        own = [cell for cell in found if cell.peer == peer]
        yield peer, sorted(own, key=lambda cell: cell.streams)


def _save(figure: Any, axes: Sequence[Any], path: Path) -> Path:
    from matplotlib import pyplot as plt

    for each in axes:
        each.grid(alpha=0.3)
        each.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
