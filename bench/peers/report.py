"""Makes tables of measured rows: medians, spreads, and ratios to the best `vllm serve`.

The best is that under the same load on as many GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from peers.peer import Peer

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """The repeats of one peer under one load."""

    peer: str
    stream: bool
    streams: int
    rows: Sequence[Row]

    def median(self, *path: str) -> float | None:
        """Return the median over the repeats of a figure, such as ``ttft_ms``, ``p99``."""
        values = self.values(*path)
        return median(values) if values else None

    def values(self, *path: str) -> list[float]:
        """Return a figure of each repeat that has it."""
        found = []
        for row in self.rows:
            value: Any = row
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                found.append(float(value))
        return found

    @property
    def failed(self) -> int:
        """The requests that failed, in all repeats."""
        return sum(int(row.get("failed", 0)) for row in self.rows)

    @property
    def lost(self) -> float | None:
        """The tokens that did not arrive, in all repeats; None if they were not counted."""
        counted = self.values("lost_tokens")
        return sum(counted) if counted else None


def cells(rows: Sequence[Row]) -> list[Cell]:
    """Return the rows by peer and load, in the order in which they first came."""
    groups: dict[tuple[str, bool, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["peer"], row["stream"], row["streams"]), []).append(row)
    return [Cell(*key, group) for key, group in groups.items()]


_COLUMNS: tuple[tuple[str, Callable[[Cell], float | None], str], ...] = (
    ("messages/request", lambda c: c.median("messages_per_request"), ".0f"),
    ("TTFT p50 ms", lambda c: c.median("ttft_ms", "p50"), ".1f"),
    ("p99", lambda c: c.median("ttft_ms", "p99"), ".1f"),
    ("gap p50 ms", lambda c: c.median("gap_ms", "p50"), ".2f"),
    ("p99", lambda c: c.median("gap_ms", "p99"), ".2f"),
    ("tokens a step", lambda c: _ratio(c, "output_tokens", "engine_steps"), ".0f"),
    ("with prompts %", lambda c: _times(100, _ratio(c, "prompt_steps", "engine_steps")), ".0f"),
    ("server cores", lambda c: c.median("server_cores"), ".1f"),
    ("client CPU %", lambda c: _times(100, c.median("client_cpu")), ".0f"),
    ("failed", lambda c: c.failed, ".0f"),
    ("tokens lost", lambda c: c.lost, ".0f"),
)


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table for each load."""
    found = cells(rows)
    loads = sorted({(not cell.stream, cell.streams) for cell in found})
    return "\n\n".join(
        _load_table([c for c in found if (not c.stream, c.streams) == load]) for load in loads
    )


def scaling_table(rows: Sequence[Row]) -> str:
    """Return a table of rates on several GPUs as multiples of one GPU's; empty if there are none.

    The one GPU is that of the same kind of peer with the most tokens per second, under the same
    load or under its share of the load.
    """
    found = [(Peer.parse(cell.peer), cell) for cell in cells(rows)]
    lines = []
    for peer, cell in found:
        for streams in (cell.streams, cell.streams // peer.gpus) if peer.gpus > 1 else ():
            alone = [
                c.median("tokens_per_second") or 0.0
                for p, c in found
                if (p.kind, p.gpus, c.stream, c.streams) == (peer.kind, 1, cell.stream, streams)
            ]
            rate = cell.median("tokens_per_second")
            if rate and max(alone, default=0.0):
                counts = map(str, (peer.gpus, cell.streams, streams))
                lines.append(_line([peer.name, *counts, f"{rate / max(alone):.2f}"]))
    header = ["peer", "GPUs", "streams", "one GPU's streams", "of one GPU's tokens/s"]
    return "\n".join([_line(header), _line(["---"] * 5), *lines]) if lines else ""


def _load_table(found: Sequence[Cell]) -> str:
    first = found[0]
    how = "streamed" if first.stream else "not streamed"
    header = ["peer", "tokens/s", "spread", "of the best vllm serve"] + [c[0] for c in _COLUMNS]
    lines = [f"### {first.streams} streams, {how}", "", _line(header), _line(["---"] * len(header))]
    ranked = sorted(found, key=lambda c: -(c.median("tokens_per_second") or 0))
    return "\n".join([*lines, *(_line(_fields(cell, found)) for cell in ranked)])


def _best_vllm(found: Sequence[Cell], gpus: int) -> float | None:
    peers = [(Peer.parse(cell.peer), cell) for cell in found]
    alike = [cell for peer, cell in peers if (peer.kind, peer.gpus) == ("vllm", gpus)]
    rates = [cell.median("tokens_per_second") for cell in alike]
    return max((rate for rate in rates if rate), default=None)


def _fields(cell: Cell, found: Sequence[Cell]) -> Iterator[str]:
    rate = cell.median("tokens_per_second")
    best = _best_vllm(found, Peer.parse(cell.peer).gpus)
    yield cell.peer
    yield _shown(rate, ",.0f")
    yield " to ".join(f"{rate:,.0f}" for rate in _ends(cell.values("tokens_per_second")))
    yield _shown(rate / best if rate and best else None, ".2f")
    for _, value, form in _COLUMNS:
        yield _shown(value(cell), form)


def _ends(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)] if values else []


def _ratio(cell: Cell, name: str, of: str) -> float | None:
    """Return the median over the repeats of one figure divided by another."""
    found = [row[name] / row[of] for row in cell.rows if row.get(of) and name in row]
    return median(found) if found else None


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _line(fields: Iterator[str] | Sequence[str]) -> str:
    return f"| {' | '.join(fields)} |"


def resolved_table(resolved: Mapping[str, Mapping[str, str]]) -> str:
    """Return a table of what each engine made of the same arguments, differences marked."""
    resolved = {name: found for name, found in resolved.items() if found}  # a send path has none
    keys = list(dict.fromkeys(key for found in resolved.values() for key in found))
    if not keys:
        return ""
    header = ["", *resolved]
    lines = [_line(header), _line(["---"] * len(header))]
    for key in keys:
        values = [found.get(key, "") for found in resolved.values()]
        differ = len({value for value in values if value}) > 1
        lines.append(_line([f"**{key} (differs)**" if differ else key, *values]))
    return "\n".join(lines)
