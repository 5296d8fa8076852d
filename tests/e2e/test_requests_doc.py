"""docs/requests.md: each curl line of it, run against the real server."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.e2e.model_folder import ROOT
from tests.e2e.triton_server import TritonServer

pytestmark = pytest.mark.timeout(400)  # the first test waits for all answers

DOCUMENT = (ROOT / "docs/requests.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Row:
    """A row of a table: what its first cell names, its curl line, and the cell after that."""

    name: str
    line: str
    after: str

    def __str__(self) -> str:
        return self.name or self.line[-60:]


def rows() -> list[Row]:
    """Return the rows of the document that have a curl line."""
    found = []
    for text in DOCUMENT.splitlines():
        cells = [cell.strip() for cell in text.strip().strip("|").split(" | ")]
        for number, cell in enumerate(cells):
            if match := re.fullmatch(r"`(curl \$URL/.*)`", cell):
                name = cells[0].strip("`") if number else ""
                found.append(Row(name, match[1], "".join(cells[number + 1 :])))
    return found


ROWS = rows()
EXAMPLES = [row for row in ROWS if row.name]
MISTAKES = [row for row in ROWS if not row.name]
OUTPUTS = re.findall(
    r"^\| `(\w+)` \| \w+ \[-?1\] \|.*`curl", DOCUMENT.partition("## Outputs")[2], re.M
)


def run(triton: TritonServer, line: str) -> list[dict[str, object]]:
    """Run a curl line in a shell, and return the JSON objects of the answer or its events.

    Where there is no curl, send what it would send.
    """
    if shutil.which("curl"):
        url = f"URL=http://127.0.0.1:{triton.http_port}/v2/models/vllm"
        command = ["bash", "-c", f"{url}; {line} --silent --max-time 60"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        answer = done.stdout
    else:
        _, url, _, body = shlex.split(line)
        path = url.replace("$URL", "v2/models/vllm")
        _, answer = triton.post(path, json.loads(body))
    parts = answer.split("\n\n") if "generate_stream" in line else [answer]
    return [json.loads(part.removeprefix("data: ")) for part in parts if part.strip()]


def test_the_lines_are_found() -> None:
    """The search, on which these tests rest, sees all three kinds of lines of this model."""
    assert len(ROWS) == DOCUMENT.count("`curl $URL/")
    assert len(EXAMPLES) > 50
    assert len(MISTAKES) > 5
    assert {"text_output", "logprobs", "num_cached_tokens"} < set(OUTPUTS)


Answers = Mapping[str, list[dict[str, object]]]


@pytest.fixture(scope="module")
def answers_of(triton: TritonServer) -> Answers:
    """The answers to each line; the lines run eight at a time."""
    lines = [row.line for row in ROWS]
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(lines, pool.map(lambda line: run(triton, line), lines), strict=True))


@pytest.mark.parametrize("row", EXAMPLES, ids=str)
def test_an_example_is_answered(answers_of: Answers, row: Row) -> None:
    """Each line is answered with a text, and that of an output with this output."""
    answers = answers_of[row.line]
    assert answers
    for answer in answers:
        assert "error" not in answer
        assert {"text_output", "TEXT"} & answer.keys()
        if row.name in OUTPUTS:
            assert row.name in answer


@pytest.mark.parametrize("row", MISTAKES, ids=str)
def test_a_mistake_is_answered_as_shown(answers_of: Answers, row: Row) -> None:
    """The error is the one that is written beside the line."""
    (answer,) = answers_of[row.line]
    assert row.after.strip("`") == answer["error"]
