"""docs/requests.md: its lines for models that see, embed, score or have adapters."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable

import pytest

from tests.e2e.tiny_models import TinyModels, serve_chat, serve_vision
from tests.e2e.triton_server import ROOT

pytestmark = pytest.mark.timeout(300)
MODELS: dict[str, tuple[str, Callable[[TinyModels], None]]] = {
    "LORA": ("chat", serve_chat),
    "VISION": ("vision", serve_vision),
    "EMBEDDING": ("embedding", lambda tiny: tiny.serve("embedding")),
    "RERANKER": ("reranker", lambda tiny: tiny.serve("reranker")),
}
DOCUMENT = (ROOT / "docs/requests.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| `(\w+)` \|.*`(curl \$(?!URL).*)` \|$", DOCUMENT, re.MULTILINE)
OUTPUTS = ("vectors", "scores")


def test_the_lines_are_found() -> None:
    """The search sees all of them, and each model has some."""
    assert len(LINES) == len(re.findall(r"`curl \$(?!URL/)", DOCUMENT))
    assert MODELS.keys() == {variable(line) for _, line in LINES}


def variable(line: str) -> str:
    return line.split("$", 1)[1].split("/", 1)[0]


@pytest.mark.parametrize(("name", "line"), LINES, ids=[name for name, _ in LINES])
def test_an_example_is_answered(tiny: TinyModels, name: str, line: str) -> None:
    """Each line is answered, and that of an output with this output."""
    model, serve = MODELS[variable(line)]
    serve(tiny)
    _, url, _, body = shlex.split(line)
    path = url.replace(f"${variable(line)}", f"v2/models/{model}")
    status, text = tiny.server.post(path, json.loads(body))
    assert 200 == status, text
    if name in OUTPUTS:
        assert json.loads(text)[name]
