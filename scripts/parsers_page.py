"""A page of the docs with tables of what vLLM's parsers do: measured, kept in a file, written."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
END = "<!-- The tables end. -->"
SHOWN = "vLLM 0.32.0"

Cells = dict[str, dict[str, str]]  # way to parse -> name of the case -> what is wrong
Measured = Mapping[str, Mapping[str, Cells]]  # version -> parser


def grouped(*cells: Mapping[str, str]) -> dict[str, list[str]]:
    """Return each fault of one or more ways with its cases."""
    cases: dict[str, list[str]] = {}
    for way in cells:
        for case, found in way.items():
            for fault in found.split(", "):
                if case not in cases.setdefault(fault, []):
                    cases[fault].append(case)
    return cases


@dataclass(frozen=True, slots=True)
class Page:
    """docs/NAME.md, with tables made of docs/NAME.json.

    ``measure`` takes a tokenizer's folder and returns the cells of each parser; ``row`` returns a
    parser's row but for its name, below the titles ``columns``.
    """

    name: str
    columns: Sequence[str]
    row: Callable[[Cells], str]
    measure: Callable[[str], dict[str, Cells]]

    @property
    def script(self) -> str:
        """The script that writes the page."""
        return f"scripts/{self.name.replace('-', '_')}_table.py"

    @property
    def cells(self) -> Path:
        """The file with what was measured."""
        return ROOT / f"docs/{self.name}.json"

    @property
    def docs(self) -> Path:
        """The page."""
        return ROOT / f"docs/{self.name}.md"

    @property
    def begin(self) -> str:
        """The line before the tables."""
        return f"<!-- The tables: written by {self.script} --docs -->"

    def measured(self) -> dict[str, dict[str, Cells]]:
        """Return what the file has; nothing before the first run."""
        if not self.cells.exists():
            return {}
        read: dict[str, dict[str, Cells]] = json.loads(self.cells.read_text(encoding="utf-8"))
        return read

    def table(self, parsers: Mapping[str, Cells]) -> str:
        """Return the table of one version: parsers with the same row share it."""
        rows: dict[str, list[str]] = {}
        for name, cells in parsers.items():
            rows.setdefault(self.row(cells), []).append(f"`{name}`")
        head = f"| Parser | {' | '.join(self.columns)} |"
        lines = [f"| {', '.join(names)} | {cells} |" for cells, names in rows.items()]
        return "\n".join([head, "|---" * (1 + len(self.columns)) + "|", *lines])

    def tables(self, measured: Measured) -> str:
        """Return the table of the version that the CPU tests serve, and what others change."""
        shown = measured[SHOWN]
        parts = [f"{SHOWN}:", self.table(shown)]
        for version, parsers in measured.items():
            changed = {name: cells for name, cells in parsers.items() if cells != shown.get(name)}
            if version != SHOWN:
                title = f"{version}, the parsers that differ or that {SHOWN} lacks:"
                none = f"{version}: every parser does what it does in {SHOWN}."
                parts += [title, self.table(changed)] if changed else [none]
        return "\n\n".join(parts)

    def shown(self) -> str:
        """Return the tables that the page has. Raises ValueError if their end is not marked."""
        _, _, rest = self.docs.read_text(encoding="utf-8").partition(self.begin)
        tables, end, _ = rest.partition(END)
        if not end:
            raise ValueError(f"{self.docs.name}: no tables between {self.begin!r} and {END!r}")
        return tables.strip()

    def write(self, measured: Measured) -> None:
        """Write the tables into the page."""
        before, _, rest = self.docs.read_text(encoding="utf-8").partition(self.begin)
        _, _, after = rest.partition(END)
        text = f"{before}{self.begin}\n\n{self.tables(measured)}\n\n{END}{after}"
        self.docs.write_text(text, encoding="utf-8")

    def main(self, description: str) -> None:
        """Print the cells of the installed vLLM, or write the file or the docs."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("tokenizer", nargs="?", help="a folder with a byte-level tokenizer")
        parser.add_argument("--update", action="store_true", help=f"write {self.cells.name}")
        parser.add_argument("--docs", action="store_true", help=f"write it into {self.docs.name}")
        args = parser.parse_args()
        measured = self.measured()
        if args.tokenizer:
            import vllm

            logging.disable(logging.CRITICAL)  # a parser logs each text that it cannot read
            found = {f"vLLM {vllm.__version__}": self.measure(args.tokenizer)}
            measured = dict(sorted((measured | found).items()))
            if not args.update:
                print(json.dumps(found, indent=1))
        if args.update:
            text = json.dumps(measured, indent=1, ensure_ascii=False)
            self.cells.write_text(text + "\n", encoding="utf-8")
        if args.docs:
            self.write(measured)
