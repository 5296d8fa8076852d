"""vLLM's flags, where its own texts name them, as keys of the engine arguments' file."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator

_NAME = r"[a-z][a-z0-9]*(?:[-_.][a-z0-9]+)*"
_FLAG = re.compile(
    rf"`--(?P<with_value>{_NAME})[ =](?P<value>[^`\s]+)`"
    rf"|(?<![\w`-])`?--(?P<plain>{_NAME})(?![\w-])`?(?:=(?P<equals>[\w.-]*\w))?"
)


def flags_as_keys(text: str, known: Collection[str], file: str = "") -> str:
    """Return ``text`` with each flag of an option in ``known`` as a key: ``"max_num_seqs"``.

    ``--no-enforce-eager`` becomes ``"enforce_eager": false``, and ``--runner=pooling``
    ``"runner": "pooling"``. Other flags stay. After the last key comes the ``file``, if any.
    """
    parts, end = [], 0
    for start, stop, key in _keys(text, known):
        parts += [text[end:start], key]
        end = stop
    if parts and file:
        parts.append(f" in {file}")
    return "".join(parts) + text[end:]


def _keys(text: str, known: Collection[str]) -> Iterator[tuple[int, int, str]]:
    """Yield where each flag stands, and the key in its place."""
    for flag in _FLAG.finditer(text):
        name = (flag["with_value"] or flag["plain"]).replace("-", "_")
        given = flag["value"] or flag["equals"]
        value = f": {_as_json(given)}" if given else ""
        if name.partition(".")[0] not in known:
            if value or not name.startswith("no_") or name[3:] not in known:
                continue
            name, value = name[3:], ": false"
        yield flag.start(), flag.end(), f'"{name}"{value}'


def _as_json(value: str) -> str:
    try:
        json.loads(value)
    except ValueError:
        return json.dumps(value)
    return value
